"""Readers of data files (idx, .npz, parquet), within limits of memory."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from weightspace.checkpoint import files
from weightspace.net.errors import first_line
from weightspace.task.examples import TaskError

if TYPE_CHECKING:
    from jaxtyping import UInt8

__all__ = [
    "INPUTS",
    "OFFICIAL",
    "Split",
    "about",
    "find_file",
    "labels_beside",
    "read_idx",
    "read_npz",
    "read_parquet",
    "reading",
    "scaled",
]

Split: TypeAlias = Literal["train", "test"]
OFFICIAL: dict[Split, str] = {"train": "train", "test": "t10k"}
_LABELS = ("label", "labels", "fine_label", "y", "target", "score")
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_DEFLATE = 1032  # the largest factor by which a deflate stream can grow
_PIXELS = 1 << 24
_UNPACKED = 1 << 28  # bytes that a small file may unpack to
_ROWS = 16  # images that are read at once
_DIRECTORY = 12_000_000  # bytes of a zip's directory
INPUTS = ("x", "inputs", "input", "input_ids", "images", "image", "data", "features", "pixel_values", "tokens")
_TARGETS = ("y", "labels", "label", "targets", "target")
_BESIDE = ("token_type_ids", "position_ids", "decoder_input_ids", "lengths")  # and every name that contains "mask"
_BROKEN = (
    *(OSError, EOFError, ValueError, LookupError, RuntimeError, SyntaxError, TokenError),
    *(zlib.error, zipfile.BadZipFile, struct.error),
)
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


def find_file(folder: Path, name: str) -> Path:
    """The file of a name, or its .gz, in a folder. Raises `TaskError` where there is neither."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise TaskError(f"{folder} has no {name}; give the folder of the official files")


def scaled(pixels: np.ndarray) -> Tensor:
    """Pixels 0 .. 255 as float32 numbers in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32)).div_(255)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A context in which the errors of readers of broken files become a `TaskError` of one line."""
    try:
        yield
    except TaskError:
        raise
    except FileNotFoundError as error:
        raise TaskError(f"{path} does not exist; give an .npz, idx, idx.gz or parquet file") from error
    except MemoryError as error:
        raise TaskError(f"{path} does not fit into the free memory; give fewer examples") from error
    except _BROKEN as error:
        reason = first_line(error)
        raise TaskError(f"{path} cannot be read, it is broken or cut short ({reason}); copy it again") from error


@contextmanager
def about(path: Path) -> Iterator[None]:
    """A context in which a `TaskError` gets the path in front of its message."""
    try:
        yield
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from error
    except MemoryError as error:
        raise TaskError(f"{path} does not fit into the free memory; give fewer examples") from error


def check_room(path: Path, unpacked: int) -> None:
    """Raise `TaskError` for a file that unpacks to more bytes than is allowed."""
    size, allowed = path.stat().st_size, os.environ.get("WEIGHTSPACE_UNPACKED", "")
    if unpacked > (int(allowed) if allowed.isdecimal() else max(_UNPACKED, 4 * size)):
        raise TaskError(
            f"{path} unpacks from {size:,} bytes to {unpacked / 1e6:,.0f} MB, which is large for it; if that is right, "
            f"set WEIGHTSPACE_UNPACKED={unpacked} in the environment"
        )


def read_idx(path: Path) -> np.ndarray:
    """The array of an idx file: 0, 0, type, rank, then `rank` big-endian sizes, then the numbers."""
    size = path.stat().st_size
    with reading(path), open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES or not 0 < head[3] <= 8:
            raise TaskError(f"{path} is not an idx file: it begins with {head.hex() or 'nothing'}")
        sizes = file.read(4 * head[3])
        if len(sizes) < 4 * head[3]:
            raise TaskError(f"{path} is cut short in its header; copy it again")
        shape, dtype = struct.unpack(f">{head[3]}I", sizes), np.dtype(_IDX_TYPES[head[2]])
        claimed = math.prod(shape) * dtype.itemsize
        if claimed + 4 + len(sizes) > size * (_DEFLATE if packed else 1):
            raise TaskError(f"{path} claims {claimed:,} bytes {shape}, too many for a file of {size:,}; copy it again")
        check_room(path, claimed if packed else 0)
        body = file.read(claimed)
        more = file.read(1)
    if len(body) < claimed or more:
        found = f"{len(body):,}" if not more else "more"
        raise TaskError(f"{path} claims {claimed:,} bytes {shape} and holds {found}; copy it again")
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def labels_beside(path: Path) -> Path | None:
    """The idx file of the labels beside an idx file of images, by its official name; None where there is none."""
    name = path.name.removesuffix(".gz")
    if "images-idx" not in name:
        raise TaskError(f"{path} is not named as images, such as train-images-idx3-ubyte, so its labels are unknown")
    start, end = name.split("images-idx", 1)
    labels = path.parent / f"{start}labels-idx1{end[1:]}"
    return next((file for file in (labels.with_name(f"{labels.name}.gz"), labels) if file.is_file()), None)


def read_npz(path: Path, split: str) -> tuple[Any, np.ndarray | None, list[str]]:
    """The inputs and labels in an .npz file, and notes of what was guessed or left out."""
    with reading(path):
        if files.directory_size(path) > _DIRECTORY:
            raise TaskError(f"{path} lists more arrays than any data set has; save it by numpy.savez")
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            end = f"_{split}"
            if any(name.removesuffix(end) in INPUTS for name in members if name.endswith(end)):
                members = {n.removesuffix(end): i for n, i in members.items() if not n.endswith(_other(split))}
            sizes = {name: _length(archive, info) for name, info in members.items()}
            inputs, labels, notes = _roles(path, sizes)
            read = [members[name] for name in (*inputs, *([labels] if labels else []))]
            for info in read:
                _honest(path, info)
            check_room(path, sum(info.file_size for info in read))
            found = {name: _npy(archive, members[name], path) for name in inputs}
            y = _npy(archive, members[labels], path) if labels else None
    return found if len(found) > 1 else found[inputs[0]], y, notes


def _other(split: str) -> tuple[str, ...]:
    return tuple(f"_{name}" for name in ("train", "test", "val", "valid", "validation") if name != split)


def _is_beside(name: str) -> bool:
    return "mask" in name.lower() or name in _BESIDE


def _roles(path: Path, sizes: dict[str, int]) -> tuple[list[str], str | None, list[str]]:
    """The names of the arrays that are inputs, the name of the labels, and notes of what was guessed or left out."""
    inputs = [name for name in sizes if name.lower() in INPUTS]
    labels = [name for name in sizes if name.lower() in _TARGETS]
    beside = [name for name in sizes if _is_beside(name)]
    others = [name for name in sizes if name not in (*inputs, *labels, *beside)]
    notes: list[str] = []
    if len(labels) > 1 or not sizes or not inputs + others:
        seen = ", ".join(sizes) or "no array"
        raise TaskError(f"{path} holds {seen}; save it as numpy.savez(path, x=inputs, y=labels)")
    if not inputs:
        alike = [name for name in others if not labels or sizes[name] == sizes[labels[0]]] or others[:1]
        if labels and len(alike) > 1:
            raise TaskError(f"{path} holds {', '.join(sizes)}: which are the inputs? save them under the name x")
        inputs = alike[:1]
        others.remove(inputs[0])
    if not labels:
        alike = [name for name in others if sizes[name] == sizes[inputs[0]]] or others[:1]
        if len(alike) > 1 or (alike and beside):
            raise TaskError(f"{path} holds {', '.join(sizes)}: which are the labels? save them under the name labels")
        if not alike and inputs[0].lower() not in INPUTS:
            raise TaskError(f"{path} holds {', '.join(sizes)}; save it as numpy.savez(path, x=inputs, y=labels)")
        if alike:
            labels = alike
            others.remove(alike[0])
            notes.append(f"took {inputs[0]!r} for the inputs and {alike[0]!r} for the labels")
    if others:
        notes.append(f"left out {', '.join(map(repr, others[:6]))}")
    return inputs + beside, labels[0] if labels else None, notes


def _length(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """The number of rows of an array by its header; -1 where the header cannot be read."""
    with archive.open(info) as file:
        try:
            version = npy.read_magic(file)
            shape = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)[0]
        except _BROKEN:
            return -1
    return int(shape[0]) if shape else 0


def _honest(path: Path, info: zipfile.ZipInfo) -> None:
    """Raise `TaskError` for an array that cannot be as large as it claims."""
    name, size = info.filename, path.stat().st_size
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise TaskError(f"{path}: {name} is packed in a way numpy does not write; save it by numpy.savez")
    if info.compress_size > size or info.file_size > _DEFLATE * (info.compress_size + 1):
        raise TaskError(f"{path}: {name} claims {info.file_size:,} bytes in a file of {size:,}; save it again")


def _npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    """One array of an archive, read only if the sizes in its header and in the archive agree."""
    name = info.filename
    with archive.open(info) as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise TaskError(f"{path}: {name} is of npy version {version}; save plain numbers by numpy.savez")
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(file)
        if dtype.hasobject:
            raise TaskError(f"{path}: {name} holds Python objects (a pickle, which can run code); save numbers")
        claimed = file.tell() + math.prod(shape) * dtype.itemsize
    if claimed != info.file_size:
        raise TaskError(f"{path}: {name} claims {claimed:,} bytes {shape} and holds {info.file_size:,}; save it again")
    with archive.open(info) as file:
        array = npy.read_array(file, allow_pickle=False)
        file.read(1)  # at the end of the file its checksum is checked
    return array


def _extra() -> tuple[Any, Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
        from PIL import Image
    except ImportError as error:
        raise TaskError("parquet needs pyarrow and Pillow; install them by pip install 'weightspace[data]'") from error
    return pyarrow, pyarrow.parquet, Image


def read_parquet(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The inputs and labels in a parquet file, and notes of what was left out."""
    arrow, parquet, image = _extra()
    with reading(path), parquet.ParquetFile(path, page_checksum_verification=True) as file:
        size, rows, schema = path.stat().st_size, file.metadata.num_rows, file.schema_arrow
        if not 0 < rows <= 8 * size:  # less than a bit for a row is no data
            raise TaskError(f"{path} claims {rows:,} rows in {size:,} bytes; write it again")
        label = next((name for name in _LABELS if name in schema.names), None)
        if label is None:
            raise TaskError(f"{path} has columns {', '.join(schema.names)}, no label; name one of them 'label'")
        groups = file.metadata
        check_room(path, sum(groups.row_group(k).total_byte_size for k in range(groups.num_row_groups)))
        pictures = [field.name for field in schema if _is_picture(arrow, field.type)]
        if len(pictures) > 1:
            raise TaskError(f"{path} has images in the columns {', '.join(pictures)}; keep one of them")
        names = pictures or [name for name in schema.names if name != label and "label" not in name.lower()]
        left = [name for name in schema.names if name not in (*names, label)]
        notes = [f"took {label!r} for the labels, left out {', '.join(map(repr, left[:6]))}"] if left else []
        labels = _numbers(file, [label], path)[:, 0]
        if pictures:
            return _pictures(file, pictures[0], image, path), labels, notes
        if not names:
            raise TaskError(f"{path} has only the column {label}; add columns of inputs")
        return _numbers(file, names, path).astype(np.float32), labels, notes


def _is_picture(arrow: Any, type: Any) -> bool:
    nested = arrow.types.is_struct(type) and type.get_field_index("bytes") >= 0
    return nested or arrow.types.is_binary(type) or arrow.types.is_large_binary(type)


def _numbers(file: Any, names: list[str], path: Path) -> np.ndarray:
    """The named columns as one array (row, column)."""
    for name in names:
        kind = file.schema_arrow.field(name).type
        if str(kind) not in ("bool", "halffloat", "float", "double") and "int" not in str(kind):
            raise TaskError(f"{path}: column {name} holds {kind}, not numbers; encode it (tokenize text) first")
    check_room(path, 8 * file.metadata.num_rows * len(names))
    table = file.read(columns=names)
    holes = [name for name in names if table[name].null_count]
    if holes:
        raise TaskError(f"{path}: column {holes[0]} has empty places; fill or drop those rows")
    return np.stack([table[name].to_numpy() for name in names], axis=1)


def _pictures(file: Any, column: str, image: Any, path: Path) -> UInt8[np.ndarray, "n c h w"]:
    parts, row, first = [], 0, None
    for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
        decoded = []
        for entry in batch.column(0).to_pylist():
            blob = entry.get("bytes") if isinstance(entry, dict) else entry
            decoded.append(_picture(blob, image, first, f"{path}, row {row}"))
            if first is None:
                first = decoded[0].shape
                check_room(path, math.prod(first) * file.metadata.num_rows)
            row += 1
        parts.append(np.stack(decoded))
    pixels = np.concatenate(parts)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _picture(blob: bytes | None, image: Any, shape: Any, place: str) -> UInt8[np.ndarray, "h w c"]:
    try:
        picture = image.open(io.BytesIO(blob or b""), formats=_FORMATS)
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise TaskError(f"{place} is not an encoded image ({', '.join(_FORMATS)}); decode it yourself") from error
    width, height = picture.size
    if width * height > _PIXELS:
        raise TaskError(f"{place} claims {width} x {height} pixels, more than {_PIXELS:,}; make it smaller")
    grey = picture.mode in ("1", "L")
    if shape not in (None, (height, width, 1 if grey else 3)) or picture.mode not in (
        "1",
        "L",
        "P",
        "RGB",
        "RGBA",
    ):
        raise TaskError(f"{place} is {height} x {width} {picture.mode}, unlike {shape or '8-bit RGB or L'}; convert it")
    try:
        if picture.format == "PNG":  # it has checksums, which decoding alone does not check
            image.open(io.BytesIO(blob or b""), formats=("PNG",)).verify()
        pixels = np.asarray(picture.convert("L" if grey else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise TaskError(f"{place} is an image that is broken or cut short; write it again") from error
    return pixels[:, :, None] if grey else pixels
