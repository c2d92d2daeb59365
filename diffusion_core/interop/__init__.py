"""Checkpoints of other packages."""
