"""Named exercises: states to set, one after the other or side by side, and the messages to send after each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["EXERCISES", "Exercise"]


@dataclass(frozen=True)
class Exercise:
    """An exercise: `states` to set (fields of the state), and the `messages` to send after each of them."""

    name: str
    title: str
    text: str
    states: tuple[dict[str, Any], ...]
    messages: tuple[dict[str, Any], ...]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "name": self.name,
            "title": self.title,
            "text": self.text,
            "states": [dict(state) for state in self.states],
            "messages": [dict(message) for message in self.messages],
        }


_BOARD = {"data": "checkerboard", "noise": 0.0, "points": 1000, "width": 16, "activation": "relu", "batch": 32}
_TRAIN = {"do": "step", "steps": 50}

EXERCISES = (
    Exercise(
        "depth",
        "Shallow against deep",
        "Train networks of depth 1 and of depth 20 on the checkerboard, and add 20 % noise. Which function is "
        "more stable? Every layer adds noise of the same relative size, and the deep network has twenty of them.",
        (
            {**_BOARD, "depth": 1, "algorithm": "adam", "rate": 0.01},
            {**_BOARD, "depth": 20, "algorithm": "adam", "rate": 0.0003},
        ),
        (*[_TRAIN] * 40, {"do": "noise", "percent": 20.0}),
    ),
    Exercise(
        "twins",
        "Two networks, one function",
        "Two networks learn the spiral from two seeds. Halfway between them the function is lost; aligned by a "
        "permutation and scales of the second one's neurons, which leave its function alone, less of it is.",
        ({"data": "spiral", "depth": 2, "width": 16, "activation": "relu", "other": 1, "rate": 0.01},),
        (*[_TRAIN] * 30, {"do": "line"}, {"do": "align"}, {"do": "line"}),
    ),
    Exercise(
        "walk",
        "Learn without forgetting",
        "A network knows the circle. On a walk within a drift budget it learns the exclusive or on the right half "
        "of the square, while the old boundary on the left half stands still.",
        ({"data": "circle", "depth": 3, "width": 16, "activation": "tanh", "rate": 0.01},),
        (*[_TRAIN] * 20, {"do": "keep", "learn": "xor"}, *[{"do": "walk", "steps": 5}] * 12),
    ),
    Exercise(
        "paths",
        "Which neurons are on",
        "ReLU neurons are on or off for an example: its path. Points of one class come to share neurons.",
        ({"data": "xor", "depth": 3, "width": 8, "activation": "relu", "rate": 0.01},),
        ({"do": "paths", "example": 0}, *[_TRAIN] * 10, {"do": "paths", "example": 0}),
    ),
)
