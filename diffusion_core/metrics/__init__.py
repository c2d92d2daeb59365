"""Metrics of samples against real images, their reference and its feature network."""
