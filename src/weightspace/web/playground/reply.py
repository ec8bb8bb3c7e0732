"""An answer of the playground: a JSON header and a payload of arrays, and both as bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightspace.net.plain import plain

__all__ = ["Reply", "reply"]

_TYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4")}
_EVEN = 4


@dataclass(frozen=True)
class Reply:
    """The answer to one message: `header`, JSON data whose `sections` describe the arrays in `payload`.

    >>> from weightspace.web.playground.reply import Reply
    >>> Reply({"reply": "state"}).to_bytes()
    b'\\x14\\x00\\x00\\x00{"reply": "state"}  '
    """

    header: Mapping[str, Any]
    payload: bytes = b""

    def to_bytes(self) -> bytes:
        """The length of the header (unsigned, 32 bits, little-endian), the header in UTF-8, the payload."""
        text = json.dumps(self.header, allow_nan=False).encode()
        text += b" " * (-len(text) % _EVEN)
        return len(text).to_bytes(4, "little") + text + self.payload

    def section(self, name: str) -> np.ndarray:
        """One array of the payload."""
        found = next(s for s in self.header["sections"] if s["name"] == name)
        kind, count = _TYPES[found["type"]], int(np.prod(found["shape"]))
        return np.frombuffer(self.payload, kind, count, found["offset"]).reshape(found["shape"])


def reply(name: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> Reply:
    """The answer to the message `name`: undefined numbers become null, arrays go to the payload.

    Arrays are uint8 or, of any other type, sent as float32.
    """
    sections, parts, size = [], [], 0
    for section, array in (arrays or {}).items():
        kind = "uint8" if array.dtype == np.uint8 else "float32"
        raw = np.ascontiguousarray(array, _TYPES[kind]).tobytes()
        sections.append({"name": section, "type": kind, "shape": list(array.shape), "offset": size})
        parts += [raw, bytes(-len(raw) % _EVEN)]
        size += len(raw) + (-len(raw) % _EVEN)
    told = {"reply": name, **({"sections": sections} if sections else {}), **plain(header)}
    return Reply(told, b"".join(parts))
