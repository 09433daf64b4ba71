"""Truth, for evaluation only. Training code must not import this package; a test on the import graph sees to it."""
