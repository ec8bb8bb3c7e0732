"""Texts as a task of next-token prediction: windows of tokens, each position labelled with the token that follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from weightspace.net.public import public
from weightspace.task.examples import TaskError
from weightspace.task.losses import IGNORED
from weightspace.task.task import Task

__all__ = ["next_token"]


def _bytes(text: str) -> list[int]:
    return list(text.encode())


@public
def next_token(
    texts: Sequence[str], encode: Callable[[str], Sequence[int]] = _bytes, *, length: int = 128, batch: int = 32
) -> Task:
    """The task of predicting every next token of texts: a `Task` whose examples are windows of at most `length` tokens.

    `encode(text)` gives the tokens of a text, such as a tokenizer's `encode`; by default its bytes. A window of n
    tokens x_1 .. x_n has the labels x_2 .. x_{n + 1}; windows of a text follow one another, so every token but the
    first is predicted once. Short windows are filled up with token 0, whose positions have no label (-100): a network
    that looks back only is not changed by them. The loss is the mean over positions, in nats a token; its exponential
    is the perplexity. Raises `TaskError` for texts without two tokens, and tokens that are not whole numbers from 0.

    >>> import weightspace as ws
    >>> task = ws.task.next_token(["hello", "hi"], length=4)
    >>> task.example(2)[0].tolist(), task.labels()[1].tolist()
    ([104, 101, 108, 108], [105, -100, -100, -100])
    """
    if length < 1:
        raise TaskError(f"windows of {length} tokens; give a length of 1 or more")
    rows, labels = [], []
    for number, text in enumerate(texts):
        tokens = [*encode(text)]
        if any(not isinstance(token, int) or token < 0 for token in tokens):
            raise TaskError(f"encode gives {tokens[:3]} for text {number}; give a function to whole numbers from 0")
        for start in range(0, len(tokens) - 1, length):
            x, y = tokens[start : start + length], tokens[start + 1 : start + length + 1]
            rows.append(x[: len(y)] + [0] * (length - len(y)))
            labels.append(y + [IGNORED] * (length - len(y)))
    if not rows:
        raise TaskError(f"none of {len(texts)} texts has two tokens; give longer ones")
    return Task(torch.tensor(rows), torch.tensor(labels), batch=batch)
