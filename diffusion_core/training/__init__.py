"""Training: the trainer, the EMA of its weights, the order of the data, and checkpoints."""
