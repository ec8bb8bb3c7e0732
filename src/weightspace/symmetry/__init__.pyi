"""Weight-space symmetries: read the group of an architecture, apply it, align networks, compare modulo the group."""

from weightspace.net.errors import SymmetryError as SymmetryError
from weightspace.symmetry.align.match import Candidate as Candidate
from weightspace.symmetry.align.match import Match as Match
from weightspace.symmetry.align.refine import Refinement as Refinement
from weightspace.symmetry.align.refine import refine as refine
from weightspace.symmetry.align.repair import repair as repair
from weightspace.symmetry.align.repair import reset_statistics as reset_statistics
from weightspace.symmetry.align.widths import narrow_toward as narrow_toward
from weightspace.symmetry.align.widths import widen_toward as widen_toward
from weightspace.symmetry.axis import Axis as Axis
from weightspace.symmetry.axis import Exchange as Exchange
from weightspace.symmetry.axis import Generator as Generator
from weightspace.symmetry.constrained import Renumbering as Renumbering
from weightspace.symmetry.constrained import remaining as remaining
from weightspace.symmetry.depths import deepen as deepen
from weightspace.symmetry.group import Element as Element
from weightspace.symmetry.group import Group as Group
from weightspace.symmetry.quotient import Interval as Interval
from weightspace.symmetry.quotient import modulo as modulo
from weightspace.symmetry.symmetry import Symmetry as Symmetry
from weightspace.symmetry.symmetry import mean as mean
from weightspace.symmetry.widths import widen as widen
