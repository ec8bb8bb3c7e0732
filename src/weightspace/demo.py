"""The demo: a tour of all commands in two minutes, on two classifiers of the embedded digits.

Every step calls the function of a command on files, and shows the command line that does the same. A new step is a
function in `STEPS` that gets the stage, prints what it found, and returns its pages.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from weightspace.checkpoint import writer
from weightspace.commands.align import align
from weightspace.commands.certify import Prior, certify
from weightspace.commands.compare import compare_files
from weightspace.commands.inform import inform
from weightspace.commands.merge import merge
from weightspace.commands.paths import paths
from weightspace.commands.settings import Settings
from weightspace.commands.stability import stability
from weightspace.commands.tasks import tasks
from weightspace.commands.walk import Limits, walk
from weightspace.commands.watch import Schedule, watch
from weightspace.commands.workspace import Workspace
from weightspace.net.errors import WeightspaceError
from weightspace.net.model import fresh
from weightspace.net.net import Net
from weightspace.net.state import seeded
from weightspace.pages.align import align_page
from weightspace.pages.certify import certify_page
from weightspace.pages.compare import compare_page
from weightspace.pages.inform import inform_page
from weightspace.pages.merge import merge_page
from weightspace.pages.page import Card, Page, save
from weightspace.pages.paths import paths_page
from weightspace.pages.stability import stability_page
from weightspace.pages.tasks import tasks_page
from weightspace.pages.walk import walk_page
from weightspace.task import datasets
from weightspace.task.classification import accuracy
from weightspace.task.task import Task

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["STEPS", "Stage", "digits_cnn", "example", "run", "train"]


_ARCH, _DATA = "weightspace.demo:digits_cnn", "digits"
_EPOCHS, _BATCH, _RATE = 20, 128, 3e-3
_DRAWS, _SHOWN = 5, 0.2  # of the noise
_WATCHED = 12  # epochs
_ASKED, _RANK = 200, 40
_TASKS, _STEPS = ("digits:0-4", "digits:5-9", "digits:0-4:rotated"), 700
_TRAINED, _DRAWN = 30, 10_000  # steps and draws of a certificate
_DRIFT, _KEPT, _LEARNING, _LENGTH = 2.0, 40, 20, 0.35  # of the walk that learns


def digits_cnn(width: int = 32) -> nn.Module:
    """Three convolutions (`width`, 2 `width`, 2 `width` channels) and a linear layer, for digits of 8x8 pixels."""
    module = nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * width, 10)),
    )
    module.example_input_array = torch.zeros(2, 1, 8, 8)
    return module


def example(seed: int = 0) -> tuple[Net, Task]:
    """A small network on digits (64-16-10, drawn from a seed) and 60 labelled digits, for the examples in docstrings.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> net(task.example(3)).shape
    torch.Size([3, 10])
    """
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    return fresh(module, seed), datasets.digits().take(60, seed=0)


def train(seed: int, data: Task, tick: Callable[[], None] = lambda: None, epochs: int = _EPOCHS) -> Net:
    """A `digits_cnn` trained by Adam with a learning rate that falls to zero; `seed` draws weights and batches."""
    with seeded(seed):
        module = digits_cnn()
    inputs, labels = data.example(len(data)), data.labels()
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(module.parameters(), lr=_RATE)
    per_epoch = len(labels) // _BATCH
    for step in range(epochs * per_epoch):
        if step % per_epoch == 0:
            rows = torch.randperm(len(labels), generator=order)
            tick()
        some = rows[step % per_epoch * _BATCH :][:_BATCH]
        optimiser.param_groups[0]["lr"] = _RATE * (1 - step / (epochs * per_epoch))
        optimiser.zero_grad()
        F.cross_entropy(module(inputs[some]), labels[some]).backward()
        optimiser.step()
    return Net.of(module)


@dataclass
class Stage:
    """What the steps share: the folder, the open workspace, the settings, the console, and the numbers for `--json`."""

    folder: Path
    space: Workspace
    settings: Settings
    console: Console | None
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def untaught(self) -> Settings:
        """Settings without an architecture, for commands that bring their own network."""
        return replace(self.settings, arch=None)

    def path(self, name: str) -> Path:
        """A file of the demo."""
        return self.folder / name

    def say(self, *lines: str, style: str | None = None) -> None:
        """Print lines, unless only JSON was asked for."""
        if self.console:
            for text in lines:
                self.console.print(text, style=style)

    def title(self, text: str) -> None:
        """Begin a step."""
        self.say("", text, style="bold")

    def command(self, words: str) -> str:
        """Show and return the command line that does the same."""
        self.say(f"  $ {words}", style="cyan")
        return words


def trained(stage: Stage) -> Sequence[Page]:
    """Two networks, trained alike from two seeds, and a disguised copy of the first, as files."""
    stage.title("Train two networks on handwritten digits, alike but for the random seed")
    data, right = datasets.digits(), accuracy(datasets.digits("test"))
    ticks = iter(range(2 * _EPOCHS))
    scores = {}
    for name, seed in (("a", stage.settings.seed), ("b", stage.settings.seed + 1)):
        net = train(
            seed, data, lambda: stage.settings.progress("training two networks", next(ticks), 2 * _EPOCHS), _EPOCHS
        )
        writer.save(net.tensors, stage.path(f"{name}.safetensors"), force=True)
        scores[name] = right(net)
        if name == "a":
            copy = stage.space.group.sample(seed=stage.settings.seed + 2)(net)
            writer.save(copy.tensors, stage.path("disguised.safetensors"), force=True)
    stage.numbers["accuracy"] = scores
    stage.say(f"  a.safetensors: {scores['a']:.1%} of test digits right.  b.safetensors: {scores['b']:.1%}.")
    return ()


def disguised(stage: Stage) -> Sequence[Page]:
    """A copy with renumbered and rescaled units is recognised."""
    stage.title("1. Same or not? A copy of a whose hidden units were renumbered and rescaled at random")
    words = stage.command(_words("compare", "a.safetensors", "disguised.safetensors"))
    found = compare_files(stage.space, stage.path("a.safetensors"), stage.path("disguised.safetensors"))
    stage.say(f"  Weights as stored: {found.relative_naive:.2f} of their norm apart, as if unrelated (1.41).")
    stage.say(f"  Once the units are matched: {found.relative:.0e} apart.")
    stage.say(f"  Verdict: {found.verdict.words}.", style="green")
    stage.numbers["disguised"] = found.data()
    return [compare_page(found, "A disguised copy", words)]


def compared(stage: Stage) -> Sequence[Page]:
    """The two seeds are independent, and nearer than they look."""
    stage.title("2. Compare a and b, trained from different seeds")
    words = stage.command(_words("compare", "a.safetensors", "b.safetensors"))
    found = compare_files(stage.space, stage.path("a.safetensors"), stage.path("b.safetensors"))
    line = found.line
    assert line is not None
    half = {which: values[len(values) // 2] for which, values in line.accuracy.items()}
    stage.say(f"  Verdict: {found.verdict.words} ({found.relative:.2f} of their norm apart, matched).", style="green")
    stage.say(
        f"  Walk in a straight line from a to b: half way {half['before']:.1%} of digits are right as stored,",
        f"  {half['after']:.1%} after alignment. The loss barrier falls from {line.barrier['before']:.2f} to "
        f"{line.barrier['after']:.2f}: two seeds found much the same solution, with its units in another order.",
    )
    stage.numbers["compare"] = found.data()
    return [compare_page(found, "Compare", words)]


def aligned(stage: Stage) -> Sequence[Page]:
    """b is written with its units matched to those of a."""
    stage.title("3. Align b to a: the same function, its units in the order of those of a")
    words = stage.command(_words("align", "b.safetensors", "--to a.safetensors", out="b_aligned.safetensors"))
    a, b, out = (stage.path(f"{name}.safetensors") for name in ("a", "b", "b_aligned"))
    done = align(stage.space, b, a, out)
    stage.say(
        f"  {done.moved:.0%} of the units moved; the outputs changed by {done.function:.0e} of their size (rounding).",
        f"  Distance to a: {done.before:.1f} before, {done.after:.1f} now.",
    )
    stage.numbers["align"] = done.data()
    return [align_page(done, "Align", words)]


def merged(stage: Stage) -> Sequence[Page]:
    """The average of both works after alignment."""
    stage.title("4. Merge a and b: one network that is the average of both")
    words = stage.command(_words("merge", "a.safetensors", "b.safetensors", out="merged.safetensors"))
    files = [stage.path(f"{name}.safetensors") for name in ("a", "b")]
    done = merge(stage.space, files, stage.path("merged.safetensors"))
    for score in done.scores():
        name = Path(score.name).name if score in done.singles else score.name
        stage.say(f"  {name:<34}{score.accuracy or 0:>7.1%}", style="green" if score is done.aligned else None)
    stage.numbers["merge"] = done.data()
    return [merge_page(done, "Merge", words)]


def pruned(stage: Stage) -> Sequence[Page]:
    """Nine weights of ten set to zero, the function kept."""
    stage.title("5. Walk: set nine weights of ten in a to zero, without labels, and keep its function")
    goal, files = "prune:0.9", ("a.safetensors", "pruned.safetensors")
    words = f"weightspace walk {files[0]} --keep {_DATA} --toward {goal} --steps 8 --arch {_ARCH} -o {files[1]}"
    stage.command(words)
    start, end = map(stage.path, files)
    done = walk(start, _DATA, goal, end, Limits(steps=8), settings=stage.settings)
    _, before, after = done.scores[0]
    was, now = (f"{score.accuracy or 0:.1%}" for score in (before, after))
    stage.say(
        f"  Test digits right: {was} before, {now} with {done.sparsity:.0%} of the weights at zero.", style="green"
    )
    stage.numbers["walk"] = done.data()
    lead = (
        "The smallest weights are set to zero step by step; after each step the others are corrected, so that the "
        "outputs on 200 images stay what they were. No label is used."
    )
    loss = Card("Loss on held-out digits", f"{before.loss:.3f}", f"{after.loss:.3f}")
    cards = [Card("Accuracy on held-out digits", was, now, f"with {done.sparsity:.0%} of the weights at zero"), loss]
    headline = f"Nine weights of ten are zero, and {now} of the digits are right"
    return [Page("Walk", headline, lead, "good", words, cards, remarks=done.remarks())]


def learned(stage: Stage) -> Sequence[Page]:
    """Rotated digits are learnt, and the upright ones are not forgotten."""
    stage.title("6. Walk: let a learn digits rotated by 90 degrees, and keep the upright ones")
    turned = datasets.digits()
    inputs = turned.example(len(turned)).rot90(1, (-2, -1))
    np.savez(stage.path("turned.npz"), x=inputs.numpy(), y=turned.labels().numpy())
    options = f"--budget {_DRIFT:g} --memory {_KEPT} --steps {_LEARNING} --size {_LENGTH}"
    words = f"weightspace walk a.safetensors --keep {_DATA} --toward learn:turned.npz {options} --arch {_ARCH}"
    words += " -o learned.safetensors --report walk.html"
    stage.command(words)
    done = walk(
        stage.path("a.safetensors"), _DATA, f"learn:{stage.path('turned.npz')}", stage.path("learned.safetensors"),
        Limits(budget=_DRIFT, memory=_KEPT, steps=_LEARNING, size=_LENGTH), picture=True, settings=stage.settings,
    )  # fmt: skip
    (_, old, kept), (_, ignorant, learnt) = done.scores
    was, now, before, after = (f"{score.accuracy or 0:.1%}" for score in (old, kept, ignorant, learnt))
    stage.say(
        f"  Accuracy on upright digits: {was} before, {now} after.  On rotated ones: {before}, {after}.", style="green"
    )
    stage.numbers["learned"] = {key: value for key, value in done.data().items() if key != "picture"}
    page = walk_page(done, "Learn", words)
    return [replace(page, headline=f"Rotated digits learnt: {after} right; upright ones kept: {now} right")]


def shaken(stage: Stage) -> Sequence[Page]:
    """How much noise a tolerates: measured, expected, modelled."""
    stage.title("7. Stability: how much noise in the weights does a tolerate?")
    words = (
        f"weightspace stability a.safetensors --data {_DATA} --arch {_ARCH} --draws {_DRAWS} --report stability.html"
    )
    stage.command(words)
    done = stability(stage.path("a.safetensors"), _DATA, draws=_DRAWS, settings=stage.settings)
    at = next(step for step in done.found.steps if step.relative == _SHOWN)
    stage.say(
        f"  Noise of {_SHOWN:.0%} of every layer's norm changes the outputs by {median(at.moved):.0%} of their size",
        f"  (expected {at.expected:.0%}, by the model {at.model:.0%}); the accuracy is then {median(at.accuracy):.1%}.",
    )
    stage.say(f"  Noise of {done.width:.0%} costs one point of accuracy.", style="green")
    stage.numbers["stability"] = done.data()
    return [stability_page(done, "Stability", words)]


def recorded(stage: Stage) -> Sequence[Page]:
    """A network that learns from scratch, and which units are on for each example meanwhile."""
    stage.title("8. Watch: which units are on for every example, while a network learns?")
    words = f"weightspace watch -o run.rec --data {_DATA} --epochs {_WATCHED} --seed {stage.settings.seed}"
    stage.command(words)
    file = stage.path("run.rec")
    file.unlink(missing_ok=True)
    done = watch(file, _DATA, Schedule(epochs=_WATCHED), settings=stage.untaught)
    found = paths(file, progress=stage.settings.progress)
    own, cross = found.own["all"], found.cross["all"]
    stage.say(
        f"  From record to record an example keeps at least {min(own):.0%} of its path, {own[-1]:.1%} at the end;",
        f"  of what two examples share, {min(cross):.0%} and {cross[-1]:.1%}. Recording took {done.overhead:.0%}.",
        style="green",
    )
    stage.numbers["watch"] = {**done.data(), "out": str(file), "own": own, "cross": cross}
    return [paths_page(found, "Watch", f"{words}\nweightspace paths run.rec --report paths.html")]


def asked(stage: Stage) -> Sequence[Page]:
    """The information in the weights of a about the digits."""
    stage.title("9. Inform: how much information do the weights of a hold about the digits?")
    options = f"--limit {_ASKED} --rank {_RANK}"
    words = f"weightspace inform a.safetensors --data {_DATA} --arch {_ARCH} {options} --report inform.html"
    stage.command(words)
    done = inform(stage.path("a.safetensors"), _DATA, limit=_ASKED, rank=_RANK, settings=stage.settings)
    found, labels = done.found[0], done.labels or 0.0
    stage.say(
        f"  {found.value:,.0f} +- {found.error:.1g} nats about {found.examples} examples, in {found.dimension:,.0f} "
        "effective weights.",
        f"  With the remaining loss, {found.length:,.0f} nats; the labels alone take {labels:,.0f}.",
        style="green",
    )
    stage.numbers["inform"] = done.data()
    return [inform_page(done, "Inform", words)]


def mapped(stage: Stage) -> Sequence[Page]:
    """The distances between three tasks."""
    stage.title("10. Tasks: how much of one is left to learn, once another is known?")
    words = f"weightspace tasks {' '.join(_TASKS)} --limit {_ASKED} --seeds 1 --steps {_STEPS} --report tasks.html"
    stage.command(words)
    done = tasks(_TASKS, limit=_ASKED, seeds=1, steps=_STEPS, settings=stage.untaught)
    found = done.found
    for target in found.names:
        source = found.nearest(target)
        d = found.distance(source, target)
        stage.say(f"  {target}: {d.target:,.0f} nats; {d.value:,.0f} are left once {source} is known.", style="green")
    stage.numbers["tasks"] = found.data()
    return [tasks_page(done, "Tasks", words)]


def promised(stage: Stage) -> Sequence[Page]:
    """A bound for new digits, from digits that a was not trained on."""
    stage.title("11. Certify: an upper bound on the error of a on new digits")
    words = (
        f"weightspace certify a.safetensors --data new.npz --unseen --arch {_ARCH} --steps {_TRAINED} "
        f"--draws {_DRAWN} --report certify.html"
    )
    stage.command(words)
    test = datasets.digits("test")
    np.savez(stage.path("new.npz"), x=test.example(len(test)).numpy(), y=test.labels().numpy())
    done = certify(
        stage.path("a.safetensors"), str(stage.path("new.npz")), Prior(unseen=True), steps=_TRAINED, draws=_DRAWN,
        settings=stage.settings,
    )  # fmt: skip
    q = done.found
    stage.say(
        f"  Error {q.centre_error:.1%} on {q.examples} digits that it was not trained on; on new ones at most",
        f"  {q.hold_out:.1%} by the hold-out bound, {q.bound:.1%} by PAC-Bayes, each with probability {1 - q.delta:g}.",
        style="green",
    )
    stage.numbers["certify"] = done.data()
    return [certify_page(done, "Certify", words)]


def overview(numbers: Mapping[str, Any]) -> Page:
    """The first page: what this is about, in two numbers."""
    copy, line, merge = numbers["disguised"], numbers["compare"]["line"], numbers["merge"]
    half = len(line["t"]) // 2
    before, after = (f"{line['accuracy'][k][half]:.0%}" for k in ("before", "after"))
    naive, aligned = (f"{merge[k]['accuracy']:.1%}" for k in ("naive", "aligned"))
    shuffled = "distance to the original, relative to the norm"
    cards = [
        Card("A copy, its units shuffled", f"{copy['relative_naive']:.2f}", f"{copy['relative']:.0e}", shuffled),
        Card("Half way between two seeds", before, after, "of test digits right, on the line between the two"),
        Card("Two networks merged into one", naive, aligned, "of test digits right, plain mean and aligned mean"),
    ]
    lead = (
        "The hidden units of a network can be renumbered and rescaled without changing what it computes. So two "
        "checkpoints may look unrelated and still hold the same solution, and their plain average is useless. "
        "weightspace finds the changes that leave the function the same, undoes them, and then compares and averages. "
        "Orange: as stored. Green: after alignment."
    )
    return Page("Overview", "Two networks can be the same and look nothing alike", lead, cards=cards)


STEPS: list[Callable[[Stage], Sequence[Page]]] = [
    trained,
    disguised,
    compared,
    aligned,
    merged,
    pruned,
    learned,
    shaken,
    recorded,
    asked,
    mapped,
    promised,
]
_FILES = ("a", "b", "disguised", "b_aligned", "merged", "pruned", "learned")


def _words(command: str, *files: str, out: str | None = None) -> str:
    end = f" -o {out}" if out else ""
    return f"weightspace {command} {' '.join(files)} --arch {_ARCH} --data {_DATA}{end}"


def run(
    folder: Path,
    settings: Settings,
    *,
    console: Console | None = None,
) -> Mapping[str, Any]:
    """Run all steps in `folder`, write the report, and return the numbers."""
    _prepare(folder, settings.force)
    settings = replace(settings, arch=_ARCH, force=True)
    target = folder / "report.html"
    if console:
        console.print("Hidden units of a network can be renumbered and rescaled without changing what it computes.")
        console.print("weightspace finds these changes, and undoes them before it compares or averages networks.")
    space = Workspace.open([], settings, _DATA)
    stage = Stage(folder, space, settings, console)
    stage.say(f"Symmetry group of this network (S: renumber, R+: rescale): {space.group}")
    pages = [section for step in STEPS for section in step(stage)]
    settings.progress("writing the report", 0, 0)
    save([overview(stage.numbers), *pages], target, title="weightspace demo")
    where = target.resolve()
    stage.say("", f"Files and commands to try yourself: cd {shlex.quote(str(folder))}")
    stage.say(f"Report with figures, open it in a browser: {where}", style="bold")
    stage.say(
        f"This report and a playground, served on this machine: cd {shlex.quote(str(folder))} && weightspace serve"
    )
    return {**stage.numbers, "report": str(where)}


def _prepare(folder: Path, force: bool) -> None:
    """Make the folder; its files are overwritten only if it is the demo's own, or with `force`."""
    if folder.exists() and not folder.is_dir():
        raise WeightspaceError(f"{folder} is a file; choose a folder with -o")
    taken = [name for name in (*(f"{name}.safetensors" for name in _FILES), "run.rec") if (folder / name).exists()]
    if taken and not force and folder.name != "weightspace-demo":
        raise WeightspaceError(f"{folder} holds {taken[0]}; choose another folder, or add --force to overwrite it")
    if not folder.absolute().parent.is_dir():
        raise WeightspaceError(f"the folder {folder.absolute().parent} does not exist; create it first")
    folder.mkdir(exist_ok=True)
