"""Label tables: values that researchers upload for posts or accounts, to filter, group and export by.

Kept light on purpose: the worker that reads uploads imports it in a process with little memory.
"""
