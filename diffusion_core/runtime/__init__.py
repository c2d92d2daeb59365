"""What the work runs on: threads, memory and compiled kernels."""
