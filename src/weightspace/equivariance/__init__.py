"""What a function owes a group that acts on its inputs, and layers that pay by construction."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "finite_group": ["FiniteGroup", "GroupError", "Matrices"],
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
)
