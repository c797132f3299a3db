"""A layer's forward and backward pass as torch sees them: an `autograd.Function`, and two custom operators.

    normlab::normalize(x, residual, params, running, ...) -> (y, memory, new running mean, new running variance)
    normlab::normalize_backward(dy, x, residual, params, running, memory, ...) -> [dx, d residual, d params ...]

Called from Python, layers take the `autograd.Function`: it costs less than the dispatcher. Whoever looks at the program
instead of running it (`torch.compile`, `torch.export`, `make_fx`, fake tensors, tensor subclasses) gets
the operators, which have shapes without data, gradients, and nothing but tensors, numbers and text for arguments. Both
run the same code and give the same numbers.

There is one operator a direction and not one a kernel. The kernels of a direction and the grid function between them
are one call of a backend: split, every call would go through the dispatcher three times, the grids in between would be
tensors of their own, and a block of samples would not stay in cache from the moments to the affine map.

The operators are functional, as differentiable ones must be: `normalize` returns the new running statistics, and the
layer copies them into its buffers.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, library

from normlab.errors import UsageError
from normlab.kernels import stages, use_backend
from normlab.kernels.activations import Activation, activation
from normlab.kernels.layout import Layout, allocated, empty_like
from normlab.kernels.registry import differentiable_for, planes_for
from normlab.layers import _torch, checks
from normlab.layers import derivatives as differentiable
from normlab.layers.call import Call
from normlab.layers.recomputing import is_recording, remember
from normlab.norms.application import Recipe
from normlab.norms.grid import NoProgram, update_running
from normlab.norms.program import trace


def is_transformed() -> bool:
    """Whether a transform of `torch.func` is under way, or forward-mode differentiation."""
    return _torch.transforms_active() or _torch.forward_mode()


def is_followed(dy: Tensor) -> bool:
    """Whether a gradient is to be differentiated itself (create_graph=True), is a batch of them, or of a subclass."""
    return (
        torch.is_grad_enabled()
        or type(dy) is not Tensor
        or _torch.transforms_active()
        or _torch.is_batch_of_gradients(dy)
    )


def seen_through(x: Tensor) -> bool:
    """Whether somebody looks at the program instead of running it, and needs to find operators in it."""
    return torch.compiler.is_compiling() or watched(x)


def watched(x: Tensor) -> bool:
    """`seen_through`, by others than the compiler."""
    if type(x) not in checks.PLAIN or x.is_meta or x.is_nested:
        if not isinstance(x, Tensor):
            raise TypeError(f"expected a torch.Tensor, got {type(x).__name__}")
        return True
    return _torch.dispatch_modes() > 0 or _torch.tracing_state() is not None


def is_recomputation() -> bool:
    """Whether this is a second forward pass, run by a backward pass that needs what activation checkpointing dropped.

    No statistics are to be updated then: the batch has been counted. Not to be asked while compiling.
    """
    return bool(_torch.graph_task() != -1)


def normalize(x: Tensor, residual: Tensor | None, call: Call) -> Tensor:
    """y = act(norm(x) + residual), differentiable."""
    if is_transformed():
        return _transformed(x, residual, call)
    differentiated = torch.is_grad_enabled()
    if differentiated and torch.is_inference_mode_enabled():  # where switching gradients on gives none
        with torch.no_grad():
            return normalize(x, residual, call)
    call.backend, by_backend = differentiable_for(x, call.recipe.entry)
    y = None if by_backend is None else _run_by_backend(by_backend, x, residual, call)
    if y is None:
        y = _apply(x, residual, call, *call.params.values()) if differentiated else _run(x, residual, call)[0]
    if differentiated and is_recording():
        remember(y, x, residual, call)
    return y


def _run_by_backend(by_backend: Any, x: Tensor, residual: Tensor | None, call: Call) -> Tensor | None:
    """The output as a backend makes it that has its own place in autograd's graph, or None."""
    recipe = call.recipe
    if 0 in x.shape or (call.update is not None and recipe.entry.in_evaluation is not None):
        return None
    layout, dense = Layout.dense_of(x, recipe.entry.per_channel)
    if dense is not x:
        return None
    params, update = [*call.params.values()], _update(call)
    try:
        y: Tensor | None = by_backend(
            recipe, layout, x, params, call.running, call.eps, call.act, residual, update, (call, _pull_back_from_saved)
        )
    except NoProgram:
        return None
    return y


def _pull_back_from_saved(
    call: Call,
    has_residual: bool,
    versions: Sequence[int],
    memory: Tensor,
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    params: list[Tensor],
) -> list[Tensor | None]:
    """Gradients of x, residual and parameters, from what a forward pass has saved."""
    check_unpacked(x, dy)
    if is_followed(dy):
        return _pull_back_followed(dy, x, residual, has_residual, call, params, versions)
    if has_residual and residual is None:
        residual = x  # nothing is asked of it but that it was there
    recipe = call.recipe
    named = dict(zip(recipe.names, params, strict=True))
    cache = stages.restored(
        recipe, x, named, call.running, eps=call.eps, act=call.act, residual=residual, memory=memory
    )  # fmt: skip
    dx, by_name = stages.backward(dy, cache)
    return [dx, cache.to_residual, *by_name.values()]


def untraced(backward: Callable[[Any, Tensor], tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """A backward pass that compiled autograd calls, and does not trace: a kernel's addresses are good for one call."""

    def called(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(backward)(ctx, dy)  # type: ignore[no-any-return]
        return backward(ctx, dy)

    return called


class Normalize(torch.autograd.Function):
    """The three stages as one step that can be differentiated, and its derivative by `normlab.layers.derivatives`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, call: Call, *parameters: Tensor) -> Tensor:
        y, kept = _run(x, residual, call, lengths_fit=True)
        # All that the backward pass uses travels as saved tensors: a change in place is noticed, checkpointing can drop
        # it, and what is computed a second time comes back together. x goes as it was given, not as a dense copy.
        saved = [x] if residual is None or call.act is None else [x, residual]
        memory = None if kept.saved is None else as_tensor(kept.saved.memory)
        saved += parameters
        if memory is not None:
            saved.append(memory)
        ctx.save_for_backward(*saved)
        versions = () if call.running is None else _versions(call.running)
        ctx.kept = call, kept.layout, kept.backend, kept.saved, memory, residual is not None, versions
        return y

    @staticmethod
    @untraced
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        call, layout, backend, kept, own_memory, has_residual, versions = ctx.kept
        x, *params = ctx.saved_tensors
        check_unpacked(x, dy)
        memory = None if own_memory is None else params.pop()
        # without an activation nothing is asked of the residual but that it was there
        residual = None if not has_residual or call.act is None else params.pop(0)
        if is_followed(dy):
            dx, to_residual, *grads = _pull_back_followed(dy, x, residual, has_residual, call, params, versions)
            return (dx, to_residual, None, *grads)
        x = layout.dense(x)
        if has_residual:
            residual = x if residual is None else layout.dense(residual)
        # computed again, or brought back
        if memory is not None and memory is not own_memory and memory.data_ptr() != own_memory.data_ptr():
            memory = as_kept(memory, own_memory)
            named = dict(zip(call.recipe.names, params, strict=True))
            kept = backend.restored(call.recipe, layout, x, named, call.running, call.eps, call.act, memory)
        dx, to_residual, grads = stages.gradients(
            dy, x, params, residual, call.recipe.names, layout, backend, call.act, kept
        )  # fmt: skip
        return (dx, to_residual, None, *grads)


_apply = _torch.apply_of(Normalize)


def as_kept(found: Tensor, kept: Tensor) -> Tensor:
    """What came out of saved-tensor hooks in the dtype in which it went in, which the kernels read it as."""
    check_unpacked(found, kept)
    there: Tensor = allocated(found)
    return there.to(kept.dtype)


def check_unpacked(found: Tensor, kept: Tensor) -> None:
    """Raise RuntimeError if a tensor that came out of saved-tensor hooks has not the shape and device of this one."""
    if found.shape != kept.shape or found.device != kept.device:
        raise RuntimeError(
            f"a saved tensor of shape {tuple(kept.shape)} on {kept.device} was unpacked with shape "
            f"{tuple(found.shape)} on {found.device}; the hooks of torch.autograd.graph.saved_tensors_hooks are to "
            "return what they were given"
        )


def as_tensor(numbers: Any) -> Tensor:
    """What a backend keeps, as a tensor of the same memory."""
    return numbers if isinstance(numbers, Tensor) else torch.from_numpy(numbers)


def _pull_back_followed(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    has_residual: bool,
    call: Call,
    params: Sequence[Tensor],
    versions: Sequence[int],
) -> list[Tensor | None]:
    """Gradients that have gradients themselves; without an activation the residual is not needed, and is None."""
    if _versions(call.running) != tuple(versions):  # the kernels have kept what they need of them
        raise RuntimeError(
            "running statistics that a second derivative needs were changed after the forward pass, by a "
            "forward pass in training; differentiate before that, or use a copy of the layer"
        )
    dx, to_residual, *grads = _pull_back_in_torch(
        dy, x, residual, call.recipe, params, call.running, call.eps, call.act
    )  # fmt: skip
    return [dx, dy if residual is None and has_residual else to_residual, *grads]


def _versions(running: tuple[Tensor, Tensor] | None) -> tuple[int, ...]:
    """How often each was changed in place; tensors made in inference mode do not count."""
    return () if running is None else tuple(0 if v.is_inference() else v._version for v in running)


def _run(
    x: Tensor, residual: Tensor | None, call: Call, *, lengths_fit: bool = False
) -> tuple[Tensor, stages.Cache]:  # fmt: skip
    """The forward pass; running statistics are updated in place. Of a layer's own tensors the lengths are checked."""
    recipe, update, averages = call.recipe, None, None
    if call.update is not None:
        update = _update(call)
        if recipe.entry.in_evaluation is not None:  # the instances' statistics, averaged
            update, averages = None, update
    try:
        y, kept = stages.forward(
            recipe, x, call.params, running=call.running, eps=call.eps, act=call.act, residual=residual, update=update,
            lengths_fit=lengths_fit, backend=call.backend,
        )  # fmt: skip
    except NoProgram:
        with use_backend("reference"):
            y, kept = stages.forward(
                recipe, x, call.params, running=call.running, eps=call.eps, act=call.act, residual=residual,
                update=update, lengths_fit=lengths_fit,
            )  # fmt: skip
    changed = update or averages
    if changed is not None:
        # kernels write where torch does not see it; tensors of inference mode have no count
        _torch.count_change([v for v in changed[:2] if not v.is_inference()])
    if averages is not None and kept.planes is not None:
        mean, var, count = kept.planes
        _update_averaged(averages, as_tensor(mean), as_tensor(var), count)
    return y, kept


def _transformed(x: Tensor, residual: Tensor | None, call: Call) -> Tensor:
    """The forward pass for a transform of `torch.func`, or forward-mode differentiation."""
    y, applied = differentiable.normalize(call.recipe, x, call.params, call.running, call.eps, call.act, residual)
    update = _update(call)
    if update is None or applied is None:
        return y
    with moving_statistics():
        if call.recipe.entry.in_evaluation is not None:
            mean, var = (v.value for v in applied.measured)
            _update_averaged(update, mean, var, applied.size)
        elif applied.moments.batch is not None:
            update_running(update[:2], applied.moments.batch, update[2])
    return y


@contextmanager
def moving_statistics() -> Iterator[None]:
    """What moves running statistics: without a gradient, and where a transform cannot, the error says what helps."""
    try:
        with torch.no_grad():
            yield
    except RuntimeError as error:
        if not is_transformed():
            raise
        raise RuntimeError(
            f"running statistics cannot be updated within this transform ({str(error).splitlines()[0]}); call .eval(), "
            "build the layer with track_running_stats=False, or give it buffers of its own (torch.func.functional_call)"
        ) from error


def _update(call: Call) -> tuple[Tensor, Tensor, Any] | None:
    """The running statistics to be updated, and the weight of the new ones."""
    if call.update is None:
        return None
    mean, var, momentum, seen = call.update
    if momentum is not None or seen is None:
        return mean, var, momentum
    # on a GPU the count stays a tensor: to read it is to wait for the device
    return mean, var, 1 / (seen.double() if seen.is_cuda else int(seen))


def _update_averaged(update: tuple[Tensor, Tensor, Any], mean: Tensor, var: Tensor, count: int) -> None:
    """Update with the average of the instances' statistics (N, C)."""
    device = update[0].device
    update_running(update[:2], (mean.mean(0).to(device), var.mean(0).to(device), count), update[2])


def _pull_back_in_torch(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    recipe: Recipe,
    params: Sequence[Tensor],
    running: tuple[Tensor, Tensor] | None,
    eps: float,
    act: Activation | None,
) -> list[Tensor | None]:
    """Gradients of x, residual and parameters, that have gradients themselves."""
    with torch.enable_grad():
        x, *rest = given = differentiable.views([x, *([] if residual is None else [residual]), *params])
        if residual is not None:
            residual = rest.pop(0)
        named = dict(zip(recipe.names, rest, strict=True))
        y, _ = differentiable.normalize(recipe, x, named, running, eps, act, residual)
    dx, *grads = differentiable.gradients(y, given, dy)
    return [dx, *([None] if residual is None else []), *grads]


# --- the operators ---------------------------------------------------------------------------------------------------


def _normalize(
    x: Tensor,
    residual: Tensor | None,
    params: Sequence[Tensor],
    running: Sequence[Tensor],
    seen: Tensor | None,
    norm: str,
    names: str,
    options: str,
    training: bool,
    eps: float,
    act: str,
    momentum: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = call_of(params, running, norm, names, options, training, eps, act)
    recipe = call.recipe
    fresh: Sequence[Tensor] = ()
    if running and training:
        fresh = [v.clone() for v in running]
        call.update = (fresh[0], fresh[1], momentum, seen)
    y, kept = _run(x, residual, call)
    is_empty = kept.saved is None  # an empty batch
    memory = _memory(recipe, x, kept.layout) if is_empty else as_tensor(kept.saved.memory)
    mean, var = fresh or (x.new_empty(0), x.new_empty(0))
    return y, memory, mean, var


def _shapes(
    x: Tensor,
    residual: Tensor | None,
    params: Sequence[Tensor],
    running: Sequence[Tensor],
    seen: Tensor | None,
    norm: str,
    names: str,
    options: str,
    training: bool,
    eps: float,
    act: str,
    momentum: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    recipe = recipe_of(norm, names, options, training)
    layout = Layout.of(x, recipe.entry.per_channel)
    mean, var = [torch.empty_like(v) for v in running] if running and training else (x.new_empty(0), x.new_empty(0))
    return _dense_like(x, layout), _memory(recipe, x, layout), mean, var


def _normalize_backward(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    params: Sequence[Tensor],
    running: Sequence[Tensor],
    memory: Tensor,
    norm: str,
    names: str,
    options: str,
    training: bool,
    eps: float,
    act: str,
) -> list[Tensor]:
    recipe = recipe_of(norm, names, options, training)
    named = dict(zip(recipe.names, params, strict=True))
    stands_in = (running[0], running[1]) if running else None
    with _serving(recipe, x):
        cache = stages.restored(
            recipe, x, named, stands_in, eps=eps, act=activation(act or None), residual=residual, memory=memory
        )
    dx, grads = stages.backward(dy, cache)
    return [dx, *(() if cache.to_residual is None else (cache.to_residual,)), *(_own(v) for v in grads.values())]


def _own(v: Tensor) -> Tensor:
    """The same numbers in memory of their own: an operator may not return rows of one tensor, and a backend may."""
    return v if v.untyped_storage().nbytes() == v.nbytes else v.clone()


def _shapes_backward(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    params: Sequence[Tensor],
    running: Sequence[Tensor],
    memory: Tensor,
    norm: str,
    names: str,
    options: str,
    training: bool,
    eps: float,
    act: str,
) -> list[Tensor]:
    layout = Layout.of(x, recipe_of(norm, names, options, training).entry.per_channel)
    count = 1 if residual is None else 2
    return [*(_dense_like(x, layout) for _ in range(count)), *(torch.empty_like(v) for v in params)]


def call_of(
    params: Sequence[Tensor],
    running: Sequence[Tensor],
    norm: str,
    names: str,
    options: str,
    training: bool,
    eps: float,
    act: str,
) -> Call:
    """The call that an operator's arguments describe; running statistics normalize where it does not train."""
    recipe = recipe_of(norm, names, options, training)
    fixed = (running[0], running[1]) if running and not training else None
    return Call(recipe, dict(zip(recipe.names, params, strict=True)), fixed, eps, activation(act or None))


def recipe_of(norm: str, names: str, options: str, training: bool) -> Recipe:
    """The recipe that an operator's arguments name."""
    return stages.recipe(norm, _options(norm, options), tuple(names.split()), training, not training)


@cache
def _options(norm: str, text: str) -> tuple[tuple[str, Any], ...]:
    try:
        found: tuple[tuple[str, Any], ...] = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise UsageError(
            f"norm {norm!r}: the options {text} cannot be compiled or exported; numbers, text and tuples of them can"
        ) from None
    return found


def _memory(recipe: Recipe, x: Tensor, layout: Layout) -> Tensor:
    """As much memory as the backend keeps for the backward pass."""
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    with _serving(recipe, x):
        return torch.empty(planes_for(x, recipe.entry).numbers(recipe, layout.sizes(x)), dtype=dtype, device=x.device)


def _serving(recipe: Recipe, x: Tensor) -> Any:
    """The reference backend, which serves anything, where no other does."""
    try:
        trace(recipe, 2, _torch.hint(x.shape[1]))
    except NoProgram:
        return use_backend("reference")
    return use_backend("reference") if x.is_meta else nullcontext()


def _dense_like(x: Tensor, layout: Layout) -> Tensor:
    return empty_like(x) if layout.channels_last else torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, params, running, _, norm, names, options, training, eps, act, _ = inputs
    _, memory, *rest = output
    ctx.mark_non_differentiable(memory, *rest)
    added = [residual] if residual is not None and act else []
    stands_in = [] if training else list(running)
    ctx.save_for_backward(x, memory, *added, *stands_in, *params)
    ctx.has_residual, ctx.counts = residual is not None, (len(added), len(stands_in), len(running))
    ctx.how = norm, names, options, training, eps, act


def _pull_back(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
    x, memory, *rest = ctx.saved_tensors
    added, stands_in, buffers = ctx.counts
    residual = rest[0] if added else None
    running, params = rest[added : added + stands_in], rest[added + stands_in :]
    grads: list[Tensor | None]
    if torch.is_grad_enabled():
        norm, names, options, training, eps, act = ctx.how
        recipe, fixed = recipe_of(norm, names, options, training), (running[0], running[1]) if running else None
        dx, to_residual, *grads = _pull_back_in_torch(
            dy, x, residual, recipe, params, fixed, eps, activation(act or None)
        )
    else:
        dx, *grads = OPERATOR_BACKWARD(dy, x, residual, params, running, memory, *ctx.how)
        to_residual = grads.pop(0) if added else None
    if not added and ctx.has_residual:
        to_residual = dy
    return (dx, to_residual, grads, [None] * buffers, None, *[None] * 7)


_tags = (torch.Tag.needs_exact_strides,) if hasattr(torch.Tag, "needs_exact_strides") else ()
OPERATOR: Any = library.custom_op("normlab::normalize", _normalize, mutates_args=(), tags=_tags)
OPERATOR.register_fake(_shapes)
OPERATOR_BACKWARD: Any = library.custom_op(
    "normlab::normalize_backward", _normalize_backward, mutates_args=(), tags=_tags
)
OPERATOR_BACKWARD.register_fake(_shapes_backward)
OPERATOR.register_autograd(_pull_back, setup_context=_save_context)
