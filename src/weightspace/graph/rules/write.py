"""Rules of operations that write into a tensor: copies, slices and look-ups that are assigned to.

Writing into a part is reading that part, and being indexed alike with what is written.
"""

from __future__ import annotations

from weightspace.graph import atoms
from weightspace.graph.atoms import flat, unify
from weightspace.graph.rules.call import Call, Labels, Outcome, broadcast, fresh, give_up, rule, unknown
from weightspace.graph.rules.part import gather, index_select, indexed, select, slice_
from weightspace.graph.rules.shape import diagonal, expand


def _base(call: Call) -> Labels:
    """What is written into; a tensor of one value takes any labels."""
    base = call.tensor("self")
    return fresh(base.shape) if base.uniform else Labels(list(base.dims))


def _assign(call: Call, part: Labels, source: Labels | None) -> None:
    """Dimensions of a part are those of what is written there, where that is not one value for all."""
    if source is None or source.uniform:
        return
    for d, e in zip(reversed(part.dims), reversed(source.dims), strict=False):
        d, e = flat(d), flat(e)
        if not e:
            continue
        if atoms.size(d) == atoms.size(e):
            unify(d, e)
        else:
            give_up(call, [d, e], f"{call.op} writes into a part of a dimension")


@rule("copy")
def copy(call: Call) -> Outcome:
    """Everything is written over: the source, spread to the shape of the target."""
    source = call.tensor("src")
    return expand(Call("expand", {"self": source}, call.shapes, call.used))


@rule("select_scatter", "slice_scatter", "diagonal_scatter")
def piece(call: Call) -> Outcome:
    """A slice, an index or a diagonal is written over."""
    base, source = _base(call), call.tensor("src")
    read = {"select_scatter": select, "slice_scatter": slice_, "diagonal_scatter": diagonal}[call.op]
    part = read(Call(call.op, {**call.args, "self": base, "src": None}, [source.shape], {0}, notes=call.notes))
    assert isinstance(part, Labels)
    _assign(call, part, source)
    return base


@rule("index_copy", "index_add", "index_reduce", "index_fill", reads=("index",))
def rows(call: Call) -> Outcome:
    """Some indices of one dimension are written to: those at which positions point, or else it is pinned."""
    base = _base(call)
    part = index_select(Call(call.op, {**call.args, "self": base}, call.shapes, {0}, notes=call.notes))
    assert isinstance(part, Labels)
    _assign(call, part, call.get("source"))
    return base


@rule("scatter", "scatter_add", "scatter_reduce", reads=("index",))
def scatter(call: Call) -> Outcome:
    """Of one dimension those indices are written to at which positions point; the others go with the positions'."""
    base = _base(call)
    part = gather(Call(call.op, {**call.args, "self": base}, call.shapes, {0}, notes=call.notes))
    assert isinstance(part, Labels)
    source = call.get("src", "value")
    _assign(call, part, source if isinstance(source, Labels) else None)
    return base


@rule("index_put", "_unsafe_index_put", "_index_put_impl", reads=("indices",))
def index_put(call: Call) -> Outcome:
    """Entries at the given indices of some dimensions, or where a mask of truths is true."""
    base, picks, values = _base(call), list(call.get("indices")), call.tensor("values")
    masks = [pick for pick in picks if pick is not None and pick.flags]
    if not masks:
        _assign(call, Labels(indexed(call, base, picks)), values)
        return base
    if len(picks) != 1:
        return unknown(call)
    covered, rest = base.dims[: len(masks[0].dims)], base.dims[len(masks[0].dims) :]
    broadcast([Labels(covered), masks[0]])
    if values.shape[:-1] or values.shape[-1:] not in ((), (1,)):
        give_up(call, covered, f"{call.op} writes one value after the other")
    _assign(call, Labels(rest), values)
    return base
