"""What a GPU is asked when one is at hand: `python -m benchmarks.gpu`, or `make gpu`, in ten minutes.

`__main__` runs the parts, each in a process with a time limit of its own; `parts` says what each measures, `page` how
the results read. `compiled` and `traffic` need no GPU: what the compiler makes of the kernels, and the bytes they move.
"""
