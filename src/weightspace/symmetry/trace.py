"""Export a module and walk its graph.

The graph is that of `torch.export` after decomposition to core ATen, except that operations which are easier to read
whole (linear, convolution, attention, norms, pools) are kept.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from weightspace.net import WeightspaceError, math_attention
from weightspace.symmetry import index
from weightspace.symmetry.pretrained import answer_only, plain_experts
from weightspace.symmetry.rules import Call, Labels, Outcome, apply_rule, fresh, known

__all__ = ["Reading", "SymmetryError", "Trace", "follow", "trace"]

_KEEP = (
    "linear", "matmul", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "einsum", "bilinear", "scaled_dot_product_attention", "softmax", "log_softmax", "layer_norm", "rms_norm",
    "batch_norm", "group_norm", "instance_norm", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "glu", "leaky_relu", "pixel_shuffle",
    "pixel_unshuffle", "gelu", "silu", "hardswish", "softplus", "elu", "mish", "var", "std",
    "diag", "diag_embed", "channel_shuffle", "take_along_dim", "log_sigmoid", "prelu",
)  # fmt: skip


class SymmetryError(WeightspaceError):
    """A module whose symmetry cannot be read, or a move that would change the function."""


@dataclass
class Trace:
    """An exported graph: its nodes, and what every placeholder stands for.

    `sources[node]` is the name of a parameter or persistent buffer; `constants[node]` a tensor that no checkpoint
    holds; all other placeholders are inputs. `derived`: whether it has the derivatives of the module (None: not tried).
    `written`: names of tensors that a call changes, and what they become.
    `beside`: what a model hands out of its inside, and is no output here.
    """

    graph: fx.GraphModule
    sources: dict[fx.Node, str]
    constants: dict[fx.Node, Tensor]
    inputs: list[fx.Node]
    example: list[Any]
    low_precision: bool
    written: list[tuple[str, fx.Node]] = field(default_factory=list)
    beside: dict[str, list[fx.Node]] = field(default_factory=dict)
    derived: bool | None = None

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes in order of execution."""
        return list(self.graph.graph.nodes)

    def run(
        self,
        tensors: Mapping[str, Tensor],
        inputs: list[Tensor],
        watch: Callable[[fx.Node, Any], None] | None = None,
        lift: bool = True,
    ) -> list[Tensor]:
        """Evaluate the graph; `watch(node, value)` sees every value. `lift`: casts to lower precision are skipped."""
        out: list[Tensor] = []
        for node, _, (value,) in self.walk([tensors], inputs, lift):
            if node.op == "output":
                out = _tensors(value)
            elif watch is not None and node.op in ("placeholder", "call_function"):
                watch(node, value)
        return out

    def walk(
        self, points: Sequence[Mapping[str, Tensor]], inputs: list[Tensor], lift: bool = True
    ) -> Iterator[tuple[fx.Node, list[tuple[Any, ...]], list[Any]]]:
        """Evaluate the graph at several points at once: every node, its arguments and its values, one for each point.

        What is written into a value is what the nodes after it see.
        """
        given_inputs = sum(isinstance(node.meta.get("val"), Tensor) for node in self.inputs)
        if len(inputs) != given_inputs:
            raise SymmetryError(
                f"the graph was read with {given_inputs} input tensors, got {len(inputs)}; give as many"
            )
        feeds = [iter(inputs) for _ in points]
        wide = _widest(points[0], self.constants) if lift else None
        env: dict[fx.Node, list[Any]] = {}
        last = self._last_uses()
        look = [partial(lambda k, n: env[n][k], k) for k in range(len(points))]
        for node in self.nodes:
            given: list[tuple[Any, ...]] = [() for _ in points]
            if node.op == "placeholder":
                env[node] = [self._placeholder(node, t, feed) for t, feed in zip(points, feeds, strict=True)]
            elif node.op == "get_attr":
                env[node] = [_widened(operator.attrgetter(str(node.target))(self.graph), wide)] * len(points)
            elif node.op == "output":
                env[node] = [fx.map_arg(node.args[0], at) for at in look]
            else:
                both = [cast(Any, fx.map_arg)((node.args, node.kwargs), at) for at in look]
                given = [args for args, _ in both]
                env[node] = [evaluate(node, args, kwargs, wide) for args, kwargs in both]
            yield node, given, env[node]
            for used in last.get(node, []):
                env.pop(used, None)

    def _placeholder(self, node: fx.Node, tensors: Mapping[str, Tensor], values: Iterator[Tensor]) -> Any:
        if node in self.sources:
            return tensors[self.sources[node]]
        if node in self.constants:
            reference = next((t for t in tensors.values() if t.is_floating_point()), None)
            constant = self.constants[node]
            return constant.to(reference.dtype) if reference is not None and constant.is_floating_point() else constant
        value = node.meta.get("val")
        return next(values) if isinstance(value, Tensor) else value

    def _last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        seen: set[fx.Node] = set()
        last: dict[fx.Node, list[fx.Node]] = {}
        for node in reversed(self.nodes):
            for used in node.all_input_nodes:
                if used not in seen:
                    seen.add(used)
                    last.setdefault(node, []).append(used)
        return last


def _widest(tensors: Mapping[str, Tensor], constants: Mapping[fx.Node, Tensor]) -> torch.dtype:
    """The precision that a lifted run keeps: that of the point itself."""
    found = (t.dtype for t in (*tensors.values(), *constants.values()) if t.is_floating_point())
    return next(found, torch.float64)


def _widened(value: Any, wide: torch.dtype | None) -> Any:
    """A floating-point tensor or dtype below the precision `wide` in that precision."""
    dtype = value.dtype if isinstance(value, Tensor) else value
    if wide is None or not isinstance(dtype, torch.dtype) or not (dtype.is_floating_point or dtype.is_complex):
        return value
    target = wide.to_complex() if dtype.is_complex else wide
    if torch.finfo(dtype).bits >= torch.finfo(target).bits:
        return value
    return value.to(target) if isinstance(value, Tensor) else target


def evaluate(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], wide: torch.dtype | None) -> Any:
    """The value of one node. `wide`: a precision below which nothing is cast or made; None: as the graph says.

    Raises `SymmetryError`, naming the operation, where torch cannot do it.
    """
    name = op_name(node)
    if wide is not None and name == "batch_norm":
        return _batch_norm(*args, **kwargs)
    if wide is not None and name == "_native_batch_norm_legit_no_training":
        return _batch_norm(*args[:5], False, *args[5:]), args[0].new_empty(0), args[0].new_empty(0)
    if wide is not None and name in ("_to_copy", "to") and isinstance(args[0], Tensor) and args[0].is_floating_point():
        wanted = kwargs.get("dtype") or next((a for a in args[1:] if isinstance(a, torch.dtype)), None)
        if wanted is not None and wanted.is_floating_point:
            return args[0]
    if name == "_assert_tensor_metadata":
        return None
    if name == "copy":  # has no derivative of its own
        return args[1].to(args[0].dtype).expand(args[0].shape)
    if not callable(node.target):
        raise SymmetryError(f"cannot evaluate {node.target}")
    if node.target is not torch.ops.aten.view.dtype:
        args = tuple(_widened(a, wide) if isinstance(a, torch.dtype) else a for a in args)
        kwargs = {k: _widened(v, wide) if isinstance(v, torch.dtype) else v for k, v in kwargs.items()}
    try:
        return node.target(*args, **kwargs)
    except (RuntimeError, NotImplementedError, IndexError, TypeError) as error:
        raise SymmetryError(f"{name} cannot be evaluated ({first_line(error)})") from error


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, *rest: Any, **named: Any
) -> Tensor:
    """In arithmetic, because the derivative of the fused one with respect to the statistics is silently zero."""
    eps = named.get("eps", rest[2] if len(rest) > 2 else 1e-5)
    if mean is None or var is None or (rest and rest[0] is True):
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias, True, 0.0, eps)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    out = (x - mean.view(shape)) * (var.view(shape) + eps).rsqrt()
    out = out if weight is None else out * weight.view(shape)
    return out if bias is None else out + bias.view(shape)


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, (list, tuple)):
        return [t for item in tree for t in _tensors(item)]
    return []


def op_name(node: fx.Node) -> str:
    """`aten.add.Tensor` -> "add"."""
    packet = getattr(node.target, "_overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", str(node.target))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what export prints and logs; its exceptions speak for themselves."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def first_line(error: BaseException) -> str:
    """The first line of what an error of torch says, in 200 letters."""
    text = next((text for text in str(error).splitlines() if text.strip()), type(error).__name__)
    return text.strip()[:200]


@contextlib.contextmanager
def own_state(dtype: torch.dtype) -> Iterator[None]:
    """Torch as reading needs it, whatever the caller has set: gradients on, no autocast, `dtype` the default one."""
    before = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type == "meta":
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as positional and keyword arguments of the module."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def input_tensors(example: Any) -> list[Tensor]:
    """The tensors among the arguments, nested ones too, in order: what a graph is run on."""
    return [t for t in pytree.tree_leaves(arguments(example)) if isinstance(t, Tensor)]


def trace(module: nn.Module, example: Any) -> Trace:
    """Export `module` on one example; raises `SymmetryError` where export cannot follow the code."""
    args, kwargs = arguments(example)
    with quiet(), torch.no_grad(), math_attention(), plain_experts(module):
        try:
            exported = torch.export.export(module, args, kwargs, strict=False)
            if _needs_decomposition(exported.graph):
                exported = exported.run_decompositions(_table())
            if left := [op_name(node) for node in exported.graph.nodes if _of_functorch(node)]:
                raise SymmetryError(f"the graph holds {left[0]}, of torch.func, which cannot be followed")
        except Exception as error:
            raise SymmetryError(_export_failure(module, error)) from error
    return _wrap(exported, module)


def _table() -> Any:
    table = torch.export.default_decompositions()
    for key in list(table):
        if str(getattr(key, "_overloadpacket", key)).rpartition(".")[2] in _KEEP:
            del table[key]
    return table


def _needs_decomposition(graph: fx.Graph) -> bool:
    """A graph of known, functional operations is read as it is."""
    for node in graph.nodes:
        if node.op == "get_attr":
            return True
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        name, tags = op_name(node), getattr(node.target, "tags", ())
        if not isinstance(node.target, torch._ops.OpOverload):
            if isinstance(node.target, torch._ops.HigherOrderOperator) or _of_functorch(node):
                return True
            continue
        familiar = known(name) or torch.Tag.pointwise in tags or name in _SILENT
        if not familiar or node.target._schema.is_mutable or (name == "batch_norm" and node.args[5] is True):
            return True
    return False


def _of_functorch(node: fx.Node) -> bool:
    """Whether it opens, closes or feeds a level of vmap or grad: half a graph of these would leave torch inside."""
    return "functorch" in str(getattr(node.target, "__module__", ""))


def _export_failure(module: nn.Module, error: Exception) -> str:
    return (
        f"{type(module).__name__} cannot be exported ({type(error).__name__}: {first_line(error)}); check that the "
        "example is an input of this module and that its control flow does not depend on data"
    )


def _wrap(exported: Any, module: nn.Module) -> Trace:
    canonical = _canonical_names(module)
    transient = {
        f"{prefix}{'.' if prefix else ''}{name}"
        for prefix, child in module.named_modules(remove_duplicate=False)
        for name in child._non_persistent_buffers_set
    }
    kinds = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    sources, constants, inputs = {}, {}, []
    for node in exported.graph.nodes:
        if node.op != "placeholder":
            continue
        spec = kinds[node.name]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target not in transient:
            sources[node] = canonical.get(spec.target, spec.target)
        elif spec.kind == InputKind.BUFFER:
            constants[node] = dict(module.named_buffers(remove_duplicate=False))[spec.target]
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            constants[node] = exported.constants[spec.target]
        else:
            inputs.append(node)
    example = [n.meta["val"] for n in inputs]
    low = any(
        isinstance(v, Tensor) and v.dtype in (torch.float32, torch.float16, torch.bfloat16)
        for n in exported.graph.nodes
        for v in [n.meta.get("val")]
    )
    beside = answer_only(exported)
    return Trace(exported.graph_module, sources, constants, inputs, example, low, _written(exported, canonical), beside)


def _written(exported: Any, canonical: Mapping[str, str]) -> list[tuple[str, fx.Node]]:
    nodes = {node.name: node for node in exported.graph.nodes}
    return [
        (canonical.get(spec.target, spec.target), nodes[spec.arg.name])
        for spec in exported.graph_signature.output_specs
        if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)
    ]


def _canonical_names(module: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    pairs = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in pairs}


# --- following axes --------------------------------------------------------------------------------------------------

_SILENT = {
    "_assert_tensor_metadata",
    "_assert_async",
    "_assert_scalar",
    "sym_constrain_range_for_size",
    "sym_size",
}


_TURNS = ("_to_copy", "to", "clone", "alias", "detach", "t", "numpy_T", "mT", "transpose", "permute", "view",
          "unsqueeze", "expand")  # fmt: skip


_LISTED = 4096


@dataclass
class Reading:
    """Labels of every tensor in the graph. `named`: parameters and buffers; `all`: every tensor, hidden ones too."""

    named: dict[str, Labels]
    values: dict[fx.Node, Outcome | None]
    all: list[Labels] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def follow(graph: Trace, outputs_move: bool = False) -> Reading:
    """Carry labels from the placeholders to the outputs."""
    needed = live(graph)
    reading = Reading({}, {})
    for node in graph.nodes:
        if node not in needed and node.op != "output":
            continue
        if node.op == "placeholder":
            reading.values[node] = _placeholder(graph, node, reading)
        elif node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(graph.graph)
            reading.values[node] = constant_labels(value) if isinstance(value, Tensor) else None
        elif node.op == "call_function":
            reading.values[node] = _call(node, reading, needed)
        elif node.op == "output":
            _join_written(graph, reading)
            if not outputs_move:
                _pin_outputs(node, reading)
    for value in reading.values.values():
        items = value if isinstance(value, tuple) else (value,)
        reading.all += [item.full for item in items if item is not None]
    reading.notes += [
        f"{name} is handed out beside the logits and no output: it is renumbered with the axes it holds"
        for name, nodes in graph.beside.items()
        if any(_moves(reading.values.get(node)) for node in nodes)
    ]
    return reading


def _moves(value: Outcome | None) -> bool:
    held = [labels for labels in (value if isinstance(value, tuple) else (value,)) if labels is not None]
    return any(leaf.pin is None for labels in held if 0 not in labels.shape for leaf in index.leaves(labels.dims))


def live(graph: Trace) -> set[fx.Node]:
    """The nodes that an output depends on."""
    found: set[fx.Node] = set()
    todo = [node for node in graph.nodes if node.op == "output"]
    while todo:
        for used in todo.pop().all_input_nodes:
            if used not in found:
                found.add(used)
                todo.append(used)
    return found


def masks(graph: Trace, state: Collection[str]) -> set[str]:
    """Tensors among `state` that are multiplied into a parameter, entry by entry: they say which entries are there."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op == "call_function" and op_name(node) in ("mul", "mul_"):
            met = [_stored(graph, arg) for arg in node.args[:2]]
            names = [name for name in met if name is not None]
            if len(names) == 2 and sum(name in state for name in names) == 1:
                found |= {name for name in names if name in state}
    return found


def shifts(graph: Trace) -> set[str]:
    """Tensors of the point that are added to something: biases."""
    found: set[str | None] = set()
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        adds = op_name(node) in ("add", "sub", "add_", "sub_", "addmm", "rsub")
        for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
            if argument.name == "bias" or (adds and argument.name in ("self", "other")):
                found.add(_stored(graph, value))
    return {name for name in found if name is not None}


def _stored(graph: Trace, node: Any) -> str | None:
    """The tensor of the point that a node is, cast or turned."""
    while isinstance(node, fx.Node) and node.op == "call_function" and op_name(node) in _TURNS:
        node = node.args[0]
    return graph.sources.get(node) if isinstance(node, fx.Node) else None


def used_outputs(node: fx.Node, needed: Collection[fx.Node]) -> set[int]:
    """Which of several outputs the needed nodes take."""
    return {int(u.args[1]) for u in node.users if u.target is operator.getitem and u in needed}  # type: ignore[arg-type]


def _shape(value: Any) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in value.shape)
    except Exception as error:  # sizes that only the data decide cannot be numbers
        raise SymmetryError(
            f"a size in the graph depends on the data ({tuple(map(str, value.shape))}), as after x[mask] or nonzero; "
            "such a module cannot be read"
        ) from error


def _placeholder(graph: Trace, node: fx.Node, reading: Reading) -> Labels | None:
    value = node.meta.get("val")
    if node in graph.constants:
        return constant_labels(graph.constants[node])
    if not isinstance(value, Tensor):
        return None
    if node not in graph.sources:
        return Labels([index.dim(n, "input", foreign=True) for n in _shape(value)])
    name = graph.sources[node]
    if name not in reading.named:
        reading.named[name] = fresh(_shape(value))
    return reading.named[name]


def constant_labels(value: Tensor) -> Labels:
    """A constant is pinned along every dimension in which its entries differ."""
    listed = (
        value.dim() == 1 and not value.is_floating_point() and value.device.type != "meta" and len(value) <= _LISTED
    )
    numbers = tuple(int(n) for n in value) if listed else None
    if value.numel() <= 1:
        return Labels(fresh(_shape(value)).dims, uniform=True, numbers=numbers)
    if value.device.type == "meta":
        return Labels([index.dim(n, "constant", constant=True) for n in _shape(value)])
    dims = []
    for k in range(value.dim()):
        same = bool((value == value.narrow(k, 0, 1)).all())
        dims.append(index.dim(value.shape[k]) if same else index.dim(value.shape[k], "constant", constant=True))
    same = bool((value == value.flatten()[0]).all())
    return Labels(dims, same, flags=value.dtype == torch.bool, numbers=numbers)


def _join_written(graph: Trace, reading: Reading) -> None:
    """What a tensor becomes is indexed as it was."""
    for name, node in graph.written:
        labels, before = reading.values.get(node), reading.named.get(name)
        if isinstance(labels, Labels) and before is not None and labels.shape == before.shape and not labels.uniform:
            for d, e in zip(labels.dims, before.dims, strict=True):
                index.unify(d, e)


def _pin_outputs(node: fx.Node, reading: Reading) -> None:
    for used in node.all_input_nodes:
        value = reading.values.get(used)
        for labels in value if isinstance(value, tuple) else (value,):
            if labels is not None:
                for d in (*labels.dims, labels.points or []):
                    index.pin(d, "output")


def _call(node: fx.Node, reading: Reading, needed: set[fx.Node]) -> Outcome | None:
    name = op_name(node)
    meta = node.meta.get("val")
    shapes = [_shape(v) for v in (meta if isinstance(meta, (list, tuple)) else [meta]) if isinstance(v, Tensor)]
    if node.target is operator.getitem:
        source = reading.values.get(node.args[0])  # type: ignore[arg-type]
        return source[node.args[1]] if isinstance(source, tuple) else source  # type: ignore[index]
    if not shapes or name in _SILENT:
        return None
    overload = node.target if isinstance(node.target, torch._ops.OpOverload) else None
    used = used_outputs(node, needed)
    tags = overload.tags if overload is not None else []
    call = Call(
        name,
        _bind(node, overload, reading),
        shapes,
        used,
        torch.Tag.pointwise in tags,
        torch.Tag.reduction in tags,
    )
    outcome = apply_rule(call)
    if isinstance(outcome, Labels) and isinstance(meta, Tensor):
        outcome.flags = meta.dtype == torch.bool
    reading.all += call.hidden
    reading.notes += [note for note in call.notes if note not in reading.notes]
    _check(node, outcome, shapes)
    return outcome


def _bind(node: fx.Node, overload: Any, reading: Reading) -> dict[str, Any]:
    """Arguments by the names of the operator's schema, nodes replaced by their labels."""
    args, kwargs = cast(Any, fx.map_arg)((node.args, node.kwargs), reading.values.get)
    if overload is None:
        return {**{f"arg{i}": a for i, a in enumerate(args)}, **kwargs}
    names = [a.name for a in overload._schema.arguments]
    bound = dict(zip(names, args, strict=False))
    bound.update(kwargs)
    return bound


def _check(node: fx.Node, outcome: Outcome, shapes: list[tuple[int, ...]]) -> None:
    labels = outcome if isinstance(outcome, tuple) else (outcome,)
    for label, shape in zip(labels, shapes, strict=False):
        if label is not None and label.shape != shape:
            raise SymmetryError(
                f"the rule of {op_name(node)} gives shape {label.shape} where the graph has {shape}; please report it"
            )
