"""What compiled kernels share: work divided among threads, compiling, half precision."""
