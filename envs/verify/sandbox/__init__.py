"""Runs one shell command in a sandbox of its own, made by bubblewrap, over a small file tree.

`run.execute` runs it, `probe.unavailable` says what is missing on this machine, `archive` holds the file
tree. What the sandbox holds and what it does not is in docs/SANDBOX.md; `python -m agents.selftest` attacks
it.
"""
