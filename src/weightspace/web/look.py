"""What is looked at in a file that a browser sent, in the process that was started for it: data, or a network."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

from weightspace.atlas.content import content
from weightspace.checkpoint import reader
from weightspace.checkpoint.files import FileNote
from weightspace.commands.data import train_and_test
from weightspace.net.errors import WeightspaceError
from weightspace.web.child import Work, main

__all__ = ["LOOKS"]


def look_at_data(work: Work) -> dict[str, Any]:
    """What an .npz file holds, read as data are. Raises `WeightspaceError` for what cannot be used."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", FileNote)
        task, test = train_and_test(work["path"])
    batch, example = next(iter(task.batches())), task.example(1)
    for inputs, labels in task.batches():
        _refuse_nan(inputs)
        _refuse_nan(labels)
    labels = batch[1]
    kind = None if labels is None else "whole numbers" if not labels.is_floating_point() else "numbers"
    shape = [*example.shape[1:]] if isinstance(example, torch.Tensor) else None
    notes = [str(note.message).removeprefix(f"{work['path']}: ") for note in said]
    count = len(task) + (len(test) if test is not None else 0)
    return {"examples": count, "inputs": shape, "labels": kind, "tensors": None, "numbers": None,
            "fingerprint": None, "notes": notes}  # fmt: skip


def _refuse_nan(value: Any) -> None:
    parts = value.values() if isinstance(value, dict) else [value]
    for part in parts:
        if isinstance(part, torch.Tensor) and part.is_floating_point() and not bool(torch.isfinite(part).all()):
            raise WeightspaceError("it holds NaN or infinity; replace these, or leave the examples out")


def look_at_network(work: Work) -> dict[str, Any]:
    """What a .safetensors file holds. Raises `WeightspaceError` for what cannot be used, and NaN."""
    found = content(reader.read(work["path"]))
    numbers = sum(torch.Size(shape).numel() for shape in found.shapes.values())
    return {"examples": None, "inputs": None, "labels": None, "tensors": len(found.shapes), "numbers": numbers,
            "fingerprint": found.fingerprint, "notes": []}  # fmt: skip


LOOKS: dict[str, Callable[[Work], dict[str, Any]]] = {"data": look_at_data, "network": look_at_network}

if __name__ == "__main__":
    sys.exit(main(LOOKS))
