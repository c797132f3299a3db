"""The kernels of `normlab.kernels.cpu`, called from C++: what a layer's call costs beside its work is less."""
