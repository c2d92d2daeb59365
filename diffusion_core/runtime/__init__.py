"""The runtime: devices, precision, processes, threads, memory and compiled kernels."""
