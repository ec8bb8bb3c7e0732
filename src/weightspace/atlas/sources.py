"""What can be added to an atlas, opened: a network in memory, named tensors, or a checkpoint on disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from weightspace.atlas.content import Content, chosen_as, content, stamp
from weightspace.checkpoint import architecture, reader, stored
from weightspace.checkpoint.files import FileNote
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net

__all__ = ["Made", "Source", "fits", "opened"]


@dataclass(frozen=True)
class Made:
    """How networks are made: `package.module:factory` or a folder, an example of the inputs, and the module itself."""

    made: str = ""
    example: str = ""
    template: Net | None = None

    @classmethod
    def of(cls, arch: str | None, example: str | None) -> Made:
        """What `arch` names, as `checkpoint.architecture.find` takes it. Raises `WeightspaceError`."""
        if arch is None:
            return cls("", example or "")
        if arch.endswith(".pt2"):
            raise WeightspaceError(f"{arch} is an exported program, which is code; name package.module:factory")
        net = Net.of(architecture.find(arch, []))
        folder = Path(arch).expanduser()
        made = str(folder.absolute()) if folder.is_dir() else arch
        return cls(made, example or "", net.at(net.weights.map(_meta), net.state.map(_meta)))

    @property
    def printed(self) -> str:
        """The fingerprint of the module, with its printed form; "" without one."""
        return "" if self.template is None else self.template.fingerprint


def _meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


@dataclass(frozen=True)
class Source:
    """Named tensors, their content, and for those of a file its path, the network of it that was chosen, its stamp."""

    tensors: Mapping[str, Tensor]
    content: Content
    path: Path | None = None
    chosen: str | None = None
    stamp: Mapping[str, list[int]] | None = None

    @property
    def made(self) -> str:
        """The Hugging Face folder that describes the architecture; "" where there is none."""
        if self.path is None:
            return ""
        folder = self.path if self.path.is_dir() else self.path.parent
        return str(folder) if (folder / "config.json").is_file() else ""


def opened(what: Any, weights: str | None = None) -> Source:
    """The tensors and the content of a network, a module, a mapping or a path; read once, and unchanged meanwhile.

    Warns by a `FileNote` of what was left out of a file or renamed.
    Raises `WeightspaceError` for what cannot be read, NaN or infinity, and a file that changes while it is read.
    """
    if isinstance(what, nn.Module):
        what = Net.of(what)
    if isinstance(what, Net):
        return Source(what.tensors, content(what.tensors))
    if isinstance(what, Mapping):
        return Source(what, _said("these tensors", what))
    if not isinstance(what, (str, os.PathLike)):
        raise WeightspaceError(f"a {type(what).__name__} is no network; give a Net, a module, named tensors or a path")
    path = Path(os.path.abspath(Path(what).expanduser()))
    chosen = weights if weights is not None else reader.files.CHOSEN.get()
    before = stamp(path, chosen)
    with chosen_as(chosen):
        tensors = reader.read(path)
    found = _said(str(path), tensors)
    if stamp(path, chosen) != before:
        raise WeightspaceError(f"{path}: changed while it was read; add it again when nothing writes to it")
    for note in tensors.notes:
        warnings.warn(f"{path}: {note}", FileNote, stacklevel=2)
    return Source(tensors, found, path, chosen, before)


def _said(where: str, tensors: Mapping[str, Tensor]) -> Content:
    try:
        return content(tensors)
    except reader.CheckpointError:
        raise
    except WeightspaceError as error:
        raise WeightspaceError(f"{where}: {error}") from error


def fits(made: Made, source: Source) -> bool:
    """Whether the tensors are those of the architecture, under names that fit."""
    if made.template is None:
        return False
    try:
        if source.path is None:
            made.template.load(source.tensors)
        else:
            with chosen_as(source.chosen):
                stored.check(made.template, source.path)
    except WeightspaceError:
        return False
    return True
