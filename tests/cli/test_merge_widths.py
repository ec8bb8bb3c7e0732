"""`weightspace merge --arch-b`: the mean of checkpoints of several widths, end to end."""

from __future__ import annotations

import json
import textwrap
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from weightspace.checkpoint import reader, writer
from weightspace.cli import main
from weightspace.commands import merge_widths
from weightspace.commands.data import splits
from weightspace.flows.narrowing import narrow
from weightspace.net.net import Net
from weightspace.symmetry.symmetry import Symmetry
from weightspace.symmetry.widths import widen
from weightspace.task.classification import accuracy

NARROW, WIDE = "widenets:net(width=6)", "widenets:net(width=12)"


def module(width):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    """A trained network, a wide copy of it with its units permuted, and data."""
    folder = tmp_path_factory.mktemp("widths")
    (folder / "widenets.py").write_text(
        textwrap.dedent("""
        from torch import nn

        def net(width, act="ReLU"):
            return nn.Sequential(nn.Linear(6, width), getattr(nn, act)(), nn.Linear(width, 3))
        """)
    )
    rng = np.random.RandomState(0)
    x = rng.randn(300, 6).astype(np.float32)
    y = (x[:, :3] + 0.5 * x[:, 3:]).argmax(1)
    np.savez(folder / "data.npz", x=x, y=y)
    np.savez(folder / "inputs.npz", x=x)
    torch.manual_seed(0)
    trained, x, y = module(6), torch.from_numpy(x), torch.from_numpy(y)
    optimiser = torch.optim.Adam(trained.parameters(), lr=0.02)
    for _ in range(80):
        optimiser.zero_grad()
        nn.functional.cross_entropy(trained(x), y).backward()
        optimiser.step()
    net = Net.of(trained)
    wide = widen(net, {"0.weight[0]": 12}, x[:2], seed=1)
    copy = Symmetry.of(wide, x[:2]).sample(seed=2, kinds="permutation")(wide)
    for name, one in (("narrow", net), ("wide", copy)):
        writer.save(one.tensors, folder / f"{name}.safetensors", metadata={"who": name})
    return folder


@pytest.fixture
def here(play, monkeypatch, tmp_path):
    monkeypatch.chdir(play)
    monkeypatch.syspath_prepend(str(play))
    monkeypatch.setattr(merge_widths, "narrow", partial(narrow, steps=20))
    return tmp_path


def merged(capsys, out, *words, data="data.npz"):
    given = ("merge", *words, "-o", out, "--limit", 200, *(("--data", data) if data else ()), "--json")
    code = main([str(word) for word in given])
    return code, *capsys.readouterr()


def found(capsys, *given, **options):
    code, out, err = merged(capsys, *given, **options)
    assert code == 0, err
    return json.loads(out)


TWO = {"narrow": ("narrow.safetensors", "--arch", NARROW), "wide": ("wide.safetensors", "--arch", WIDE)}


@pytest.mark.parametrize(
    ("first", "other", "arch_b", "width", "kept"),
    [
        ("narrow", "wide", WIDE, "largest", "wide"),
        ("wide", "narrow", NARROW, "wide.safetensors", "wide"),
        ("wide", "narrow", NARROW, "smallest", "narrow"),
        ("narrow", "wide", WIDE, "narrow.safetensors", "narrow"),
    ],
)
def test_the_mean_with_a_widened_copy_is_the_function_in_either_width(here, capsys, first, other, arch_b, width, kept):
    _, task = splits("data.npz", 200, 0)
    net, out = Net.of(module(6)).load(reader.read("narrow.safetensors")), here / "mean.safetensors"
    words = (f"{other}.safetensors", *TWO[first], "--arch-b", arch_b, "--width", width)
    seen = found(capsys, out, words[1], words[0], *words[2:])
    assert seen["aligned"]["accuracy"] == accuracy(task)(net) >= seen["naive"]["accuracy"]
    assert seen["narrowed"] is None if kept == "wide" else seen["narrowed"]["accuracy"] == accuracy(task)(net)
    assert reader.read(out).metadata["who"] == kept
    x, mean = task.example(50), Net.of(module({"wide": 12, "narrow": 6}[kept])).load(reader.read(out))
    torch.testing.assert_close(mean(x), net(x), atol=1e-3, rtol=1e-3)


PAIR = ("wide.safetensors", "narrow.safetensors", "--arch", WIDE, "--arch-b", NARROW, "--width", "smallest")


def test_the_page_shows_the_narrowed_mean(here, capsys):
    page = here / "mean.html"
    found(capsys, here / "mean.safetensors", *PAIR, "--report", page)
    assert "mean, narrowed to narrow.safetensors" in page.read_text()


def test_inputs_alone_will_do(here, capsys):
    seen = found(capsys, here / "mean.safetensors", *PAIR, data="inputs.npz")
    assert seen["aligned"] is None and any("no labels" in note for note in seen["notes"])


@pytest.mark.parametrize(
    ("options", "data", "words"),
    [
        (("--arch-b", NARROW), None, "give --data"),
        ((), "data.npz", "give --arch-b"),
        (("--width", "smallest"), "data.npz", "give --arch-b"),
        (("--arch-b", NARROW, "--width", "7"), "data.npz", "choose largest, smallest, or one of the checkpoints"),
        (("--arch-b", NARROW, "--arch-b", WIDE), "data.npz", "2 times --arch-b"),
        (("--arch-b", WIDE), "data.npz", "not the same architecture"),
        (("--arch-b", "nowhere:net"), "data.npz", "no module"),
        (("--arch-b", "widenets:net(width=6, act='Tanh')"), "data.npz", "would not be the same function"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_line(here, capsys, options, data, words):
    out = here / "refused.safetensors"
    given = ("wide.safetensors", "narrow.safetensors", "--arch", WIDE, *options)
    code, text, err = merged(capsys, out, *given, data=data)
    assert code == 2 and not text and not out.exists(), err
    *told, said = err.splitlines()
    assert words in said and all(line.endswith("...") for line in told), err
