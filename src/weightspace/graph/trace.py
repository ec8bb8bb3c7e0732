"""Export a module to a graph, and evaluate the graph node by node.

The graph is that of `torch.export` after decomposition to core ATen, except that operations which are easier to read
whole (linear, convolution, attention, norms, pools) are kept.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from weightspace.graph.pretrained import answer_only, keeps_cache, plain_experts
from weightspace.graph.rules import known
from weightspace.net.errors import SymmetryError, first_line
from weightspace.net.inputs import arguments
from weightspace.net.state import exclusive, math_attention

__all__ = ["Trace", "trace"]


_KEEP = (
    "linear", "matmul", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "einsum", "bilinear", "scaled_dot_product_attention", "softmax", "log_softmax", "layer_norm", "rms_norm",
    "batch_norm", "group_norm", "instance_norm", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "glu", "leaky_relu", "pixel_shuffle",
    "pixel_unshuffle", "gelu", "silu", "hardswish", "softplus", "elu", "mish", "var", "std",
    "diag", "diag_embed", "channel_shuffle", "take_along_dim", "log_sigmoid", "prelu",
)  # fmt: skip


@dataclass
class Trace:
    """An exported graph, and what each of its placeholders stands for.

    `sources[node]` is the name of a parameter or persistent buffer; `constants[node]` a tensor that is not in a
    checkpoint; all other placeholders are inputs. `derived`: whether it has the derivatives of the module (None: not
    checked yet). `written`: names of tensors that a call changes, and the nodes of their new values. `beside`: internal
    values that the model returns (hidden states, caches), which are not outputs here.
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
        """Evaluate the graph; `watch(node, value)` is called for every value. `lift`: skip casts to lower precision."""
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
        """Evaluate the graph with several sets of weights at once, yielding (node, its arguments, its values).

        Arguments and values are lists, one entry for each set. Later nodes see a value as it is after changes in place.
        Weights are looked up for every use and not kept: a mapping may compute them then.
        """
        given_inputs = sum(isinstance(node.meta.get("val"), Tensor) for node in self.inputs)
        if len(inputs) != given_inputs:
            raise SymmetryError(
                f"the graph was read with {given_inputs} input tensors, got {len(inputs)}; give as many"
            )
        feeds = [iter(inputs) for _ in points]
        wide = _widest(points[0], self.constants) if lift else None
        dtype = next((t.dtype for t in points[0].values() if t.is_floating_point()), None)
        env: dict[fx.Node, list[Any]] = {}
        last = self._last_uses()
        names = self.sources
        look = [partial(lambda k, n: points[k][names[n]] if n in names else env[n][k], k) for k in range(len(points))]
        for node in self.nodes:
            given: list[tuple[Any, ...]] = [() for _ in points]
            if node in names:
                yield node, given, [tensors[names[node]] for tensors in points]
                continue
            if node.op == "placeholder":
                env[node] = [self._placeholder(node, feed, dtype) for feed in feeds]
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

    def _placeholder(self, node: fx.Node, values: Iterator[Tensor], dtype: torch.dtype | None) -> Any:
        if node in self.constants:
            constant = self.constants[node]
            return constant.to(dtype) if dtype is not None and constant.is_floating_point() else constant
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
    """The precision kept in a lifted run: that of the weights."""
    found = (t.dtype for t in (*tensors.values(), *constants.values()) if t.is_floating_point())
    return next(found, torch.float64)


def _widened(value: Any, wide: torch.dtype | None) -> Any:
    """A floating-point tensor or dtype, raised to the precision `wide` where it is lower."""
    dtype = value.dtype if isinstance(value, Tensor) else value
    if wide is None or not isinstance(dtype, torch.dtype) or not (dtype.is_floating_point or dtype.is_complex):
        return value
    target = wide.to_complex() if dtype.is_complex else wide
    if torch.finfo(dtype).bits >= torch.finfo(target).bits:
        return value
    return value.to(target) if isinstance(value, Tensor) else target


def evaluate(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], wide: torch.dtype | None) -> Any:
    """The value of one node. `wide`: the lowest precision that is cast to or created; None: as in the graph.

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
    """Batch norm in plain arithmetic: the fused one has a zero derivative in the running statistics, without a word."""
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
    """A context that silences what export prints and logs; exceptions pass. One thread at a time."""
    with exclusive():
        handle = logging.Logger.handle
        logging.Logger.handle = _dropped  # type: ignore[method-assign] # logging.disable goes through all loggers
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.Logger.handle = handle  # type: ignore[method-assign]


def _dropped(self: logging.Logger, record: logging.LogRecord) -> None:
    """What is logged, to no handler."""


@contextlib.contextmanager
def _unplaced() -> Iterator[None]:
    """A context in which nodes are exported without the call stack as text; only within `quiet`."""
    config: Any = fx.config
    before = getattr(config, "do_not_emit_stack_traces", False)  # of newer versions of torch
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


def trace(module: nn.Module, example: Any) -> Trace:
    """Export `module` on one example; raises `SymmetryError` where export cannot follow the code."""
    args, kwargs = arguments(example)
    with quiet(), _unplaced(), torch.no_grad(), math_attention(), plain_experts(module):
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
    """Whether a graph has operations that are not known, or change their arguments, so that it is decomposed."""
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
        familiar = known(name) or torch.Tag.pointwise in tags or name in SILENT
        if not familiar or node.target._schema.is_mutable or (name == "batch_norm" and node.args[5] is True):
            return True
    return False


def _of_functorch(node: fx.Node) -> bool:
    """Whether a node opens, closes or feeds a level of vmap or grad, which cannot be evaluated one by one."""
    return "functorch" in str(getattr(node.target, "__module__", ""))


def _export_failure(module: nn.Module, error: Exception) -> str:
    if keeps_cache(module) and "Cache'" in str(error):
        return (
            f"{type(module).__name__} returns its cache, which cannot be exported; set model.config.use_cache = False, "
            "or make the model of a configuration with use_cache=False"
        )
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

SILENT = {
    "_assert_tensor_metadata",
    "_assert_async",
    "_assert_scalar",
    "sym_constrain_range_for_size",
    "sym_size",
}
