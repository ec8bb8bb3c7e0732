"""Reading a group: its time against depth, which is to grow in proportion, and time and memory on BERT-base.

Llama with 8 and 32 layers of width 64, an LSTM cell called in a loop and an `nn.LSTM`, of 20 and 80 steps: processor
seconds of `Symmetry.of` with its scales, signs and verification, and their ratio, for four times the depth. BERT-base
(110 million weights, random, 8 tokens) is read in a process of its own, and a copy turned by a random element of its
group aligned and compared: peak memory is that above the process with the networks loaded, in sizes S of a float32
checkpoint.

Three architectures are also read at their full size on the meta device, where there are no weights: BERT-base,
ResNet-50, Llama with 7 billion weights. What is read there is the graph alone, so the group is that of the
permutations; they are read from the graph and not tried on numbers, and scales, signs and matrices are
not looked for.

    python -m benchmarks.reading [llama loop lstm bert bert-base resnet-50 llama-7b]      # 6 minutes; transformers
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import weightspace as ws
from benchmarks import measure

MEGA = 1e6
LONGER = 4


class Loop(nn.Module):
    """An LSTM cell called once for every step."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(8, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), self.cell.hidden_size)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.head(h)


class Lstm(nn.Module):
    """The same as a layer of torch, which export unrolls."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(8, width, batch_first=True), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def llama(depth: int) -> tuple[nn.Module, Tensor]:
    """A Llama of that many layers, width 64, and eight tokens."""
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 128}
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=depth, use_cache=False)
    return transformers.LlamaForCausalLM(config).eval(), torch.arange(8)[None]


def bert(**sizes: int) -> tuple[nn.Module, Tensor]:
    """BERT as a language model, of the base size by default, and eight tokens."""
    import transformers

    return transformers.BertForMaskedLM(transformers.BertConfig(**sizes)).eval(), torch.arange(8)[None]


def recurrent(make: Callable[[], nn.Module], depth: int) -> tuple[nn.Module, Tensor]:
    """A recurrent network and two sequences of that many steps."""
    return make().eval(), torch.randn(2, depth, 8)


NETS: dict[str, tuple[int, Callable[[int], tuple[nn.Module, Tensor]]]] = {
    "llama": (8, llama),
    "loop": (20, partial(recurrent, Loop)),
    "lstm": (20, partial(recurrent, Lstm)),
}


def bert_base() -> tuple[nn.Module, Tensor]:
    """BERT-base and eight tokens."""
    return bert()


def resnet_50() -> tuple[nn.Module, Tensor]:
    """ResNet-50 and an image of 224 x 224."""
    import transformers

    return transformers.ResNetForImageClassification(transformers.ResNetConfig()).eval(), torch.zeros(1, 3, 224, 224)


def llama_7b() -> tuple[nn.Module, Tensor]:
    """Llama as published with 7 billion weights, and eight tokens."""
    import transformers

    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000}
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=32, use_cache=False)
    return transformers.LlamaForCausalLM(config).eval(), torch.arange(8)[None]


# read on the meta device: how each is made, and the seconds to reach
SHAPES = {"bert-base": (bert_base, 5.0), "resnet-50": (resnet_50, 4.0), "llama-7b": (llama_7b, 8.0)}
MEGABYTES = 500.0
SMALL_BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def against_depth(name: str, depth: int, repeats: int) -> dict[str, Any]:
    """Seconds at a depth and at four times that depth, in turns; one reading before them loads what is loaded once."""
    make = NETS[name][1]
    nets = {deep: make(deep) for deep in (depth, LONGER * depth)}
    ws.Symmetry.of(*make(1))
    runs = measure.in_turns({str(d): partial(ws.Symmetry.of, *net) for d, net in nets.items()}, repeats)
    short, long = runs[str(depth)], runs[str(LONGER * depth)]
    seconds = [short.seconds, long.seconds]
    return {"net": name, "depth": depth, "seconds": seconds, "ratio": measure.ratio(long, short)}


# the kernel's own account of the process: its highest memory is forgotten before every part
_HEAD = """
import gc, json, sys, time
import torch
import weightspace as ws
from benchmarks import reading
from weightspace.commands.compare import compare

def kilobytes(what):
    return int(open("/proc/self/status").read().split(what)[1].split()[0])

def told(part):
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")
    before, began = kilobytes("VmRSS:"), time.process_time()
    found = part()
    return found, {"seconds": time.process_time() - began, "share": 1024 * (kilobytes("VmHWM:") - before) / size}

torch.set_num_threads(1)
ws.Symmetry.of(*reading.bert(**reading.SMALL_BERT))
"""
_PROGRAM = """
module, x = reading.bert(**json.loads(sys.argv[1]))
net = ws.Net.of(module)
del module
size = sum(4 * t.numel() for t in net.weights.values())
group, read = told(lambda: ws.Symmetry.of(net, x))
copy = group.sample(0)(net)
_, align = told(lambda: group.align(copy, to=net))
same, both = told(lambda: compare(net, copy, group))
kind = same.verdict.kind
print(json.dumps({"axes": len(group.axes), "size": size, **read, "align": align, "compare": both, "verdict": kind}))
"""


_ON_META = """
import torch
with torch.device("meta"):
    module, x = reading.SHAPES[sys.argv[1]][0]()
net = ws.Net.of(module)
del module
size = 1024 * 1024
group, read = told(lambda: ws.Symmetry.of(net, x))
weights = sum(t.numel() for t in net.weights.values())
print(json.dumps({"axes": len(group.axes), "weights": weights, "seconds": read["seconds"], "megabytes": read["share"]}))
"""


def large(**sizes: int) -> dict[str, Any]:
    """Seconds and memory: BERT read, a turned copy aligned and compared, in a process of its own. Linux."""
    return {"net": "bert", **_apart(_HEAD + _PROGRAM, json.dumps(sizes))}


def on_meta(name: str) -> dict[str, Any]:
    """Seconds and megabytes of reading an architecture without weights, in a process of its own. Linux."""
    return {"net": name, **_apart(_HEAD + _ON_META, name)}


def _apart(program: str, argument: str) -> dict[str, Any]:
    """What a program prints as JSON on its last line, run in a process of its own."""
    paths = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    setting = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    ended = subprocess.run([sys.executable, "-c", program, argument], env=setting, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"reading {argument} ended with {ended.returncode}: {ended.stderr[-500:]}")
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def run(names: Iterable[str] = (), repeats: int = 3, results: Path = measure.RESULTS) -> list[dict[str, Any]]:
    """A row for every network named (all by default); rows of others stay as they were measured before."""
    kept = {row["net"]: row for row in measure.kept("reading", results) or []}
    for name in list(names) or [*NETS, "bert", *SHAPES]:
        torch.manual_seed(0)
        if name in SHAPES:
            kept[name] = on_meta(name)
        else:
            kept[name] = large() if name == "bert" else against_depth(name, NETS[name][0], repeats)
        measure.keep("reading", list(kept.values()), results)
        print(kept[name], flush=True)
    return list(kept.values())


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Seconds at both depths with their ratio, and memory where it was measured."""
    body = []
    for r in rows:
        if r["net"] == "bert":
            what = f"BERT, {r['size'] / 4 / MEGA:.0f}M weights"
            parts = {what: r, "`align`, a copy turned": r["align"], "`compare`, the same": r["compare"]}
            body += [[part, f"{x['seconds']:.1f}", "-", "-", f"{x['share']:.2f}"] for part, x in parts.items()]
        elif r["net"] in SHAPES:
            what = f"`{r['net']}`, {r['weights'] / MEGA:,.0f}M weights on the meta device, {r['axes']} axes"
            body.append([what, f"{r['seconds']:.1f}", "-", "-", f"{r['megabytes']:.0f} MB"])
        else:
            short, long = r["seconds"]
            what = f"`{r['net']}`, {r['depth']} and {LONGER * r['depth']}"
            body.append([what, f"{short:.2f}", f"{long:.2f}", f"{r['ratio']:.2f}", "-"])
    return measure.table("network, depth | seconds | at four times the depth | ratio | memory above, in S", body)


_NAMES = {"nargs": "*", "metavar": "NET"}
main = measure.command("reading", __doc__, run, summary, {"names": _NAMES, "--repeats": 3})


if __name__ == "__main__":
    main()
