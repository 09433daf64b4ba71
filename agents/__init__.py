"""Who acts and learns. Every file directly in this folder is a command, `python -m agents.NAME`; every folder is shared machinery."""
