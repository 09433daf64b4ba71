"""The command line of every command: flags, YAML settings, what the terminal shows."""
