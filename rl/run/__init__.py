"""A run from start to end: signals, metrics, log, folder, checkpoints, resume, evaluation."""
