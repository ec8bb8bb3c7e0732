"""The catalogue of an atlas: pairs written and neighbours asked, in SQLite and in PostgreSQL; small networks added.

    python -m benchmarks.catalogue [--networks 1000] [--pairs 500000] [--asked 500]

Pairs are those of `networks` networks, each with an interval and a method; a question is the twenty nearest of one
network. PostgreSQL is a server on a Unix socket that writes to a temporary folder without waiting for the disk (fsync
off); it is left out where it is not installed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert

from benchmarks import measure
from benchmarks.postgres import Server, missing
from weightspace.atlas.catalogue import FILE, Catalogue
from weightspace.atlas.records import Pair, Pairs
from weightspace.atlas.tables import contents

MEGA = 1e6


def pairs(networks: int, count: int, seed: int = 0) -> tuple[list[str], list[Pair]]:
    """Keys of networks, and the first `count` of their pairs in random order."""
    rng = np.random.default_rng(seed)
    keys = [bytes(rng.integers(0, 256, 32, dtype=np.uint8)).hex() for _ in range(networks)]
    first, second = np.triu_indices(networks, 1)
    order = rng.permutation(len(first))[:count]
    values = rng.random(len(order))
    chosen = zip(first[order].tolist(), second[order].tolist(), values.tolist(), strict=True)
    return keys, [Pair(keys[i], keys[j], "euclidean", v, v - 0.01, v + 0.01, "one pass") for i, j, v in chosen]


def stored(name: str, where: str, keys: list[str], rows: list[Pair], asked: int) -> dict[str, Any]:
    """Seconds to write all pairs, and milliseconds of a question."""
    with Catalogue.open(where) as catalogue:
        row = {"numbers": "0", "fingerprint": "0", "dtype": "float32", "nbytes": 0}
        with catalogue.writing() as connection:
            connection.execute(insert(contents), [{"key": key, **row} for key in keys])
        table = Pairs(catalogue)
        began, processor = time.perf_counter(), time.process_time()
        table.put(rows)
        written, spent = time.perf_counter() - began, time.process_time() - processor
        table.near(keys[0], "euclidean")
        waits = []
        for k in range(asked):
            began = time.perf_counter()
            found = table.near(keys[k % len(keys)], "euclidean")
            waits.append(time.perf_counter() - began)
        assert len(found) == min(20, len(found)) and sorted(pair.value for pair in found) == [p.value for p in found]
    file = Path(where) / FILE
    size = file.stat().st_size / MEGA if file.exists() else None
    times = {"seconds": written, "processor": spent, "milliseconds": 1000 * statistics.median(waits)}
    return {"store": name, "networks": len(keys), "pairs": len(rows), **times, "size": size}


# the kernel's own account of the process, read by the process itself when the networks are there
_PROGRAM = """
import sys, time
import torch
import weightspace as ws
torch.set_num_threads(1)
count, folder = int(sys.argv[1]), sys.argv[2]
nets = [ws.demo.digits_cnn(width=8)] + [None] * (count - 1)
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
with ws.Atlas(folder + "/first") as atlas:
    atlas.add(nets[0], name="first")
before = peak()
began, processor = time.perf_counter(), time.process_time()
with ws.Atlas(folder + "/atlas") as atlas:
    done = atlas.add_folder(folder + "/nets", arch="weightspace.demo:digits_cnn(width=8)")
added, spent = time.perf_counter() - began, time.process_time() - processor
assert len(done.new) == count and not done.left
began = time.perf_counter()
with ws.Atlas(folder + "/atlas") as atlas:
    assert len(atlas.add_folder(folder + "/nets").known) == count
again = time.perf_counter() - began
print(added, spent, again, peak() - before)
"""


def added(networks: int) -> dict[str, Any]:
    """Seconds to add so many small networks of a folder, then to find that they are all there; memory. Linux."""
    import torch

    import weightspace as ws

    with tempfile.TemporaryDirectory() as folder:
        nets = Path(folder, "nets")
        nets.mkdir()
        for seed in range(networks):
            torch.manual_seed(seed)
            tensors = ws.Net.of(ws.demo.digits_cnn(width=8)).tensors
            ws.checkpoint.save(tensors, nets / f"{seed}.safetensors")
        size = sum(path.stat().st_size for path in nets.iterdir()) / MEGA
        command = [sys.executable, "-c", _PROGRAM, str(networks), folder]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-500:])
        first, spent, again, memory = map(float, done.stdout.split())
    return {"networks": networks, "size": size, "seconds": first, "processor": spent, "again": again,
            "memory": memory * 1024 / MEGA}  # fmt: skip


def run(
    networks: int = 1000, pairs_: int = 500_000, asked: int = 500, results: Path = measure.RESULTS
) -> dict[str, Any]:
    """All of it."""
    keys, rows = pairs(max(networks, 2), pairs_)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        found.append(stored("SQLite", folder, keys, rows, asked))
        if not missing():
            server = stack.enter_context(Server())
            found.append(stored("PostgreSQL", server.url, keys, rows, asked))
    done = {"stores": found, "added": added(networks)}
    measure.keep("catalogue", done, results)
    return done


def summary(done: dict[str, Any]) -> str:
    """One line for each store, and one for the networks."""
    body = [
        [f"{r['pairs']:,} pairs written, {r['store']}", f"{r['seconds']:.1f}", f"{r['processor']:.1f}",
         f"{r['pairs'] / r['seconds']:,.0f} pairs a second; {r['milliseconds']:.2f} ms for the 20 nearest"]
        for r in done["stores"]
    ]  # fmt: skip
    a = done["added"]
    what = f"{a['networks']:,} networks of {1000 * a['size'] / a['networks']:.0f} kB added"
    body.append(
        [
            what,
            f"{a['seconds']:.1f}",
            f"{a['processor']:.1f}",
            f"{a['memory']:.0f} MB of memory; added again in {a['again']:.1f} s",
        ]
    )
    return measure.table("what | seconds | processor seconds | besides", body)


_OPTIONS = {
    "--networks": 1000,
    "--pairs": {"type": int, "default": 500_000, "dest": "pairs_"},
    "--asked": 500,
}
main = measure.command("catalogue", __doc__, run, summary, _OPTIONS)


if __name__ == "__main__":
    main()
