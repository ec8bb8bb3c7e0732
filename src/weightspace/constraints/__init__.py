"""Weights that keep a form: the kinds of constraint, their free parameters, and the nearest constrained network."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "form": ["Kind"],
        "shared": ["Antisymmetric", "Asymmetric", "Circulant", "Masked", "SharedBlocks", "Symmetric", "Toeplitz"],
        "matrices": ["LowRank", "Orthogonal"],
        "ordered": ["Ordered"],
        "fourier": ["circular"],
        "constraining": ["constrain", "kind", "kinds_of", "project", "released", "with_weights"],
    },
)
