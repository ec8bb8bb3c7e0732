"""The examples of a task: tensors, datasets, loaders, and unions of them, read batch by batch."""

from __future__ import annotations

import copy
import itertools
import math
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import data

from weightspace.net.errors import WeightspaceError, first_line
from weightspace.net.inputs import each, leaves, shape

__all__ = []


@lru_cache(maxsize=8)
def order_of(n: int, seed: int) -> Tensor:
    return shuffled(n, seed)


def form_of(x: Tensor) -> Any:
    return tuple(x.shape[1:]), x.dtype


def joined(parts: list[tuple[Any, Tensor | None]]) -> list[tuple[Any, Tensor | None]]:
    """A list with all batches as one; an empty list for none."""
    if len(parts) < 2:
        return parts
    ys = [y for _, y in parts if y is not None]
    return [(each(stacked, *(x for x, _ in parts)), stacked(*ys) if ys else None)]


def parts_of(whole: list[tuple[Any, Tensor | None]], size: int) -> list[tuple[Any, Tensor | None]]:
    """A batch in parts of `size` examples; the last has 1 to `size`."""
    (x, y) = whole[0]
    starts = range(0, len(leaves(x)[0]), size)
    rows = [slice(k, k + size) for k in starts]
    return [(each(lambda t, r=r: t[r], x), None if y is None else y[r]) for r in rows]


_LOOKED_AT = 1 << 16  # numbers of a batch that its digest depends on


class TaskError(WeightspaceError):
    """Examples, labels or a metric that cannot be used together, or with a network."""


def _ordinary(x: Any) -> Any:
    """A tensor that can be differentiated through: one made in inference mode is copied."""
    return x.clone() if isinstance(x, Tensor) and x.is_inference() else x


class Arrays:
    """Examples held in memory as tensors."""

    def __init__(self, inputs: Any, labels: Tensor | None) -> None:
        self.inputs, self.labels = each(_ordinary, inputs), None if labels is None else _ordinary(labels)

    def __len__(self) -> int:
        return len(leaves(self.inputs)[0])

    def pick(self, index: Any) -> Arrays:
        """The examples of an ascending index."""
        return Arrays(each(lambda x: x[index], self.inputs), None if self.labels is None else self.labels[index])

    def batches(self, size: int) -> Iterator[tuple[Any, Tensor | None]]:
        """(x, y) batch by batch."""
        for start in range(0, len(self), size):
            part = self.pick(slice(start, start + size))
            yield part.inputs, part.labels


class Passes:
    """Digests of the batches of the first pass over data, to detect a later pass with other examples."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.whole = False

    def watched(self, batches: Iterable[tuple[Any, Tensor | None]], loose: bool = False) -> Iterator[Any]:
        """The batches, checked against those of the first pass: `TaskError` for others, or a warning if `loose`."""
        number = -1
        for number, (x, y) in enumerate(batches):
            found = digest(x, y)
            if number == len(self.seen) and not self.whole:
                self.seen.append(found)
            elif number >= len(self.seen) or self.seen[number] != found:
                self._tell(f"batch {number + 1} is not what it was", loose)
            yield x, y
        if self.whole and number + 1 < len(self.seen):
            self._tell(f"{number + 1} batches where there were {len(self.seen)}", loose)
        self.whole = True

    def _tell(self, what: str, loose: bool) -> None:
        said = (
            f"the data differ from pass to pass ({what}): a random sampler, augmentation or a stream that shuffles, so "
            "that networks would meet different examples"
        )
        if not loose:
            raise TaskError(f"{said}; give others, or task.mapped(lambda x: x), which holds what is read once")
        warnings.warn(said, stacklevel=2)


def forget(source: Any) -> None:
    """Forget the first pass over a source: later passes are compared with the next one."""
    for part in getattr(source, "parts", [source]):
        if isinstance(part, Loader):
            part.passes = Passes()
        elif isinstance(part, Items):
            part.passes.clear()


def digest(x: Any, y: Tensor | None) -> int:
    """A checksum of a batch; of a large batch, of numbers at even distances."""
    found = 0
    for part in [*leaves(x), *([] if y is None else [y])]:
        flat = part.detach().flatten()
        some = flat[:: max(1, len(flat) // _LOOKED_AT)].cpu().contiguous()
        found = zlib.crc32(some.view(torch.uint8).numpy().data, zlib.crc32(repr(shape(part)).encode(), found))
    return found


class Items:
    """Examples of a map-style dataset."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.passes = dataset, dict[int, Passes]()

    def __len__(self) -> int:
        return len(self.dataset)

    def pick(self, index: Tensor) -> Items:
        """The examples of an ascending index."""
        return Items(data.Subset(self.dataset, index.tolist()))

    def batches(self, size: int) -> Iterator[tuple[Any, Tensor | None]]:
        """(x, y) batch by batch."""
        # a generator of its own: reading data must not move torch's global one
        loader = data.DataLoader(self.dataset, size, collate_fn=collate, generator=torch.Generator())
        yield from self.passes.setdefault(size, Passes()).watched(map(pair, loader))


class Loader:
    """Examples of a `DataLoader`, or of another iterable of batches."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader, self.passes = loader, Passes()
        self.size: int | None = None
        sampler: Any = getattr(loader, "sampler", None)
        ragged = getattr(loader, "drop_last", True) or getattr(loader, "batch_size", None) is None
        if hasattr(sampler, "__len__") and not ragged:
            self.size = len(sampler)

    def __len__(self) -> int:
        if self.size is None:
            self.size = sum(len(leaves(x)[0]) for x, _ in self.batches(0))
        return self.size

    def pick(self, index: Tensor) -> Joined:
        """The examples of an ascending index."""
        read = self.passes.watched(map(pair, self.loader), loose=True)
        return picked(itertools.starmap(Arrays, read), index)

    def batches(self, size: int) -> Iterator[tuple[Any, Tensor | None]]:
        """(x, y) batch by batch."""
        return self.passes.watched(map(pair, self.loader))


class Joined:
    """The examples of several sources, one after the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def pick(self, index: Tensor) -> Joined:
        """The examples of an ascending index."""
        return picked(self.parts, index)

    def batches(self, size: int) -> Iterator[tuple[Any, Tensor | None]]:
        """(x, y) batch by batch."""
        for part in self.parts:
            yield from part.batches(size)


def picked(parts: Iterable[Any], index: Tensor) -> Joined:
    """The examples with an ascending `index` into parts that follow one another."""
    picked, start = [], 0
    for part in parts:
        inside = index[(index >= start) & (index < start + len(part))] - start
        picked += [part.pick(inside)] if len(inside) else []
        start += len(part)
    return Joined(picked)


def read_source(inputs: Any, labels: Any, size: int) -> Any:
    """The examples in tensors, arrays, a dataset or a loader. Raises `TaskError` for anything else."""
    if isinstance(inputs, (Tensor, np.ndarray, tuple, Mapping)):
        return arrays(inputs, labels)
    if labels is not None:
        raise TaskError(f"labels beside a {type(inputs).__name__}; let its items be (x, y), or give tensors")
    if isinstance(inputs, (str, os.PathLike)):
        raise TaskError("a path is not a set of examples; give weightspace.datasets.read(path)")
    if isinstance(inputs, Iterator):
        raise TaskError(f"a {type(inputs).__name__} can be read only once, a task at every call; give a DataLoader")
    if hasattr(inputs, "with_format"):  # a Hugging Face dataset
        inputs = inputs.with_format("torch")
    if isinstance(inputs, data.DataLoader):
        return Loader(in_order(inputs))
    if isinstance(inputs, data.IterableDataset):
        return Loader(data.DataLoader(inputs, size, collate_fn=collate))
    if not (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")):
        if not isinstance(inputs, Iterable):
            raise TaskError(f"no examples in a {type(inputs).__name__}; give tensors, a Dataset or a DataLoader")
        return Loader(inputs)
    if not len(inputs):
        raise TaskError("no examples: the dataset is empty")
    return Items(inputs)


def arrays(inputs: Any, labels: Any) -> Arrays:
    """Inputs and labels as tensors in memory. Raises `TaskError` for empty data and for NaN."""
    x, y = pair(inputs if labels is None and isinstance(inputs, Mapping) else (inputs, labels))
    if not len(leaves(x)[0]):
        raise TaskError("no examples: the inputs are empty")
    for what, part in [("inputs", part) for part in leaves(x)] + ([("labels", y)] if y is not None else []):
        if part.is_floating_point() and part.isnan().any():
            bad = int(part.isnan().flatten(1).any(1).sum() if part.ndim > 1 else part.isnan().sum())
            raise TaskError(f"NaN in the {what} of {bad} of {len(part)} examples; drop or fill them")
    return Arrays(x, y)


def in_order(loader: data.DataLoader[Any]) -> data.DataLoader[Any]:
    """A loader with the same batches, not shuffled, and with workers of its own for each pass.

    Raises `TaskError` for a loader that draws its examples at random.
    """
    if loader.persistent_workers:
        loader = copy.copy(loader)
        vars(loader).update(persistent_workers=False, _iterator=None)
    sampler = loader.sampler
    if not isinstance(sampler, (data.RandomSampler, data.SubsetRandomSampler, data.WeightedRandomSampler)):
        return loader
    dataset: Any = loader.dataset
    whole = isinstance(sampler, data.RandomSampler) and not sampler.replacement and len(sampler) == len(dataset)
    if not whole or type(loader) is not data.DataLoader:
        raise TaskError(
            f"the loader draws at random ({type(sampler).__name__}), so two networks would meet different "
            "examples; give Task(loader.dataset) or a sequential sampler"
        )
    return data.DataLoader(
        dataset,
        loader.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        drop_last=loader.drop_last,
        worker_init_fn=loader.worker_init_fn,
    )


def collate(items: Any) -> Any:
    """Items stacked into one batch. Raises `TaskError` where they cannot be stacked."""
    try:
        return data.default_collate(items)
    except (TypeError, RuntimeError, KeyError) as error:
        raise TaskError(
            f"items cannot be stacked ({first_line(error)}); give a DataLoader with a collate_fn"
        ) from error


def pair(batch: Any) -> tuple[Any, Tensor | None]:
    """The inputs and labels of a batch: of a dict, of (x, y), or of (x_1, ..., x_k, y)."""
    labels = None
    if isinstance(batch, Mapping):
        batch = dict(batch)
        labels = batch.pop("labels" if "labels" in batch else "label", None)
    elif isinstance(batch, (tuple, list)) and batch:
        *rest, labels = batch if len(batch) > 1 else (batch[0], None)
        batch = rest[0] if len(rest) == 1 else tuple(rest)
    if isinstance(batch, Mapping):
        x: Any = {key: each(partial(tensor, what=f"inputs {key!r}"), part) for key, part in batch.items()}
    else:
        x = each(partial(tensor, what="inputs"), batch)
    y = None if labels is None else tensor(labels, "labels")
    parts = leaves(x) + ([] if y is None else [y])
    if not leaves(x) or any(part.ndim == 0 for part in parts):
        raise TaskError(f"no examples in inputs {each(shape, x)}: the first axis counts the examples")
    if len({len(part) for part in parts}) > 1:
        sizes = f"inputs {each(shape, x)}" + ("" if y is None else f" and labels {shape(y)}")
        raise TaskError(f"{sizes} do not have the same number of examples")
    return x, y if y is None or y.is_floating_point() else y.long()


def tensor(x: Any, what: str) -> Tensor:
    """An array or list of numbers as a tensor. Raises `TaskError` for anything else."""
    if isinstance(x, Tensor):
        return x
    try:
        if not isinstance(x, (np.ndarray, np.generic, list, int, float)):
            raise TypeError
        array = np.asarray(x)
        return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except (TypeError, ValueError) as error:
        raise TaskError(f"{what} hold a {type(x).__name__} that is not numbers; convert it to a tensor") from error


def stacked(*parts: Tensor) -> Tensor:
    """Batches concatenated into one tensor. Raises `TaskError` for examples of different shape."""
    if len({part.shape[1:] for part in parts}) > 1:
        raise TaskError(f"batches of different shape, {shape(parts[0])} and others; pad all to one length")
    return torch.cat(parts)


def mixed(a: Any, b: Any, t: float) -> Any:
    """The interpolated inputs (1 - t) a + t b."""

    def mix(x: Tensor, y: Tensor) -> Tensor:
        if x.is_floating_point() and y.is_floating_point():
            return torch.lerp(x, y.to(x), t)
        if not torch.equal(x, y):
            raise TaskError("integer inputs, such as tokens, have no point between them; give embeddings or floats")
        return x

    one, two = (each(lambda x: tuple(x.shape[1:]), x) for x in (a, b))
    if one != two:
        raise TaskError(f"inputs of different shape an example: {one} and {two}; nothing lies between them")
    return each(mix, a, b)


def mixed_labels(a: Tensor | None, b: Tensor | None, t: float) -> Tensor | None:
    """The interpolated labels (1 - t) a + t b, class labels as one-hot vectors."""
    if a is None or b is None:
        return None
    classes = max(y.shape[-1] if y.is_floating_point() else int(y.max()) + 1 for y in (a, b))
    if not (a.is_floating_point() and b.is_floating_point()):
        a, b = one_hot(a, classes), one_hot(b, classes)
    if a.shape[1:] != b.shape[1:]:
        raise TaskError(f"labels of different shape an example: {shape(a)} and {shape(b)}")
    return torch.lerp(a, b.to(a), t)


def one_hot(y: Tensor, classes: int) -> Tensor:
    """Class labels as one-hot vectors."""
    if not y.is_floating_point() and y.min() < 0:
        raise TaskError(f"label {int(y.min())} has no one-hot vector; drop such examples first")
    return y.double() if y.is_floating_point() else F.one_hot(y, classes).double()


def shuffled(n: int, seed: int) -> Tensor:
    """A random permutation of 0, .., n - 1, drawn from `seed`."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def uniform(shape: Sequence[int], draws: int, seed: int, start: int, device: Any = "cpu") -> Iterator[Tensor]:
    """Uniform random numbers in (0, 1) of the shape (example, ..), float64, one tensor a draw: splitmix64 of a counter.

    They depend on the number of each example, `start` for the first, and not on how examples are batched.
    """
    each_one = math.prod(shape[1:])
    example = _mixed(torch.arange(start, start + shape[0]) + _mixed(torch.tensor(seed)))
    for draw in range(draws):
        bits = _mixed(_mixed(example[:, None] + torch.arange(each_one)) + draw)
        yield ((((bits >> 11) & ((1 << 53) - 1)).double() + 0.5) * 2.0**-53).view(*shape).to(device)


def normal(u: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones, by the inverse of the distribution function."""
    return math.sqrt(2) * torch.erfinv(2 * u - 1)


def _mixed(z: Tensor) -> Tensor:
    z = z + -0x61C8864680B583EB
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def gathered(batches: Iterable[tuple[Any, Tensor | None]], n: int | None = None) -> Arrays:
    """The examples of batches as tensors; with n no more batches are read than the first n examples need."""
    xs: list[Any] = []
    ys: list[Any] = []
    seen = 0
    for x, y in batches:
        xs.append(x)
        ys.append(y)
        seen += len(leaves(x)[0])
        if n is not None and seen >= n:
            break
    labels = None if ys[0] is None else stacked(*ys)
    return Arrays(each(stacked, *xs), labels).pick(slice(n))
