"""Kernels for CUDA tensors, compiled by Triton."""
