"""Low-rank adapters (LoRA) as networks: the update that every pair of factors makes, each on an input of its own.

An adapter holds B (out, rank) and A (rank, in) for some layers of a base network, whose outputs change by s B A x. Only
the product matters: A and B may become M A and B M^-1 for any invertible M, which is the symmetry group of this module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.checkpoint import reader
from weightspace.checkpoint.files import read_json
from weightspace.net.errors import WeightspaceError

__all__ = ["Adapter", "describes", "of"]


CONFIG = "adapter_config.json"
_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<embedded>embedding_)?(?P<side>[AB])(?P<rest>(\.[\w-]+)*?)")
_OWN = re.compile(r".+\.lora_(magnitude_vector|[AB](\.[\w-]+)*\.bias)(\.[\w-]+)*")
_SCALING = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "peft_type")
_SIDE = 8  # pixels of the example images of a convolution


class Adapter(nn.Module):
    """The updates s B A x of a low-rank adapter, one output for every pair of factors.

    `example_input_array`: two random inputs for every pair. Parameters have the names of the file; those that belong
    to no pair (magnitudes of DoRA, biases) are outputs of their own. Raises `WeightspaceError` for a factor without
    the other, factors that do not fit, and tensors that a low-rank adapter does not have.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], scale: float = 1.0) -> None:
        super().__init__()
        self.scale, self.pairs = scale, paired(shapes)
        known = {name for pair in self.pairs for name in pair}
        self.own = [name for name in shapes if name not in known]
        if strange := [name for name in self.own if not _OWN.fullmatch(name)]:
            raise WeightspaceError(
                f"an adapter with {strange[0]!r}, which is no factor of low rank; merge it into its base model first"
            )
        for name, shape in shapes.items():
            _put(self, name, torch.zeros(*shape))
        generator = torch.Generator().manual_seed(0)
        inputs = [_input_shape(shapes[first]) for first, _ in self.pairs]
        self.example_input_array = tuple(torch.randn(shape, generator=generator) for shape in inputs)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """s B A x for every pair, then what belongs to no pair."""
        found = []
        for x, (first, second) in zip(inputs, self.pairs, strict=True):
            a, b = _get(self, first), _get(self, second)
            kind = _CONVOLUTIONS.get(a.dim())
            found.append(self.scale * (F.linear(F.linear(x, a), b) if kind is None else kind(kind(x, a), b)))
        return [*found, *(_get(self, name) * 1.0 for name in self.own)]


_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def paired(shapes: Mapping[str, Sequence[int]]) -> list[tuple[str, str]]:
    """The names of the factors (A, B) of every layer."""
    sides: dict[str, dict[str, str]] = {}
    for name in shapes:
        found = _FACTOR.fullmatch(name)
        if found and not name.endswith(".bias"):
            sides.setdefault(f"{found['layer']}{found['rest']}", {})[found["side"]] = name
    for pair in sides.values():
        if len(pair) < 2:
            raise WeightspaceError(f"an adapter with {[*pair.values()][0]!r} and without the other factor")
        a, b = (shapes[pair[side]] for side in "AB")
        if len(a) != len(b) or len(a) not in (2, *_CONVOLUTIONS) or a[0] != b[1]:
            raise WeightspaceError(f"{pair['A']} {tuple(a)} and {pair['B']} {tuple(b)} are no factors of one matrix")
    return [(pair["A"], pair["B"]) for pair in sides.values()]


def _input_shape(first: Sequence[int]) -> tuple[int, ...]:
    return (2, first[1], *(max(_SIDE, size) for size in first[2:]))


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    """Register a parameter under a dotted name, with modules for its prefixes."""
    *path, last = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module._modules[part]  # type: ignore[assignment]
    module.register_parameter(last, nn.Parameter(value))


def _get(module: nn.Module, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    found = getattr(module.get_submodule(path), last)
    assert isinstance(found, Tensor)
    return found


def describes(path: Path) -> bool:
    """Whether a folder or file holds an adapter and nothing else."""
    if path.is_dir():
        return (path / CONFIG).is_file() and not (path / "config.json").is_file()
    return path.is_file() and any(_FACTOR.fullmatch(name) for name in reader.read(path))


def of(paths: Sequence[Path]) -> Adapter:
    """The module of the first adapter, of random weights. Raises `WeightspaceError` where others are scaled otherwise.

    The scale s is alpha / rank, or alpha / sqrt(rank), of `adapter_config.json`; without that file 1.
    """
    configs = {path: _config(path) for path in paths if describes(path)}
    first = configs[paths[0]]
    for path, config in configs.items():
        for key in _SCALING:
            if config.get(key) != first.get(key):
                seen = f"{key} is {first.get(key)!r} for {paths[0].name} and {config.get(key)!r} for {path.name}"
                raise WeightspaceError(f"{seen}: these updates are scaled differently; merge them into their bases")
    if (kind := str(first.get("peft_type", "LORA"))) != "LORA":
        raise WeightspaceError(f"{paths[0]} holds an adapter of type {kind}, not of low rank; merge it into its base")
    found = reader.read(paths[0])
    module = Adapter(found.shapes, _scale(first))
    with torch.no_grad():
        for k, (name, weight) in enumerate(module.named_parameters()):
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(k)))
            module.get_parameter(name).data = weight.data.to(found.dtypes[name])
    return module


def _config(path: Path) -> dict[str, Any]:
    file = (path if path.is_dir() else path.parent) / CONFIG
    try:
        found = read_json(file) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise WeightspaceError(f"{file} cannot be read ({error})") from error
    return found if isinstance(found, dict) else {}


def _scale(config: Mapping[str, Any]) -> float:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not rank or alpha is None or config.get("rank_pattern") or config.get("alpha_pattern"):
        return 1.0
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else float(rank))
