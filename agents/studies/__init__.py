"""Studies and comparisons: what runs wrote, as tables and charts. Nothing here imports `envs.verify`."""
