"""Follow the axes of parameters through an exported graph, to find which of them are indexed together."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx

from weightspace.graph import atoms
from weightspace.graph.rules import apply_rule
from weightspace.graph.rules.call import Call, Labels, Outcome, fresh
from weightspace.graph.trace import SILENT, Trace, op_name
from weightspace.net.errors import SymmetryError

__all__ = ["Reading", "follow"]


_TURNS = ("_to_copy", "to", "clone", "alias", "detach", "t", "numpy_T", "mT", "transpose", "permute", "view",
          "unsqueeze", "expand")  # fmt: skip


_LISTED = 4096


@dataclass
class Reading:
    """The labels found for the tensors of a graph.

    `named`: those of parameters and buffers; `values`: by node; `all`: of every tensor, inside of an operation too.
    """

    named: dict[str, Labels]
    values: dict[fx.Node, Outcome | None]
    all: list[Labels] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def follow(graph: Trace, outputs_move: bool = False) -> Reading:
    """Label the dimensions of every tensor, from the placeholders to the outputs, whose indices are then pinned."""
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
        f"{name} is returned beside the logits and not treated as an output: a symmetry may permute its axes"
        for name, nodes in graph.beside.items()
        if any(_moves(reading.values.get(node)) for node in nodes)
    ]
    return reading


def _moves(value: Outcome | None) -> bool:
    held = [labels for labels in (value if isinstance(value, tuple) else (value,)) if labels is not None]
    return any(leaf.pin is None for labels in held if 0 not in labels.shape for leaf in atoms.leaves(labels.dims))


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
    """The masks among the buffers `state`: those multiplied into a parameter entry by entry."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op == "call_function" and op_name(node) in ("mul", "mul_"):
            met = [_stored(graph, arg) for arg in node.args[:2]]
            names = [name for name in met if name is not None]
            if len(names) == 2 and sum(name in state for name in names) == 1:
                found |= {name for name in names if name in state}
    return found


def shifts(graph: Trace) -> set[str]:
    """The biases: parameters and buffers that are added to something."""
    found: set[str | None] = set()
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        adds = op_name(node) in ("add", "sub", "add_", "sub_", "addmm", "rsub")
        for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
            if argument.name == "bias" or (adds and argument.name in ("self", "other")):
                found.add(_stored(graph, value))
    return {name for name in found if name is not None}


def offsets(graph: Trace) -> dict[str, float]:
    """The parameters that are met in the form c + w alone, as the gains 1 + w of some norms, and the number c."""
    found: dict[str, set[float]] = {}
    for node in graph.nodes:
        if node.op not in ("call_function", "output") or op_name(node) in {*_TURNS, *SILENT}:
            continue
        names = {name for used in node.all_input_nodes if (name := _stored(graph, used)) is not None}
        c = _added_number(node)
        for name in names:
            found.setdefault(name, set()).add(math.nan if c is None else c)
    return {name: c for name, (c, *others) in found.items() if not others and math.isfinite(c)}


def _added_number(node: fx.Node) -> float | None:
    """The number that a node adds to its one input."""
    if node.op != "call_function" or op_name(node) not in ("add", "add_") or node.kwargs or len(node.args) != 2:
        return None
    return next((float(x) for x in node.args if isinstance(x, (int, float))), None)


def _stored(graph: Trace, node: Any) -> str | None:
    """The name of the parameter or buffer that a node is, up to casts, views and transposes."""
    while isinstance(node, fx.Node) and node.op == "call_function" and op_name(node) in _TURNS:
        node = node.args[0]
    return graph.sources.get(node) if isinstance(node, fx.Node) else None


def used_outputs(node: fx.Node, needed: Collection[fx.Node]) -> set[int]:
    """The indices of a node's outputs that the needed nodes use."""
    return {int(u.args[1]) for u in node.users if u.target is operator.getitem and u in needed}  # type: ignore[arg-type]


def _shape(value: Any) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in value.shape)
    except Exception as error:  # sizes that depend on the data cannot be numbers
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
        return Labels([atoms.dim(n, "input", foreign=True) for n in _shape(value)])
    name = graph.sources[node]
    if name not in reading.named:
        reading.named[name] = fresh(_shape(value))
    return reading.named[name]


def constant_labels(value: Tensor) -> Labels:
    """Labels of a constant, pinned along every dimension in which its entries differ."""
    listed = (
        value.dim() == 1 and not value.is_floating_point() and value.device.type != "meta" and len(value) <= _LISTED
    )
    numbers = tuple(int(n) for n in value) if listed else None
    if value.numel() <= 1:
        return Labels(fresh(_shape(value)).dims, uniform=True, numbers=numbers)
    if value.device.type == "meta":
        return Labels([atoms.dim(n, "constant", constant=True) for n in _shape(value)])
    dims = []
    for k in range(value.dim()):
        same = bool((value == value.narrow(k, 0, 1)).all())
        dims.append(atoms.dim(value.shape[k]) if same else atoms.dim(value.shape[k], "constant", constant=True))
    same = bool((value == value.flatten()[0]).all())
    return Labels(dims, same, flags=value.dtype == torch.bool, numbers=numbers)


def _join_written(graph: Trace, reading: Reading) -> None:
    """Unite the dimensions of a tensor that is written with those of its new value."""
    for name, node in graph.written:
        labels, before = reading.values.get(node), reading.named.get(name)
        if isinstance(labels, Labels) and before is not None and labels.shape == before.shape and not labels.uniform:
            for d, e in zip(labels.dims, before.dims, strict=True):
                atoms.unify(d, e)


def _pin_outputs(node: fx.Node, reading: Reading) -> None:
    for used in node.all_input_nodes:
        value = reading.values.get(used)
        for labels in value if isinstance(value, tuple) else (value,):
            if labels is not None:
                for d in (*labels.dims, labels.points or []):
                    atoms.pin(d, "output")


def _call(node: fx.Node, reading: Reading, needed: set[fx.Node]) -> Outcome | None:
    name = op_name(node)
    meta = node.meta.get("val")
    shapes = [_shape(v) for v in (meta if isinstance(meta, (list, tuple)) else [meta]) if isinstance(v, Tensor)]
    if node.target is operator.getitem:
        source = reading.values.get(node.args[0])  # type: ignore[arg-type]
        return source[node.args[1]] if isinstance(source, tuple) else source  # type: ignore[index]
    if not shapes or name in SILENT:
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
