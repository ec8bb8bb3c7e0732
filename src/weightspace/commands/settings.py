"""What every command is given beside its own options, and the checkpoint that it opens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from weightspace.checkpoint import architecture, stored, writer
from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.checkpoint.stored import Stored
from weightspace.jobs.progress import Progress, silent
from weightspace.net.net import Net

__all__ = ["Opened", "Settings", "must_exist"]


def must_exist(*paths: Path) -> None:
    """Raise `ArchitectureError` unless every path is a file or folder, or the stem of shards with an index."""
    for path in paths:
        if not path.exists() and not path.with_name(f"{path.name}.index.json").exists():
            raise ArchitectureError(f"{path}: no such file or folder; check the path")


@dataclass(frozen=True)
class Settings:
    """Architecture, seed, permissions and progress callback of one command.

    `arch`: as `checkpoint.architecture.find` takes it. `force`: overwrite outputs that exist. `trust_code`: open .pt2
    files, which are programs.
    """

    arch: str | None = None
    seed: int = 0
    force: bool = False
    trust_code: bool = False
    progress: Progress = silent

    def open(self, path: Path) -> Opened:
        """The network of a checkpoint. Raises `WeightspaceError`."""
        if not path.exists():
            raise ArchitectureError(f"{path}: no such file or folder; check the path")
        template = Net.of(architecture.find(self.arch, [path], self.trust_code))
        return self.load(template, path)

    def load(self, template: Net, path: Path) -> Opened:
        """The network of a checkpoint whose architecture is known. Raises `WeightspaceError`."""
        return Opened(template, *stored.load(template, path, self.trust_code), self)


@dataclass(frozen=True)
class Opened:
    """A checkpoint as a network, and what it takes to write another network as a file of the same form.

    `source`: the tensors under the names of the file; `metadata`: that of the file.
    """

    template: Net
    net: Net
    source: Mapping[str, Tensor]
    metadata: dict[str, str]
    settings: Settings

    def like(self, path: Path) -> Net:
        """The network of another checkpoint of this architecture. Raises `WeightspaceError`."""
        return self.settings.load(self.template, path).net

    def moved(self, move: Callable[[str, Tensor], Tensor]) -> Stored:
        """The tensors of the file, each changed by `move(name, tensor)` when it is asked for."""
        return Stored(self.source, self.template, move)

    def save(self, net: Net, out: Path, note: str) -> None:
        """Write `net` in the names, dtypes and metadata of this file; `note` says in the metadata what was done."""
        tensors = net.tensors
        self.write(self.moved(lambda name, tensor: tensors[name].to(tensor.dtype)), out, note)

    def write(self, tensors: Mapping[str, Tensor], out: Path, note: str | None = None) -> None:
        """Write tensors with the metadata of this file. Raises `WeightspaceError`."""
        said = {} if note is None else {"weightspace": note}
        writer.save(tensors, out, force=self.settings.force, metadata={**self.metadata, **said})
