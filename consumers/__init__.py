"""Topics to lake: the writer (poll, decode, batch, commit), replay and maintenance."""
