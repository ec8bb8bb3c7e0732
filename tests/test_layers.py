"""Imports run one way."""

import ast
from pathlib import Path

HOUSE = Path(__file__).parents[1] / "src" / "weightspace"
ORDER = """
    net | examples task datasets checkpoint architecture
    symmetry.index symmetry.rules.call symmetry.rules.shape symmetry.rules.part symmetry.rules.contraction
    symmetry.rules.reduction symmetry.rules symmetry.trace symmetry.group symmetry.verify symmetry.scale symmetry.sign
    symmetry.read symmetry.certificate symmetry.balance symmetry.canonical symmetry.assignment symmetry.ascent
    symmetry.relax symmetry.features symmetry.match symmetry.merge symmetry.repair symmetry
    metric distance | path surface | compare workbench report demo | cli
""".replace("|", "").split()
LATE = {"symmetry": ["path"], "cli": None}  # a barrier is measured along a path; --help does not import torch
