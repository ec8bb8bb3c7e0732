"""The results of the commands as text for people."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from weightspace.compare import Comparison
    from weightspace.inquiry import Apart, Certified, Informed
    from weightspace.symmetry import Symmetry
    from weightspace.trial import Perturbed, Trial
    from weightspace.walk import Room, Walked
    from weightspace.watching import Passages, Watched
    from weightspace.workbench import Aligned, Merged

__all__ = [
    "console",
    "printable",
    "say_aligned",
    "say_certified",
    "say_comparison",
    "say_group",
    "say_informed",
    "say_merged",
    "say_paths",
    "say_perturbed",
    "say_room",
    "say_tasks",
    "say_trial",
    "say_walked",
    "say_watched",
]

_PIPED = 120


def printable(text: str) -> str:
    """Text without control characters: names come from files, and a terminal obeys what it is sent."""
    return "".join(c if c.isprintable() else "?" for c in text)


def console() -> Console:
    """Standard output, on which `[red]` is text; as wide as the terminal, or 120 columns in a pipe."""
    out = Console(markup=False, highlight=False, emoji=False)
    if not out.is_terminal:
        out.width = _PIPED
    return out


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def say_group(group: Symmetry, name: str, certificate: Path | None) -> None:
    """`read`."""
    out = console()
    order = f"10^{group.log10_order:.0f}" if group.log10_order > 4 else f"{10**group.log10_order:.0f}"
    out.print(f"{name}: {group}", style="bold")
    out.print(f"{len(group)} axes of units that move together; {order} ways to renumber them, all the same function.")
    table = _table("axis", "units", "moves", "depends on", "places", "tensors")
    for axis in group.axes:
        places = group.places[axis.name]
        tensors = list(dict.fromkeys(group.blocks[p.block].tensor for p in places))
        more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        over = ", ".join(axis.over) or "-"
        row = [axis.name, str(axis.size), ", ".join(axis.kinds), over, str(len(places)), ", ".join(tensors[:3]) + more]
        table.add_row(*map(printable, row))
    out.print(table)
    _say_notes(out, list(group.notes))
    if group.verified:
        out.print("Verified: " + group.verified["how"] + f", in {group.verified['dtype']}.")
    if certificate:
        out.print(f"Certificate: {certificate}", soft_wrap=True)


def _say_notes(out: Console, notes: list[str]) -> None:
    for note in notes:
        out.print(f"Note: {printable(note)}", style="yellow")


def _say_change(out: Console, done: Comparison | Aligned) -> None:
    """What alignment changed, and the sentences about it."""
    table = _table("", "as stored", "aligned")
    for row in done.rows():
        table.add_row(*row)
    out.print(table)
    for line in done.remarks():
        out.print(printable(line))


def say_comparison(found: Comparison) -> None:
    """`compare`."""
    out = console()
    out.print(f"{found.verdict.words[0].upper()}{found.verdict.words[1:]}", style="bold")
    out.print(f"{found.verdict.why[0].upper()}{found.verdict.why[1:]}.")
    _say_change(out, found)
    layers = _table("tensor", "shape", "|a|", "|b|", "|a-b|/|a| as stored", "aligned", "cosine")
    for x in found.layers:
        shape = "x".join(map(str, x.shape)) or "-"
        numbers = [f"{n:.3g}" for n in (x.norm_a, x.norm_b, x.before, x.after, x.cosine)]
        layers.add_row(printable(x.name), shape, *numbers)
    out.print(layers)
    _say_notes(out, found.notes)


def say_aligned(done: Aligned) -> None:
    """`align`."""
    out = console()
    _say_change(out, done)
    _say_notes(out, done.notes)
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


def say_merged(done: Merged) -> None:
    """`merge`."""
    out = console()
    if done.scores():
        table = _table(f"on {done.examples} held-out examples", "loss", "accuracy")
        for score in done.scores():
            share = "-" if score.accuracy is None else f"{score.accuracy:.1%}"
            table.add_row(printable(score.name), f"{score.loss:.4f}", share)
        out.print(table)
    _say_notes(out, done.notes)
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


def say_room(found: Room) -> None:
    """`capacity`."""
    out = console()
    out.print(f"{found.free:.1%} of the new gradient leaves the kept outputs alone, to first order.", style="bold")
    if found.layers is not None:
        out.print(
            f"{found.layers:.1%} of it leaves them alone for steps of any length (what every layer is given stays)."
        )
    out.print(f"Held: {found.rows} outputs of {found.examples} examples; the network has {found.weights:,} weights.")
    cost = found.cost
    passes = f"{cost.passes} passes over the examples and {cost.bytes / 1e6:.0f} MB"
    out.print(f"A step by the solver {cost.solver} costs {passes}.")
    table = _table(f"a step of length {found.length:.3g}", "progress", "of the gradient's")
    whole = found.tradeoff[-1][1]
    for share in (0.0, 0.25, 0.5, 0.75, 0.9, 1.0):
        aim = found.tradeoff[0][1] + share * (whole - found.tradeoff[0][1])
        drift, progress = next(pair for pair in found.tradeoff if pair[1] >= aim - 1e-9 * whole)
        table.add_row(f"drift {drift:.3g}", f"{progress:.3g}", f"{progress / whole:.0%}")
    out.print(table)


def say_walked(done: Walked) -> None:
    """`walk`."""
    out = console()
    if done.scores:
        table = _table("on held-out examples", "loss before", "after", "accuracy before", "after")
        for name, before, after in done.scores:
            shares = ["-" if s.accuracy is None else f"{s.accuracy:.1%}" for s in (before, after)]
            table.add_row(name, f"{before.loss:.4f}", f"{after.loss:.4f}", *shares)
        out.print(table)
    for line in done.remarks():
        out.print(printable(line))
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


def say_perturbed(done: Perturbed) -> None:
    """`perturb`."""
    out = console()
    out.print(f"{done.kind}: {done.tensors} tensors changed, by up to {done.largest:.1%} of their norm.", style="bold")
    out.print(f"Relative trust, a model of what the outputs do: {done.model:.3g}")
    if done.measured is not None and done.expected is not None:
        out.print(f"Outputs moved by {done.measured:.3g} of their size; {done.expected:.3g} was expected of noise.")
    if done.scores:
        before, after = done.scores
        out.print(f"Loss {before.loss:.4f} before, {after.loss:.4f} after.")
        if before.accuracy is not None and after.accuracy is not None:
            out.print(f"Accuracy {before.accuracy:.1%} before, {after.accuracy:.1%} after.")
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


def say_trial(done: Trial) -> None:
    """`stability`."""
    out, found = console(), done.found
    proven = any(step.with_data is not None for step in found.steps)
    columns = ["noise", "outputs moved: measured", "expected", "model"]
    columns += ["proven, with activations", "without"] if proven else []
    columns += ["accuracy"] if found.accuracy is not None else ["loss"] if found.loss is not None else []
    table = _table(*columns)
    for step in found.steps:
        row = [f"{step.relative:.0%}", f"{median(step.moved):.3g}", f"{step.expected:.3g}", f"{step.model:.3g}"]
        if proven:
            row += ["-" if b is None else f"{b:.3g}" for b in (step.with_data, step.certificate)]
        row += [f"{median(step.accuracy):.1%}"] if step.accuracy else [f"{median(step.loss):.4g}"] if step.loss else []
        table.add_row(*row)
    out.print(table)
    for line in done.remarks():
        out.print(printable(line))


def say_watched(done: Watched) -> None:
    """`watch`."""
    out = console()
    right = f", {done.accuracy:.1%} right on examples not learnt" if done.accuracy is not None else ""
    out.print(f"{done.steps} steps{right}; {done.records} records took {done.overhead:.1%} of the rest of the run.")
    out.print(f"Recording: {printable(done.out)}; weightspace paths draws it.", soft_wrap=True)


def say_paths(found: Passages) -> None:
    """`paths`."""
    out = console()
    table = _table(
        "layer", "units", "self-path: first", "middle", "last", "cross-path: first", "middle", "last", "dead"
    )
    middle = len(found.steps) // 2
    for layer in (*found.layers, "all"):
        told = [f"{series[layer][k]:.3f}" for series in (found.own, found.cross) for k in (0, middle, -1)]
        units = found.layers.get(layer, sum(found.layers.values()))
        dead = found.dead.get(layer)
        table.add_row(printable(layer), f"{units:,}", *told, "" if dead is None else f"{dead:.1%}")
    out.print(table)
    given = [t for t in found.turnover if t is not None]
    if given:
        out.print(
            f"Path given up for each unit of log relative trust: {given[0]:.3g} at first, {given[-1]:.3g} at the end."
        )
    if found.ratio is not None:
        out.print(f"Early to mid cross-path ratio: {found.ratio:.3f}. It did not tell the error in our experiments.")
    for line in found.remarks():
        out.print(printable(line))


def say_informed(done: Informed) -> None:
    """`inform`."""
    out = console()
    table = _table("method", "information, nats", "bits an example", "weights known", "code length, nats", "products")
    for found in done.found:
        length = "-" if found.method == "sgld" else f"{found.length:,.0f}"
        bits = f"{found.value / found.examples / math.log(2):.3g}"
        told = f"{found.value:,.1f} +- {found.error:.2g}"
        table.add_row(found.method, told, bits, f"{found.dimension:,.0f}", length, f"{found.products:,}")
    out.print(table)
    for found in done.found:
        if found.bracket is not None:
            b = found.bracket
            blocks = "" if b.block is None else f" <= {b.block:,.0f} (tensors apart)"
            out.print(
                f"The network's part of the code: {b.lower:,.0f} (low rank) <= {b.value:,.0f} +- {b.error:.2g}{blocks} "
                f"<= {b.diagonal:,.0f} (weights apart)."
            )
        if found.layers:
            most = sorted(found.layers.items(), key=lambda item: -item[1])[:4]
            shares = ", ".join(f"{printable(n)} {v:,.0f}" for n, v in most)
            out.print(f"Most of it ({found.method}): {shares}.")
    right = "" if done.right is None else f", {done.right:.1%} right"
    out.print(f"The network's own loss on the {done.examples:,} examples: {done.loss:,.4g} nats{right}.")
    if done.structure is not None:
        s = done.structure
        out.print(
            f"Structure of the task: {s.complexity:,.0f} nats of network; C(D) = {s.length():,.0f}; nothing is learnt "
            f"above beta {s.collapse:.3g}."
        )
    for line in done.remarks():
        out.print(printable(line))


def say_tasks(done: Apart) -> None:
    """`tasks`."""
    out, found = console(), done.found
    table = _table("known \\ to be learnt", "examples", "C, nats", *(printable(name) for name in found.names))
    for k, source in enumerate(found.names):
        row = [f"{found.distance(source, target).value:,.0f}" for target in found.names]
        table.add_row(printable(source), f"{found.examples[k]:,}", f"{found.lengths[source]:,.0f}", *row)
    out.print(table)
    for target in found.names:
        source = found.nearest(target)
        d = found.distance(source, target)
        out.print(
            f"{printable(target)}: nearest is {printable(source)}, {d.value:,.0f} nats are left ({d.relative:.0%})."
        )
    for line in done.remarks():
        out.print(printable(line))


def say_certified(done: Certified) -> None:
    """`certify`."""
    out, found = console(), done.found
    table = _table("inequality", "error on new data, at most", "", "note")
    for row in found.families:
        chosen = "  <- chosen before" if row.name == found.family else ""
        table.add_row(row.name, f"{row.bound:.2%}", "certificate" if row.certificate else "estimate", row.note + chosen)
    out.print(table)
    tested = "" if found.test_error is None else f"; {found.test_error:.2%} on test examples"
    out.print(
        f"Networks drawn from Q err on {found.error:.2%} of the {found.examples:,} examples{tested}. "
        f"KL(Q | P) = {found.nats:,.4g} nats."
    )
    if done.own_error is not None:
        own = "" if done.own_test_error is None else f", {done.own_test_error:.2%} on test examples"
        out.print(f"{printable(done.name)} itself: {done.own_error:.2%}{own}.")
    for line in done.remarks():
        out.print(printable(line))
    if done.out:
        out.print(f"Written: {printable(done.out)}", soft_wrap=True)
