"""Copies of networks under their content: `sha256/ab/abcd....safetensors` below a folder, or below a URL of fsspec.

A copy is written whole or not at all, and is what its name says: the name is the hash of its tensors.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from torch import Tensor

from weightspace.atlas.content import content
from weightspace.checkpoint import files, reader, writer
from weightspace.checkpoint.locate import SINGLE
from weightspace.net.errors import WeightspaceError, first_line

__all__ = ["Objects"]

_SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "sftp", "memory")  # no plain web addresses
_KEY = re.compile(r"[0-9a-f]{64}")
_BESIDE = re.compile(
    r"((generation_|preprocessor_|processor_)?config|tokenizer\w*|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|vocab\.txt|merges\.txt|chat_template\.jinja|(tokenizer|spiece|sentencepiece[\w.]*)\.model"
)  # beside the weights of a Hugging Face folder; no code
_LARGEST = 100_000_000  # bytes of such a file


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

    def put_beside(self, key: str, folder: Path) -> Path | None:
        """A Hugging Face folder of a stored network: its weights, and the configuration and tokenizer of `folder`.

        It is named by the content of the network and of these files. None for a store under a URL, which keeps weights
        alone. Raises `WeightspaceError` where it cannot be written.
        """
        if self.remote:
            return None
        try:
            names = sorted(item.name for item in folder.iterdir() if _BESIDE.fullmatch(item.name) and item.is_file())
            found = {name: (folder / name).read_bytes() for name in names if (folder / name).stat().st_size <= _LARGEST}
            said = "".join(f"{name} {hashlib.sha256(data).hexdigest()}\n" for name, data in found.items())
            file = self._local(key)
            target = file.with_name(f"{key}.{hashlib.sha256(said.encode()).hexdigest()[:16]}")
            target.mkdir(parents=True, exist_ok=True)
            for name, data in found.items():
                if not (target / name).exists():
                    files.write(target / name, data)
            if not (target / SINGLE).exists():
                with files.beside(target / SINGLE) as linked:
                    _link(file, linked)
        except OSError as error:
            raise WeightspaceError(f"{folder}: cannot be copied ({error.strerror or error}); free space") from error
        return target

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
        file = self._local(key)
        file.unlink(missing_ok=True)
        for folder in file.parent.glob(f"{key}.*") if not self.remote else ():
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)
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


def _link(file: Path, to: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)
