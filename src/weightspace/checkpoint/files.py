"""Atomic writing of files, and reading of JSON within limits of memory.

A file is written under a hidden name beside its target, `.name.MARK-PID-RANDOM.tmp`, and renamed once it is on disk.
Such files of a process that died are removed at the next write into the same folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "CHOSEN",
    "FileNote",
    "beside",
    "directory_size",
    "instead",
    "is_temporary",
    "move_all",
    "parse",
    "read_json",
    "refuse_dangling",
    "sealed",
    "sweep",
    "unsealed",
    "write",
    "write_all",
]


LARGEST = 25_000_000  # bytes of JSON that are read
_ENTRIES = 2_000_000  # entries of its lists and mappings together, of 100 bytes of memory each
_NAME = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp")
_DAY = 86_400
_TAIL = (1 << 16) + 22 + 20  # bytes: the longest comment of a zip, its end record, and the locator of a zip64 end
_DIGEST = "digest"


CHOSEN: ContextVar[str | None] = ContextVar("weights", default=None)  # --weights: which network of a file is meant


class FileNote(UserWarning):
    """A warning that something of a file was left out, renamed or guessed."""


# ------------------------------------------------------------------ writing


def write(path: Path, content: bytes | str) -> None:
    """Write one file, whole or not at all. Raises `OSError`.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from weightspace.checkpoint import files
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files.write(Path(folder) / "a.json", "{}")
    ...     files.read_json(Path(folder) / "a.json")
    {}
    """
    body = content.encode() if isinstance(content, str) else content

    def stream(file: BinaryIO) -> None:
        file.write(body)

    write_all({path: stream})


def write_all(
    written: Mapping[Path, Callable[[BinaryIO], None]], *, first: Iterable[Path] = (), last: Iterable[Path] = ()
) -> None:
    """Write several files, whole or not at all. `written`: target -> a function that writes into an open file.

    All are written under hidden names; then the files in `first` are removed, the new ones renamed in order, and the
    files in `last` removed. Raises `OSError`, also for a broken link; no hidden file is left behind.
    """
    for target in written:
        refuse_dangling(target)
    for folder in {target.parent for target in written}:
        sweep(folder)
    temporary = {target: _hidden(target) for target in written}
    try:
        for target, stream in written.items():
            with temporary[target].open("xb") as file:
                stream(file)
                file.flush()
                os.fsync(file.fileno())
        move_all(temporary, first=first, last=last)
    finally:
        for source in temporary.values():
            source.unlink(missing_ok=True)


def move_all(moved: Mapping[Path, Path], *, first: Iterable[Path] = (), last: Iterable[Path] = ()) -> None:
    """Move complete files of the same file system to their places. `moved`: target -> where it is now.

    The files in `first` are removed, then the others moved in order, and those in `last` removed. Raises `OSError`.
    """
    for target in moved:
        refuse_dangling(target)
    for item in first:
        item.unlink(missing_ok=True)
    for target, source in moved.items():
        os.replace(source, target)
    for folder in {target.parent for target in moved}:
        _sync(folder)
    for item in last:
        item.unlink(missing_ok=True)


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A context with a hidden path to write to, which is renamed to `target` at the end if no error is raised."""
    refuse_dangling(target)
    sweep(target.parent)
    path = _hidden(target)
    try:
        yield path
        os.replace(path, target)
    finally:
        path.unlink(missing_ok=True)


def _hidden(target: Path) -> Path:
    return target.with_name(f".{target.name}.{_place()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def refuse_dangling(path: Path) -> None:
    """Raise `FileNotFoundError` for a broken link, which would be written through or replaced without notice."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            errno.ENOENT, f"it is a link to {os.readlink(path)}, which is not there; remove the link", str(path)
        )


def is_temporary(name: str) -> bool:
    """Whether a name is that of a temporary file of this module."""
    return _NAME.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove the temporary files that processes which have ended left in a folder."""
    with suppress(OSError), os.scandir(folder) as items:
        for item in items:
            found = _NAME.fullmatch(item.name)
            if found and _is_left(item, found[1], int(found[2])):
                with suppress(OSError):
                    os.unlink(item.path)


def _is_left(item: os.DirEntry[str], where: str, pid: int) -> bool:
    with suppress(OSError):
        if time.time() - item.stat(follow_symlinks=False).st_mtime > _DAY:
            return True
    if os.name != "posix" or where != _place() or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _place() -> str:
    """Eight hexadecimal digits for the machine and the namespace of process ids."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{zlib.crc32(f'{platform.node()} {namespace}'.encode()):08x}"


def _sync(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot sync a folder; the files are renamed already
                os.fsync(handle)
        finally:
            os.close(handle)


# ------------------------------------------------------------------ files that are not what they should be


def instead(head: bytes) -> tuple[str, str] | None:
    """What a file is by its first bytes, and what to do: a git-lfs pointer, a web page, an archive; else None."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself", "fetch it by git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page saved in place of the file", "download the file itself"
    for mark, kind in _PACKED.items():
        if head.startswith(mark):
            return f"an archive ({kind})", "unpack it first"
    return None


_PACKED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z", b"Rar!": "rar"}


# ------------------------------------------------------------------ zip


def directory_size(path: Path) -> int:
    """The size in bytes of a zip's directory, as the file claims; opening the zip takes ten times as much memory.

    Raises `OSError`, or `ValueError` for a file that has no such directory.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
        at = tail.rfind(b"PK\5\6")
        if at < 0 or len(tail) < at + 22:
            raise ValueError("a zip without an end")
        length = int.from_bytes(tail[at + 12 : at + 16], "little")
        locator = tail[max(0, at - 20) : at]
        if locator[:4] == b"PK\6\7":
            file.seek(min(int.from_bytes(locator[8:16], "little"), size))
            record = file.read(56)
            length = max(length if length < 0xFFFFFFFF else 0, int.from_bytes(record[40:48], "little"))
    return length


# ------------------------------------------------------------------ JSON


def read_json(path: Path, largest: int = LARGEST, most: int = _ENTRIES) -> Any:
    """The value in a JSON file of at most `largest` bytes and `most` entries.

    Raises `OSError`, or `ValueError` in one line.
    """
    with path.open("rb") as file:
        text = file.read(largest + 1)
    if what := instead(text[:200]):
        raise ValueError(f"it is {what[0]}; {what[1]}")
    return parse(text, largest, most)


def parse(text: bytes | str, largest: int = LARGEST, most: int = _ENTRIES) -> Any:
    """The value of a JSON text of at most `largest` bytes and `most` entries, read in bounded memory.

    Raises `ValueError` with a message of one line, also for a repeated key and for text that is nested too deep.
    """
    if len(text) > largest:
        raise ValueError(f"it has more than {largest:,} bytes")
    raw = text.encode() if isinstance(text, str) else text
    entries = sum(raw.count(mark) for mark in (b",", b"[", b"{", b":"))
    if entries > most:
        raise ValueError(f"it has {entries:,} entries, more than {most:,}")
    try:
        return json.loads(raw, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r:.80} stands twice in it")
    return found


def sealed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with a SHA-256 digest of its content, for `unsealed` to check."""
    plain: dict[str, Any] = json.loads(json.dumps(tree))
    plain.pop(_DIGEST, None)
    return {**plain, _DIGEST: _digest(plain)}


def unsealed(tree: Any) -> dict[str, Any]:
    """The mapping without its digest. Raises `ValueError` for a missing or wrong digest."""
    if not isinstance(tree, dict):
        raise ValueError(f"it is a {type(tree).__name__}, not a mapping")
    if _DIGEST not in tree:
        raise ValueError("it carries no digest")
    plain = {key: value for key, value in tree.items() if key != _DIGEST}
    if tree[_DIGEST] != _digest(plain):
        raise ValueError("it was changed since it was written: its digest is another")
    return plain


def _digest(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
