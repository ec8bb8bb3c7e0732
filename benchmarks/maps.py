"""An atlas of a thousand small networks: added, mapped, mapped again, and asked; strangers matched; bytes hashed.

Networks are those of `demo.digits_cnn`, in families: a random start, and four that noise was added to. All runs in
this process, on one thread; seconds are those of the processor. The peak of memory is that of the process, less what it
was when the networks were there, by the kernel's account (Linux).

    python -m benchmarks.maps [--networks 1000] [--strangers 200] [--megabytes 200]     # six minutes on one core
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

import weightspace as ws
from benchmarks import measure
from weightspace.atlas.content import content
from weightspace.atlas.sketches import sketch
from weightspace.commands.atlas_asked import query
from weightspace.commands.atlas_map import Mapped, mapped
from weightspace.commands.settings import Settings

FAMILY, ARCH = 5, "weightspace.demo:digits_cnn(width=4)"
T = TypeVar("T")


def written(folder: Path, count: int, family: int = FAMILY) -> None:
    """Files of networks, `family` of them from one start."""
    folder.mkdir()
    root = None
    for k in range(count):
        if k % family == 0:
            torch.manual_seed(k)
            root = ws.Net.of(ws.demo.digits_cnn(width=4))
        assert root is not None
        net = root if k % family == 0 else root + 0.02 * root.weights.randn(k)
        ws.checkpoint.save(net.tensors, folder / f"{k}.safetensors")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and the seconds that the processor worked for it."""
    began = time.process_time()
    return call(), time.process_time() - began


def peak() -> float:
    """The largest memory of this process so far, in megabytes; 0 where the kernel does not say."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1000 if status.exists() else 0.0


def large(folder: Path, count: int) -> dict[str, Any]:
    """Seconds to add, map, map again, map with one more, and ask so many networks."""
    written(folder / "nets", count)
    before = peak()
    with ws.Atlas(folder / "atlas") as atlas:
        _, added = timed(lambda: atlas.add_folder(folder / "nets", arch=ARCH, example="2x1x8x8"))

        def once() -> Mapped:
            return mapped(atlas, matching=False, settings=Settings())

        first, whole = timed(once)
        _, again = timed(once)
        torch.manual_seed(count)
        atlas.add(ws.demo.digits_cnn(width=4), name="one more", arch=ARCH, example="2x1x8x8")
        _, more = timed(once)
        _, asked = timed(lambda: query(atlas, "digits", settings=Settings()))
    (space,) = first.spaces
    right = sum(int(space.members[e.parent].name) // FAMILY == int(space.members[e.child].name) // FAMILY
                for e in space.lineage.edges)  # fmt: skip
    possible = count - -(-count // FAMILY)
    return {"networks": count, "added": added, "mapped": whole, "again": again, "more": more, "asked": asked,
            "memory": peak() - before, "edges": len(space.lineage.edges), "right": right, "possible": possible,
            "stress": space.map.stress}  # fmt: skip


def strange(folder: Path, count: int) -> dict[str, Any]:
    """Seconds to map networks without a relative, each matched to all others, and to map them again."""
    written(folder / "strangers", count, 1)
    with ws.Atlas(folder / "others") as atlas:
        atlas.add_folder(folder / "strangers", arch=ARCH, example="2x1x8x8")
        found, whole = timed(lambda: mapped(atlas, settings=Settings()))
        _, again = timed(lambda: mapped(atlas, settings=Settings()))
    return {"strangers": count, "seconds": whole, "again": again, "edges": len(found.spaces[0].lineage.edges)}


def read(megabytes: float) -> dict[str, Any]:
    """Gigabytes hashed, and sketched, in a second of one thread."""
    side = max(8, int((megabytes * 1e6 / 4 / 10) ** 0.5))
    tensors = {f"{k}.weight": torch.randn(side, side) for k in range(10)}
    size = sum(w.nbytes for w in tensors.values()) / 1e9
    runs = measure.in_turns({"hash": lambda: content(tensors), "sketch": lambda: sketch(tensors)})
    return {"gigabytes": size, "hashed": size / runs["hash"].seconds, "sketched": size / runs["sketch"].seconds}


def run(
    networks: int = 1000, strangers: int = 200, megabytes: float = 200.0, results: Path = measure.RESULTS
) -> dict[str, Any]:
    """All of it."""
    with tempfile.TemporaryDirectory() as folder:
        found = {"large": large(Path(folder), networks), "strange": strange(Path(folder), strangers)}
    found["read"] = read(megabytes)
    measure.keep("maps", found, results)
    return found


def summary(found: dict[str, Any]) -> str:
    """One line for each thing that was done."""
    a, b, c = found["large"], found["strange"], found["read"]
    n = f"{a['networks']:,} networks"
    body = [
        [f"{n} added", f"{a['added']:.1f}", ""],
        [".. mapped", f"{a['mapped']:.1f}",
         f"{a['right']} of {a['possible']} origins within their family, {a['edges'] - a['right']} elsewhere; "
         f"stress {a['stress']:.2f}"],
        [".. mapped again", f"{a['again']:.1f}", "no weight is read"],
        [".. mapped with one more", f"{a['more']:.1f}", ""],
        [".. asked for the best on digits", f"{a['asked']:.1f}", f"{a['memory']:.0f} MB of memory at most for all"],
        [f"{b['strangers']} strangers mapped, every pair tried for a match", f"{b['seconds']:.1f}",
         f"{b['edges']} origins; again in {b['again']:.1f}"],
        ["a network hashed", "-", f"{c['hashed']:.2f} GB a second"],
        ["a network sketched", "-", f"{c['sketched']:.2f} GB a second"],
    ]  # fmt: skip
    return measure.table("what | processor seconds | besides", body)


main = measure.command("maps", __doc__, run, summary, {"--networks": 1000, "--strangers": 200, "--megabytes": 200.0})


if __name__ == "__main__":
    main()
