"""`Answer`: JSON as the server sends it."""

from __future__ import annotations

import json
from typing import Any

from fastapi.responses import JSONResponse

__all__ = ["Answer"]


class Answer(JSONResponse):
    """Short JSON in UTF-8, in which names of files that are no text are escaped."""

    def render(self, content: Any) -> bytes:
        """The bytes of an answer."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")
