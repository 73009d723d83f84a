"""Pre-training: the loop, its optimiser, its checkpoints, and the run folder."""
