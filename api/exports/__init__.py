"""Exports: jobs that write what a query selects into a file, and keep that file free of what was removed since."""
