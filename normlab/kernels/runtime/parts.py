"""Functions that only compiled code calls, compiled as parts of what calls them: by themselves they are never run.

Numba makes machine code of every function, also of one that it then puts into its caller, which costs a good part of
the time to the first output of a layer. A part is handed on in LLVM's language: optimized, or as it was written.
"""

from __future__ import annotations

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class _Unfinished(JITCodeLibrary):
    """Code that is handed to others, and that no processor could run."""

    def _finalize_final_module(self) -> None:
        self._finalized = True


class _AsWritten(_Unfinished):
    """Code that is optimized with what it becomes a part of, and not before."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass


class Part(Compiler):
    """Numba's steps from Python to LLVM's language. Loops are optimized before they are put among others."""

    kind: type[_Unfinished] = _Unfinished

    def compile_extra(self, func: Any) -> Any:
        """Compile a function; Python cannot call it."""
        context = self.state.targetctx
        self.state.flags.no_compile = True
        code = self.state["library"] = self.kind(context.codegen(), func.__qualname__)
        # Numba knows a compiled function by the builtin that Python would call: one for each, which raises KeyError
        parent: Any = super()
        result = parent.compile_extra(func)._replace(entry_point={}.__getitem__)
        context.insert_user_function(result.entry_point, result.fndesc, [code])
        return result


class Joint(Part):
    """Likewise, for what has no loops over elements."""

    kind = _AsWritten
