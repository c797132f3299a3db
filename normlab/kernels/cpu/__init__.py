"""Kernels for CPU tensors and NumPy arrays, compiled by Numba."""
