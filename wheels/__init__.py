"""What a wheel carries beside the sources: kernels as machine code."""
