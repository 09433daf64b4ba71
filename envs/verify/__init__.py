"""What is right, for evaluation only. Training code must not import this package; a test sees to it."""
