"""Streams of random numbers do not overlap: no seed is made from another by arithmetic."""

import ast
from itertools import product
from pathlib import Path

import pytest

import weightspace as ws
from weightspace.net.seeds import derived

HOUSE = Path(ws.__file__).parent
KNOWN = {  # seeds that a user sees as such, and one count of passes
    "demo.py": 2,  # networks a and b, and a drawn copy
    "symmetry/align/match.py": 2,  # restarts of one search, of which the best is kept
    "symmetry/scale.py": 1,
    "commands/tasks.py": 1,
}


def _is_seed(node: ast.expr) -> bool:
    return getattr(node, "id", getattr(node, "attr", None)) == "seed"


def sums(text: str) -> int:
    """How often a seed is added, multiplied or the like, but for its remainder."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.BinOp)]
    return sum((_is_seed(n.left) or _is_seed(n.right)) and not isinstance(n.op, ast.Mod) for n in nodes)


def test_no_seed_is_a_sum():
    found = {p.relative_to(HOUSE).as_posix(): sums(p.read_text()) for p in HOUSE.rglob("*.py")}
    assert {name: n for name, n in found.items() if n} == KNOWN


@pytest.mark.parametrize("text", ["f(seed + 1)", "f(self.seed * 3)", "f(k + settings.seed)"])
def test_a_sum_would_be_seen(text):
    assert sums(text) == 1


def test_derived_seeds_are_valid_differ_and_stay_what_they_are():
    labels = [(), *product(("a", "b"), range(30)), ("a", 1, 2), ("a1", 2), (1, "a")]
    found = [derived(seed, *some) for seed in range(-3, 20) for some in labels]
    assert len(set(found)) == len(found) and all(0 <= one < 1 << 63 for one in found)
    assert derived(0, "draw", 1) == 94367191114633148
