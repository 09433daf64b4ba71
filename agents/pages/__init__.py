"""HTML pages of evaluations, studies and comparisons, from plain values. Each is one self-contained file."""
