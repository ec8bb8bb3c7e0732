"""A checkpoint on disk under the names of a network: loaded, checked, and written back under its own names."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.checkpoint import reader
from weightspace.checkpoint.architecture import ArchitectureError, open_program
from weightspace.checkpoint.files import FileNote
from weightspace.checkpoint.refusal import chosen, some
from weightspace.net.errors import ArchitectureMismatch
from weightspace.net.names import prefixes
from weightspace.net.net import Net

__all__ = ["Stored", "check", "load"]


# ------------------------------------------------------------------ checkpoints of it


class Stored(Mapping[str, Tensor]):
    """The tensors of a network under the names of its file, each computed when read: `move(network's name, tensor)`."""

    def __init__(self, source: Mapping[str, Tensor], net: Net, move: Any) -> None:
        self._source, self._move = source, move
        first: dict[int, str] = {}
        architecture = net.architecture
        named = [
            *architecture.named_parameters(remove_duplicate=False),
            *architecture.named_buffers(remove_duplicate=False),
        ]
        self._own = {name: first.setdefault(id(tensor), name) for name, tensor in named}

    def __getitem__(self, name: str) -> Tensor:
        return self._move(self._own[name], self._source[name])

    @property
    def shapes(self) -> Mapping[str, torch.Size] | None:
        """The shapes of the tensors by name, where the source has them without reading data; else None."""
        return getattr(self._source, "shapes", None)

    @property
    def dtypes(self) -> Mapping[str, torch.dtype] | None:
        """The dtypes of the tensors by name, where the source has them without reading data; else None."""
        return getattr(self._source, "dtypes", None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)


class _Part(Mapping[str, Tensor]):
    """Some tensors of a file, under other names. `names`: new name -> name in the file."""

    def __init__(self, source: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._source, self._names = source, names

    def __getitem__(self, name: str) -> Tensor:
        return self._source[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def shapes(self) -> Mapping[str, torch.Size] | None:
        """The shapes of the tensors by name, where the source has them without reading data; else None."""
        return self._cut(getattr(self._source, "shapes", None))

    @property
    def dtypes(self) -> Mapping[str, torch.dtype] | None:
        """The dtypes of the tensors by name, where the source has them without reading data; else None."""
        return self._cut(getattr(self._source, "dtypes", None))

    def _cut(self, known: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return None if known is None else {name: known[source] for name, source in self._names.items()}


def _named(template: Net, source: Mapping[str, Tensor], path: Path) -> tuple[Mapping[str, Tensor], list[str]]:
    """The tensors of a file without a prefix such as "model.", and a note of what was left out.

    A file that holds the architecture under several prefixes holds several networks: see `refusal.chosen`.
    """
    under = prefixes(template.architecture, template.tensors, source)
    if not under:
        return source, []
    start = chosen(path, [prefix.rstrip(".") for prefix in under])
    start += "." if start else ""
    other = tuple(prefix for prefix in under if prefix != start and not start)
    left = [name for name in source if not name.startswith(start) or (other and name.startswith(other))]
    if not left and not start:
        return source, []
    gone = {*left}
    names = {name.removeprefix(start): name for name in source if name not in gone}
    return _Part(source, names), [f"took {start!r}, left out {some(left)}"] if left else []


def _translated(template: Net, path: Path, source: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of an older Hugging Face folder under today's names, and a note of what was left out.

    Transformers has since renamed the layers of some networks, and translates the names. Empty where the tensors do not
    fit. Its own report is not printed.
    """
    kind: Any = type(template.architecture)
    folder = path if path.is_dir() else path.parent
    if not kind.__module__.startswith("transformers.") or not (folder / "config.json").is_file():
        return {}, []
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            model, seen = kind.from_pretrained(
                None, config=template.architecture.config, state_dict=dict(source), output_loading_info=True,
                local_files_only=True, use_safetensors=True, dtype="auto",
            )  # fmt: skip
    except Exception:  # the caller reports the names that do not fit
        return {}, []
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    if seen["missing_keys"] or seen["mismatched_keys"]:
        return {}, []
    left = sorted(seen["unexpected_keys"])
    return dict(model.state_dict()), [f"left out {some(left)}"] if left else []


def check(template: Net, path: Path) -> None:
    """Raise `WeightspaceError` unless a checkpoint can be opened and its names and shapes fit the network.

    No tensor is read, except of a folder whose names transformers has to translate.

    >>> import tempfile
    >>> import weightspace as ws
    >>> from weightspace.checkpoint import stored
    >>> net, _ = ws.demo.example()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stored.check(net, ws.checkpoint.save(net.tensors, folder))
    """
    if path.suffix == ".pt2":
        return
    opened = reader.read(path)
    shapes, dtypes = opened.shapes, opened.dtypes
    hollow = {name: torch.empty(shapes[name], dtype=dtypes[name], device="meta") for name in opened}
    _fit(template, hollow, path, opened)


def _fit(
    template: Net, source: Mapping[str, Tensor], path: Path, whole: Mapping[str, Tensor]
) -> tuple[Net, Mapping[str, Tensor], list[str]]:
    """The network of these tensors, the tensors under names that fit it, and notes of what was left out.

    `source` may be on the meta device; `whole` holds the data.
    """
    tensors, notes = _named(template, source, path)
    try:
        return template.load(tensors), tensors, notes
    except ArchitectureMismatch as error:
        found, notes = _translated(template, path, whole)
        if not found:
            raise ArchitectureError(f"{path}: {error}{_hint(source)}") from error
    return template.load(found), found, notes


def _hint(names: Iterable[str]) -> str:
    changes = all("lora_" in name or "adapter" in name for name in names)
    return " It holds an adapter, not a whole network: merge it into its base model first." if changes else ""


def load(template: Net, path: Path, trust_code: bool = False) -> tuple[Net, Mapping[str, Tensor], dict[str, str]]:
    """The network of a checkpoint, its tensors under the names of the file, and the metadata of the file.

    Warns by a `FileNote` of everything that was left out or renamed. Raises `WeightspaceError` for a file that cannot
    be read, tensors that do not fit, several networks among which none was chosen, and NaN or infinity.

    >>> import tempfile
    >>> import weightspace as ws
    >>> from weightspace.checkpoint import stored
    >>> net, _ = ws.demo.example()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found, tensors, metadata = stored.load(net, ws.checkpoint.save(net.tensors, folder))
    >>> float((found - net).norm())
    0.0
    """
    notes: list[str] = []
    if path.suffix == ".pt2":
        source: Mapping[str, Tensor] = dict(open_program(path, trust_code).state_dict)
        metadata: dict[str, str] = {}
    else:
        opened = reader.read(path)
        source, metadata, notes = opened, dict(opened.metadata), list(opened.notes)
    net, source, more = _fit(template, source, path, source)
    for note in [*notes, *more]:
        warnings.warn(f"{path}: {note}", FileNote, stacklevel=2)
    bad = [*net.weights.unusable(), *net.state.unusable()]
    if bad:
        raise ArchitectureError(f"{path}: NaN or infinity in {bad[0]}; give weights from before training diverged")
    return net, source, metadata
