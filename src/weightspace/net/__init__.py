"""Networks and weight vectors: a network is a point of weight space, a difference of networks is a vector."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "errors": ["ArchitectureMismatch", "InputError", "WeightspaceError"],
        "cost": ["Cost"],
        "growing": ["grow"],
        "net": ["checked", "loose", "Net", "unfrozen"],
        "state": ["math_attention"],
        "weights": ["finite", "squared_distance", "Weights", "wide"],
        "names": ["prefixes"],
        "model": [
            "fresh",
            "Model",
        ],
    },
    {"weightspace.net.WeightspaceError": ["ModelError"]},
)
