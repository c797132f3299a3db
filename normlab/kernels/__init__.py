"""The code that touches whole tensors, and the choice of who runs it.

| backend | serves |
|---|---|
| `numba_cpu` | NumPy arrays and CPU tensors: float32 and float64 without a copy, float16 and bfloat16 in float32 |
| `native_cpu` | CPU tensors of the same dtypes by the same kernels, called from C++: after `normlab build` |
| `triton_gpu` | CUDA tensors of float32, float64, bfloat16 and float16, where triton is installed, without a copy |
| `reference` | everything else, and everything on request: the specification in array arithmetic |

With TRITON_INTERPRET=1 in the environment of a process, `triton_gpu` serves CPU tensors too, on request (for tests).

The choice is visible (`backend_for`) and can be overruled (`use_backend`). A slower backend never serves in silence
(`BackendWarning`). What a backend has to offer is in `normlab.kernels.contract`; `register` adds one.
"""

from normlab.kernels.registry import BackendWarning, backend_for, backend_names, register, use_backend

__all__ = ["BackendWarning", "backend_for", "backend_names", "register", "use_backend"]
