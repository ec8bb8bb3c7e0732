"""Finite groups acting on inputs: how equivariant a function is, and layers that are so by construction."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "finite_group": ["FiniteGroup", "Matrices"],
        "equivariance": [
            "Defect",
            "equivariance_defect",
            "invariance_defect",
            "invariant",
            "reynolds",
            "reynolds_defect",
        ],
        "layers": ["GroupConv", "GroupPool"],
    },
    {"weightspace.net.WeightspaceError": ["GroupError"]},
)
