"""The additions and activations that follow a norm, taken into the norm's own pass over memory, in anybody's model.

Where nobody else sees what lies between, y = act(norm(x) + residual) is one call of the norm. torch.fx follows the
forward pass of one module at a time, down to the calls of its parts, and the module gets a *shortcut*: that forward
pass with such calls in it. It stays the module that it was in all else, an object of a subclass of its class
(`normlab.layers.recasting`) with the same parts, names and methods; and the shortcut is left wherever it might differ
from the module's own forward pass: other arguments than it was made for, a hook on something that it passes by, parts
or attributes that have changed since.
"""

from __future__ import annotations

import copy
import logging
import operator
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, fx, nn

from normlab.errors import UsageError
from normlab.kernels.activations import Activation
from normlab.layers import adapters, checks
from normlab.layers._torch import tree_leaves, tree_map
from normlab.layers.acting import activation_called, activation_of, in_torch, is_passive, is_watched
from normlab.layers.images import first_line, given_to
from normlab.layers.modes import in_mode
from normlab.layers.norms import takes_act
from normlab.layers.recasting import Recast, recast, undo, without_mixin
from normlab.layers.state import Memory, contents
from normlab.layers.swap import swap_report, take

Model = TypeVar("Model", bound=nn.Module)

_log = logging.getLogger(__name__)


def fuse_norms(model: Model, *example: Any, **keywords: Any) -> Model:
    """A model with its norms swapped, and the additions and activations that follow them inside: a module to train.

        fused = normlab.fuse_norms(model, torch.randn(2, 3, 224, 224))
        fused(images)  # what model(images) returns

    Where nobody else sees what lies between, y = act(norm(x) + residual) becomes one call; act is one of
    `normlab.kernels.activations`. The result is a copy of the model on the model's own parameters: of its class, with
    its attributes, methods and `state_dict` keys, with buffers and hooks of its own; the model itself stays what it
    was. What torch.fx cannot follow (control flow) keeps its own forward pass, with its norms swapped. `example` and
    `keywords` are inputs such as the model gets; both are run on them in evaluation mode, and must agree.
    `swap_report(fused)` lists what was taken, fused and left, and why.

    Raises UsageError if it is no module, does not take the example, cannot be copied, or if the two do not agree. Warns
    if no norm was taken.
    """
    checks.module("fuse_norms", model)
    expected = _evaluate(model, example, keywords)
    fused = _copied(model)
    for module in list(fused.modules()):
        straighten(module)
        take(module)
    for module, inputs in _count_inputs(fused, example, keywords).items():
        _shorten(module, inputs)
    _compare(_evaluate(fused, example, keywords), expected)
    report = swap_report(fused)
    if not report.taken:
        warnings.warn(f"fuse_norms: no layer was taken. {report}", stacklevel=2)
    return fused


# --- the module with a shortcut --------------------------------------------------------------------------------------


class Spot(NamedTuple):
    """A norm that takes in what follows it, and what that is."""

    norm: str
    act: Activation | None
    act_module: str | None
    has_residual: bool

    def __str__(self) -> str:
        return " + ".join([*(["addition"] if self.has_residual else []), *([str(self.act)] if self.act else [])])


class Shortcut(NamedTuple):
    """A module's forward pass in one mode."""

    run: Callable[..., Any]
    spots: tuple[Spot, ...]
    passed: tuple[str, ...]  # identities that are left out
    parts: tuple[str, ...]  # names of the module's parts
    contents: dict[str, list[Any]]  # of its lists, dicts and the like

    def fits(self, module: nn.Module) -> bool:
        """Whether the module and what is passed by are as they were, and nobody watches."""
        return (
            tuple(module._modules) == self.parts
            and (not self.contents or contents(module) == self.contents)
            and all(is_passive(_part(module, name)) for name in self.passed)
            and all(_is_ready(module, spot) for spot in self.spots)
        )


class Fused(Recast):
    """A module that takes a shortcut."""

    _inputs: int
    training: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self
        shortcut = vars(module).get("_shortcuts", {}).get(module.training)
        if (
            shortcut is None
            or kwargs
            or len(args) != self._inputs
            or not all(isinstance(v, Tensor) for v in args)
            or not (torch.compiler.is_compiling() or shortcut.fits(module))
        ):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        return shortcut.run(module, *args)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        is_replaced = isinstance(value, Tensor | nn.Module) and name not in vars(self)
        if name != "training" and not name.startswith("_") and not is_replaced:
            _cut(self)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_shortcuts"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        _cut(self)  # type: ignore[arg-type]


def _shorten(module: nn.Module, inputs: int) -> bool:
    """Give a module a shortcut for that many tensors, if there is one."""
    if not _shortcuts(module, inputs):
        return False
    recast(module, Fused)
    vars(module)["_inputs"] = inputs
    _cut(module)
    return True


def straighten(module: nn.Module) -> None:
    """Leave a module without a shortcut, as it was before it had one."""
    if isinstance(module, Fused):
        held: Any = module
        for name in ("_inputs", "_shortcuts", "_fused_spots"):
            vars(held).pop(name, None)
        undo(held, Fused)


def _cut(module: nn.Module) -> None:
    """Make a module's shortcuts anew."""
    found = _shortcuts(module, vars(module)["_inputs"])
    vars(module)["_shortcuts"] = found
    spots = [spot for shortcut in found.values() for spot in shortcut.spots]
    vars(module)["_fused_spots"] = {spot.norm: str(spot) for spot in spots}


def _is_ready(module: nn.Module, spot: Spot) -> bool:
    norm = _part(module, spot.norm)
    if not _is_fusible(norm):
        return False
    return spot.act_module is None or activation_of(_part(module, spot.act_module)) == spot.act


def _is_fusible(layer: nn.Module) -> bool:
    """Whether a layer can be made to apply an activation, and a residual before it, and nobody would miss them."""
    return (takes_act(layer) or adapters.takes_act_too(layer)) and not is_watched(layer)


def _part(module: nn.Module, name: str) -> Any:
    part: Any = module
    for step in name.split("."):
        part = part._modules.get(step)
        if part is None:
            return None
    return part


def _apply_fused(layer: Any, x: Tensor, residual: Any, act: Activation | None, in_place: bool) -> Any:
    """act(layer(x) + residual), in one pass where the residual has the output's form."""
    if residual is None:
        return layer(x, act=act)
    if isinstance(residual, Tensor) and residual.shape == x.shape and residual.dtype == x.dtype:
        return layer(x, residual=residual, act=act)
    y = layer(x)
    y = y.add_(residual) if in_place else y + residual
    return y if act is None else in_torch(act)(y)


# --- following -------------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Follows one module's forward pass, given that many tensors, down to the calls of its parts."""

    proxy_buffer_attributes = True  # a buffer that the forward pass changes changes in every call

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.inputs, self.settings = inputs, _settings()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        if _settings() != self.settings:
            raise fx.proxy.TraceError("gradients, inference mode or autocast are switched in the forward pass")
        return super().create_proxy(*args, **kwargs)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        names = [f"input_{i}" for i in range(self.inputs)]
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]


_DEVICES = ("cpu", "cuda")
_following = RLock()  # torch.fx changes nn.Module while it follows a forward pass


def _settings() -> tuple[Any, ...]:
    """What `with` may have put around a call, which no graph shows."""
    autocast = ((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _DEVICES)
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


@contextmanager
def _set(plain: bool) -> Iterator[None]:
    """With gradients and nothing else; or in inference mode, with autocast to a dtype that nobody uses."""
    before = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _DEVICES]
    with torch.inference_mode(not plain), torch.set_grad_enabled(plain):
        try:
            for device, _, dtype in before:
                torch.set_autocast_enabled(device, not plain)
                torch.set_autocast_dtype(device, dtype if plain else torch.float64)
            yield
        finally:
            for device, enabled, dtype in before:
                torch.set_autocast_enabled(device, enabled)
                torch.set_autocast_dtype(device, dtype)


def _shortcuts(module: nn.Module, inputs: int) -> dict[bool, Shortcut]:
    """A module's shortcuts in training and in evaluation, where there are any; why there are none is logged."""
    found = {}
    for training in (True, False):
        graph = _follow(module, inputs, training)
        if isinstance(graph, str):
            _log.info("fuse_norms: %s keeps its own forward pass: %s", type(module).__name__, graph)
            continue
        shortcut = _find_shortcut(module, graph)
        if shortcut is not None:
            found[training] = shortcut
    return found


def _follow(module: nn.Module, inputs: int, training: bool) -> fx.Graph | str:
    """The forward pass of a module in one mode; or why it is more than its operations on its inputs."""
    graphs = []
    for plain in (True, False):
        graph = _follow_once(module, inputs, training, plain)
        if isinstance(graph, str):
            return graph
        graphs.append(graph)
    first, second = ([(n.op, n.target, repr((n.args, n.kwargs))) for n in graph.nodes] for graph in graphs)
    return graphs[0] if first == second else "it asks whether gradients, inference mode or autocast are on"


def _follow_once(module: nn.Module, inputs: int, training: bool, plain: bool) -> fx.Graph | str:
    kept = torch.get_rng_state(), random.getstate()
    with _following, in_mode(module, training), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        memory = Memory(module)
        try:
            with without_mixin(module, Fused), _set(plain):
                graph = _Tracer(inputs).trace(module)
        except Exception as error:
            return first_line(error)
        finally:
            changed = memory.changed()
            if changed:
                memory.put_back()
    if not torch.equal(torch.get_rng_state(), kept[0]) or random.getstate() != kept[1]:
        torch.set_rng_state(kept[0])
        random.setstate(kept[1])
        return "it draws random numbers"
    if changed:
        return "it changes what the module holds"
    constants = any(n.op == "get_attr" and str(n.target).startswith("_tensor_constant") for n in graph.nodes)
    return "it computes with tensors that are not in the graph" if constants else graph


def _count_inputs(model: nn.Module, example: tuple[Any, ...], keywords: dict[str, Any]) -> dict[nn.Module, int]:
    """{part that calls norms itself: with how many tensors it is called}, where that is all it is called with."""
    calls: dict[nn.Module, set[int]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        plain = not kwargs and all(isinstance(v, Tensor) for v in args)
        calls.setdefault(module, set()).add(len(args) if plain else -1)

    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in model.modules() if _holds_norms(m)]
    try:
        _evaluate(model, example, keywords)
    finally:
        for handle in handles:
            handle.remove()
    return {module: next(iter(counts)) for module, counts in calls.items() if len(counts) == 1 and -1 not in counts}


def _holds_norms(module: nn.Module) -> bool:
    """Whether a module may call a norm itself: one that it holds, or that a list of its holds."""
    return not isinstance(module, torch.jit.ScriptModule | nn.ModuleList | nn.ModuleDict) and any(
        _is_fusible(part) for part in _iterate_parts(module)
    )


def _iterate_parts(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.children():
        yield from _iterate_parts(part) if isinstance(part, nn.ModuleList | nn.ModuleDict) else (part,)


# --- finding ---------------------------------------------------------------------------------------------------------

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_IN_PLACE = (operator.iadd, "add_")


def _find_shortcut(module: nn.Module, graph: fx.Graph) -> Shortcut | None:
    """A forward pass with what follows norms inside of them; None where nothing does."""
    passed = [str(node.target) for node in list(graph.nodes) if _skip_identity(module, node)]
    spots = [spot for node in list(graph.nodes) if (spot := _fuse(module, graph, node)) is not None]
    if not spots:
        return None
    graph.lint()
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, f"<normlab: {type(module).__name__} fused>", "exec"), names)
    return Shortcut(names["forward"], tuple(spots), tuple(passed), tuple(module._modules), contents(module))


def _skip_identity(module: nn.Module, node: fx.Node) -> bool:
    """Leave out an identity, which stands for something that was switched off and may stand behind a norm."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    if not is_passive(_part(module, str(node.target))):
        return False
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    node.graph.erase_node(node)
    return True


def _fuse(module: nn.Module, graph: fx.Graph, node: fx.Node) -> Spot | None:
    """Take the addition and the activation behind a norm into it."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return None
    layer = _part(module, str(node.target))
    if not _is_fusible(layer):
        return None
    addition = _find_addition(node)
    residual = None if addition is None else next(v for v in addition.args if v is not node)
    act_node, act = _activation_behind(module, addition or node)
    last = act_node or addition
    if last is None or _may_change(node.args[0], node, last, addition):
        return None
    in_place = addition is not None and addition.target in _IN_PLACE
    with graph.inserting_before(last):
        held = graph.create_node("get_attr", str(node.target))
        call = graph.call_function(_apply_fused, (held, node.args[0], residual, act, in_place))
    last.replace_all_uses_with(call)
    act_module = str(act_node.target) if act_node is not None and act_node.op == "call_module" else None
    for gone in (act_node, addition, node):
        if gone is not None:
            graph.erase_node(gone)
    return Spot(str(node.target), act, act_module, addition is not None)


def _may_change(x: fx.Node, norm: fx.Node, last: fx.Node, addition: fx.Node | None) -> bool:
    """Whether anything between a norm and what it takes in could change the norm's input."""
    between: set[fx.Node] = set()
    node = norm.next
    while node is not last:
        between.add(node)
        node = node.next
    return bool((between - {addition}) & x.users.keys())


def _find_addition(node: fx.Node) -> fx.Node | None:
    """The addition of another tensor, if nothing else becomes of a node."""
    user = _only_user(node)
    if user is None or user.target not in _ADDITIONS or user.kwargs or len(user.args) != 2:
        return None
    others = [v for v in user.args if v is not node]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or others[0].op == "get_attr":  # of its own shape
        return None
    if user.target in _IN_PLACE and user.args[0] is not node:  # somebody else's tensor changes
        return None
    return user


def _activation_behind(module: nn.Module, node: fx.Node) -> tuple[fx.Node | None, Activation | None]:
    """The activation, if nothing else becomes of a node, and what it is."""
    user = _only_user(node)
    if user is None or user.args[:1] != (node,):
        return None, None
    if user.op == "call_module":
        act = activation_of(_part(module, str(user.target))) if len(user.args) == 1 and not user.kwargs else None
    else:
        act = activation_called(user)
    return (None, None) if act is None else (user, act)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


# --- copying and comparing -------------------------------------------------------------------------------------------


def _copied(model: Model) -> Model:
    """A copy on the same parameters, with buffers and tables of its own; hooks call the same functions."""
    own = set(model.modules())
    memo: dict[int, Any] = {}
    for module in own:
        held = [v for v in vars(module).values() if isinstance(v, Tensor) and not v.is_leaf]
        for shared in (*module._parameters.values(), *held):
            if shared is not None:
                memo[id(shared)] = shared
        for name, hooks in vars(module).items():
            if name.endswith("_hooks") and isinstance(hooks, dict):
                memo.update({id(h): h for h in hooks.values() if getattr(h, "__self__", None) not in own})
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise UsageError(
            f"fuse_norms: {type(model).__name__} cannot be copied ({first_line(error)}); use swap_norms"
        ) from error


def _evaluate(model: nn.Module, example: tuple[Any, ...], keywords: dict[str, Any]) -> list[Tensor]:
    """The tensors that a model returns in evaluation mode."""
    given, named = _clone_inputs((example, keywords))
    with in_mode(model, False), torch.no_grad(), given_to(model, "fuse_norms", "the example"):
        returned = model(*given, **named)
    return [v for v in _leaves(returned) if isinstance(v, Tensor)]


def _leaves(returned: Any) -> list[Any]:
    """What a model returned, flat: the values of mappings and of objects that are like them included."""
    if isinstance(returned, dict):
        return [leaf for v in returned.values() for leaf in _leaves(v)]
    if isinstance(returned, tuple | list):
        return [leaf for v in returned for leaf in _leaves(v)]
    return tree_leaves(returned)


def _clone_inputs(inputs: Any) -> Any:
    """Inputs that a model may change."""
    return tree_map(lambda v: v.clone() if isinstance(v, Tensor) else copy.copy(v), inputs)


_SINGLE = float(torch.finfo(torch.float32).eps)


def _compare(got: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        if theirs.is_meta:  # without numbers
            continue
        error = float((ours.double() - theirs.double()).abs().max()) if theirs.numel() else 0.0
        # parts of a model in float64 may compute in float32, as most RMS norms do
        bound = max(float(torch.finfo(theirs.dtype).eps), _SINGLE) ** 0.5 if theirs.is_floating_point() else 0.0
        if not error <= bound * (1 + float(theirs.abs().max()) if theirs.numel() else 1):
            raise UsageError(
                f"fuse_norms: on the example the fused model is off by {error:.2g}; a layer's input or output may be "
                "changed in place by somebody else, or depend on chance: use swap_norms"
            )
