"""A group moves the weights and leaves the function alone: read it, apply it, choose in its orbit."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "axis": ["Axis", "Generator"],
        "align.match": ["Candidate", "Match"],
        "group": ["Element", "Group"],
        "symmetry": ["mean", "Symmetry"],
        "align.repair": ["repair", "reset_statistics"],
        "quotient": ["Interval", "modulo"],
        "weightspace.net.errors": ["SymmetryError"],
    },
)
