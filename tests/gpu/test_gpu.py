"""What runs on an accelerator gives what the CPU gives, stays there, and mixes no devices.

With an accelerator (`make test-gpu`) every case runs on it, and on the CPU. Without one the same cases run on the CPU
in `Places`, which finds tensors of two devices that meet.
"""

from __future__ import annotations

import warnings

import pytest
import torch

import weightspace as ws

from .cases import CASES, RANDOM, Bench, tensors
from .places import Places

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
SLOW = {"align, refine", "length", "prune", "task_distance", "mean, BatchNorm"}


def cases(*, all_of_them=False):
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW and not all_of_them else []) for name in CASES]


def watched(case):
    """Run a case with networks and examples that count as being elsewhere."""
    places = Places()

    def place(tensor):
        placed = tensor.clone()
        places.bring(placed)
        return placed

    with places:
        case(Bench(place=place))
    return places


UNTRAINED = pytest.mark.filterwarnings("ignore:the network is not at a minimum")  # the networks of the cases are not


@UNTRAINED
@pytest.mark.parametrize("name", cases())
def test_no_tensor_of_the_cpu_meets_one_of_the_device(name):
    assert not (found := watched(CASES[name]).mixes), sorted({*found})


@pytest.mark.parametrize(
    "planted",
    [
        lambda b: b.a(b.x) @ torch.ones(3, 2),
        lambda b: b.x.gather(1, torch.zeros(24, 1, dtype=torch.long)),
        lambda b: torch.ones(24, 6) * b.x.cpu() + b.x,
        lambda b: b.x.numpy(),
        lambda b: torch.arange(24)[b.y],
        lambda b: b.a.weights.flat() + torch.randn(b.a.weights.numel, generator=torch.Generator()),
    ],
)
def test_a_planted_mix_is_found(planted):
    assert watched(planted).mixes


@pytest.mark.parametrize(
    "sound",
    [
        lambda b: b.a(b.x) @ torch.ones(3, 2, device=b.x.device),
        lambda b: b.x[torch.arange(3)],
        lambda b: b.x + torch.ones(24, 6).to(b.x),
        lambda b: b.x * torch.tensor(2.0),
        lambda b: b.x.cpu() + torch.ones(24, 6),
        lambda b: torch.zeros(24, 6).copy_(b.x) + torch.ones(24, 6),
        lambda b: torch.tensor([1.0] * 6, device=b.x.device) * b.x,
    ],
)
def test_what_is_sound_is_not_blamed(sound):
    assert not watched(sound).mixes


def test_what_comes_back_is_counted():
    counts = watched(lambda b: (b.x.cpu(), float(b.x.sum()))).back
    plain = watched(lambda b: None).back
    assert counts["tensor"] - plain["tensor"] == 1 and counts["number"] - plain["number"] == 1


@pytest.mark.gpu
@UNTRAINED
@ON_GPU
@pytest.mark.parametrize("name", cases(all_of_them=True))
def test_the_device_gives_what_the_cpu_gives(name, capsys):
    here, there = Bench("cpu"), Bench("cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            found = CASES[name](there)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchroniz" in str(one.message) for one in told)
    with capsys.disabled():
        print(f"{name:<24} {torch.cuda.max_memory_allocated() / 1e6:8.2f} MB at most, {waits} waits for the device")
    if isinstance(found, ws.Net):
        assert {tensor.device.type for tensor in tensors(found)} == {"cuda"}, "the network came back to the CPU"
    wanted = CASES[name](here)
    if isinstance(wanted, str):
        assert found == wanted
        return
    pairs = [*zip(tensors(found), tensors(wanted), strict=True)]
    assert pairs or not [*tensors(wanted)]
    for one, other in pairs if name not in RANDOM else ():
        torch.testing.assert_close(one.detach().cpu().double(), other.detach().double(), rtol=2e-3, atol=2e-4)
