"""One tensor of several checkpoints is read whole, whatever the pieces, and never with NaN."""

import pytest
import torch

import weightspace as ws
from weightspace.merging import part
from weightspace.merging.part import Part, entries
from weightspace.merging.recipe import Recipe, merged

SHAPES = [(), (0,), (1,), (7,), (0, 3), (3, 0), (4, 6), (5, 2, 3)]


def tensors(shape, number=3, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    return [{"w": torch.randn(shape, generator=generator).to(dtype)} for _ in range(number)]


def of(sources, **more):
    *parents, base = [(source, "w") for source in sources]
    return Part("w", sources[0]["w"].shape, parents, base, **more)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [1, 4, 1 << 18])
@pytest.mark.parametrize("again", [False, True])
def test_pieces_are_all_entries_in_order_in_whole_rows(monkeypatch, tmp_path, shape, block, again):
    monkeypatch.setattr(part, "BLOCK", block)
    monkeypatch.setattr(part, "_CHUNK", 2 * block)
    held = tensors(torch.Size(shape))
    files = [ws.checkpoint.read(ws.checkpoint.save(t, tmp_path / f"{k}.safetensors")) for k, t in enumerate(held)]
    for sources in (held, files):
        one, found = of(sources), [[], [], []]
        for piece in one.pieces(again):
            assert piece.start == sum(map(len, found[0]))
            assert len(shape) < 2 or not piece.base.numel() % one.row
            for kept, numbers in zip(found, [*piece.parents, piece.base], strict=True):
                kept.append(numbers.clone())
                numbers.fill_(9)  # who gets a piece may overwrite it
        for kept, source in zip(found, held, strict=True):
            whole = torch.cat(kept) if kept else torch.empty(0)
            assert torch.equal(whole, source["w"].float().reshape(-1))
        assert torch.equal(one.parent(1), held[1]["w"].float()) and torch.equal(one.origin(), held[2]["w"].float())
    assert torch.equal(held[0]["w"], tensors(torch.Size(shape))[0]["w"])


def test_pieces_that_are_kept_stay_what_they_were(monkeypatch):
    monkeypatch.setattr(part, "BLOCK", 4)
    held = tensors((4, 6))
    kept = [piece.parents[0] for piece in of(held).pieces()]
    assert torch.equal(torch.cat(kept), held[0]["w"].float().reshape(-1))
    again = [piece.parents[0] for piece in of(held).pieces(again=True)]
    assert not torch.equal(torch.cat(again), held[0]["w"].float().reshape(-1)), "the law sees memory that is used again"


def test_room_bounds_what_is_held():
    held = tensors((64, 8), 4)
    sizes = [sum(len(t) for t in (*piece.parents, piece.base)) for piece in of(held, room=100).pieces()]
    assert max(sizes) <= 100 and len(sizes) > 4


def test_a_mapping_without_parts_is_read_once_a_pass():
    class Lazy(dict):
        reads = 0

        def __getitem__(self, name):
            Lazy.reads += 1
            return super().__getitem__(name)

    sources = [Lazy(held) for held in tensors((64, 8))]
    assert len(list(of(sources, room=50).pieces())) == 64
    assert Lazy.reads < 30  # 3, and those of the checks of types in tests
    assert torch.equal(entries(sources[0], "w", 3, 9), tensors((64, 8))[0]["w"].reshape(-1)[3:9])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_nan_is_refused_by_parent_and_tensor(bad, where):
    held = tensors((4, 6))
    held[where]["w"][2, 3] = bad
    called = ["parent 1", "parent 2", "the base"][where]
    with pytest.raises(ws.WeightspaceError, match=f"NaN or infinity in 'w' of {called}"):
        list(of(held).pieces())
    with pytest.raises(ws.WeightspaceError, match="in 'w' of c"):
        list(of(held, labels=["c"] * 3).pieces())
    with pytest.raises(ws.WeightspaceError, match="NaN or infinity"):
        of(held).origin() if where == 2 else of(held).parent(where)


def test_infinities_that_cancel_are_seen_and_large_numbers_are_not_refused():
    both = [{"w": torch.tensor([float("inf"), -float("inf"), 1.0])}] * 2
    with pytest.raises(ws.WeightspaceError, match="infinity"):
        list(of(both).pieces())
    large = [{"w": torch.full((9,), 3e38)}] * 2
    assert next(of(large).pieces()).parents[0][0] == 3e38


def test_float64_is_computed_in_float64():
    held = tensors((3,), 2, torch.float64)
    one = Part("w", torch.Size([3]), [(source, "w") for source in held], dtype=torch.float64)
    found = merged(one, Recipe())
    assert found.dtype == torch.float64 and torch.equal(found, (0.5 * held[0]["w"]).add(held[1]["w"], alpha=0.5))
