"""Training: the only loop, its optimiser, checkpoints, metrics and progress."""
