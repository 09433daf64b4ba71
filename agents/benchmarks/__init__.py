"""The benchmarks that need a file of their own. `python -m agents.bench` runs them."""
