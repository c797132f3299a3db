"""`normlab bench`: ours beside torch's, eager and compiled, and beside the memory of the machine, in one run.

`layers` times a list of `work.Work`, `step` a training step of a residual network; `exactness` compares errors with
float64, `memory` the memory that a training step takes. Whatever is slower, less exact or larger is printed too.
"""
