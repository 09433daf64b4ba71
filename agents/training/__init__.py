"""Machinery that every trainer shares: configuration, rollouts, updates, metrics, the run folder."""
