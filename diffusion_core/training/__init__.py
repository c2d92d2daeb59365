"""Training: the trainer, the average of its weights, the order of the data, and checkpoints."""
