"""Benchmarks of speed, memory and quality, and comparisons with other packages."""
