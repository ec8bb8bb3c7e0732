"""Weight-space symmetries: read the group of an architecture, apply it, align networks, compare modulo the group."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "axis": ["Axis", "Exchange", "Generator"],
        "widths": ["widen"],
        "depths": ["deepen"],
        "align.widths": ["narrow_toward", "widen_toward"],
        "constrained": ["remaining", "Renumbering"],
        "align.match": ["Candidate", "Match"],
        "align.refine": ["refine", "Refinement"],
        "group": ["Element", "Group"],
        "symmetry": ["mean", "Symmetry"],
        "align.repair": ["repair", "reset_statistics"],
        "quotient": ["Interval", "modulo"],
        "weightspace.net.errors": ["SymmetryError"],
    },
)
