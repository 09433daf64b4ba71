"""Who acts and learns. A file here is a command, `python -m agents.NAME`; a folder is shared machinery."""
