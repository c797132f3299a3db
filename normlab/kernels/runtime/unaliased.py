"""Elements at an address, loaded and stored so that the compiler may take them to be of different arrays.

Whether arrays overlap it otherwise tests when a loop starts, for every pair of one that is written and another one, and
from a handful of pairs on it does not vectorize the loop. Here each array has a role, a number below `ROLES`: what is
loaded or stored in one role is never stored in another. Who uses them sees to that.
LLVM language reference, "noalias and alias.scope metadata".

And an array that is handed from function to function is counted among its users, which takes as long as a short row
does; a pointer is not.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

ROLES = 16


@intrinsic
def _elements(typingctx: Any, address: Any, real: Any) -> Any:
    """Pointer to numbers of type `real` at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(real.instance_type)(types.intp, real), generate


@intrinsic
def _load(typingctx: Any, elements: Any, index: Any, role: Any) -> Any:
    """elements[index] in this role; of a pointer, or a contiguous array within which the index is, and not negative."""
    if not _fits(elements, role):
        return None

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        loaded = builder.load(place(context, builder, signature, args))
        _mark_access(builder.module, loaded, role.literal_value)
        return loaded

    return elements.dtype(elements, types.intp, role), generate


@intrinsic
def _store(typingctx: Any, elements: Any, index: Any, value: Any, role: Any) -> Any:
    """elements[index] = value, in this role."""
    if not _fits(elements, role):
        return None

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _mark_access(
            builder.module, builder.store(args[2], place(context, builder, signature, args)), role.literal_value
        )
        return context.get_dummy_value()

    return types.void(elements, types.intp, elements.dtype, role), generate


# an intrinsic is called without the typing context that it is defined with: no type checker sees that
elements_at: Any = _elements
load: Any = _load
store: Any = _store


def _fits(elements: Any, role: Any) -> bool:
    contiguous = isinstance(elements, types.CPointer) or getattr(elements, "layout", "") == "C"
    return contiguous and isinstance(role, types.IntegerLiteral) and 0 <= role.literal_value < ROLES


def place(context: Any, builder: Any, signature: Any, args: Any, inbounds: bool = True) -> Any:
    """Pointer to an element, by an array or a pointer to elements and an index; `inbounds` says that it exists."""
    start = args[0]
    if isinstance(signature.args[0], types.Array):
        start = context.make_array(signature.args[0])(context, builder, start).data
    return builder.gep(start, [args[1]], inbounds=inbounds)


def _mark_access(module: ir.Module, access: Any, role: int) -> None:
    domain = module.add_metadata([ir.MetaDataString(module, "normlab")])
    scopes = [module.add_metadata([ir.MetaDataString(module, f"normlab role {i}"), domain]) for i in range(ROLES)]
    access.set_metadata("alias.scope", module.add_metadata([scopes[role]]))
    access.set_metadata("noalias", module.add_metadata([s for i, s in enumerate(scopes) if i != role]))
