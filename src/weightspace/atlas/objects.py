"""Copies of networks under their content: `sha256/ab/abcd....safetensors` below a folder, or below a URL of fsspec.

A copy is written whole or not at all, and is what its name says: the name is the hash of its tensors.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from torch import Tensor

from weightspace.atlas.content import content
from weightspace.checkpoint import files, reader, writer
from weightspace.net.errors import WeightspaceError, first_line

__all__ = ["Objects"]

_SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "sftp", "memory")  # no plain web addresses
_KEY = re.compile(r"[0-9a-f]{64}")


class Objects:
    """A store of networks by content key. `root`: a folder, or a URL such as s3://bucket/folder.

    Networks of a URL are fetched once into `cache`, a folder of this machine, and compared with their key.

    >>> import tempfile
    >>> import weightspace as ws
    >>> from weightspace.atlas.content import content
    >>> from weightspace.atlas.objects import Objects
    >>> net, _ = ws.demo.example()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Objects(folder).put(content(net.tensors).key, net.tensors)
    ...     path.parent.parent.name, len(path.stem)
    ('sha256', 64)
    """

    def __init__(self, root: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> None:
        self.root = os.fspath(root)
        scheme, found, _ = self.root.partition("://")
        if found and scheme not in _SCHEMES or "::" in self.root:
            raise WeightspaceError(f"{self.root}: networks are kept in a folder, or under {', '.join(_SCHEMES[:4])}")
        self.remote = bool(found)
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weightspace" / "objects"
        self.cache = Path(cache) if cache is not None else home

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> Path:
        """Store tensors of this content key, if they are not there; returns the file of this machine that holds them.

        Raises `WeightspaceError` where they cannot be written.
        """
        file = self._local(key)
        if not file.exists():
            self._write(file, tensors)
        if self.remote:
            self._send(key, file)
        return file

    def file(self, key: str) -> Path:
        """The file of this machine that holds the network of a key. Raises `WeightspaceError` where there is none."""
        file = self._local(key)
        if file.exists():
            return file
        if not self.remote:
            raise WeightspaceError(f"{file}: the copy is not there any more; add the network again")
        system, place = self._there(key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with files.beside(file) as fetched:
                system.get_file(place, str(fetched))
                if content(reader.read(fetched)).key != key:
                    raise WeightspaceError(f"{place}: is not what was stored there; add the network again")
        except WeightspaceError:
            raise
        except Exception as error:  # whatever the library of a cloud raises
            raise WeightspaceError(f"{place}: cannot be fetched ({first_line(error)}); check {self.root}") from error
        return file

    def remove(self, key: str) -> None:
        """Delete the copy of a key, if there is one."""
        self._local(key).unlink(missing_ok=True)
        if self.remote:
            system, place = self._there(key)
            if system.exists(place):
                system.rm_file(place)

    def _local(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise WeightspaceError(f"{key!r:.80} is not the key of a content; the catalogue is damaged")
        return (self.cache if self.remote else Path(self.root)) / "sha256" / key[:2] / f"{key}.safetensors"

    def _there(self, key: str) -> tuple[Any, str]:
        try:
            system, root = fsspec.core.url_to_fs(self.root)
        except Exception as error:  # its library is missing, or refuses the options
            what = first_line(error)
            raise WeightspaceError(f"{self.root}: cannot be opened ({what}); install what fsspec names") from error
        return system, f"{root.rstrip('/')}/sha256/{key[:2]}/{key}.safetensors"

    def _write(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WeightspaceError(f"{file.parent}: cannot be made ({error.strerror}); free space there") from error
        writer.save(tensors, file, force=True, metadata={})

    def _send(self, key: str, file: Path) -> None:
        system, place = self._there(key)
        part = f"{place}.{secrets.token_hex(4)}.part"
        try:
            if system.exists(place):
                return
            system.makedirs(place.rpartition("/")[0], exist_ok=True)
            system.put_file(str(file), part)
            system.mv(part, place)
        except Exception as error:  # whatever the library of a cloud raises
            raise WeightspaceError(f"{place}: cannot be written ({first_line(error)}); check {self.root}") from error
