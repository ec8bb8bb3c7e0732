"""Metrics on weight space: the length of a step, the steepest direction, and optimisers that follow it."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "metric": ["Adam", "by_layer", "Euclidean", "Metric", "Relative", "Remembering", "Spectral"],
        "null_space": ["NullSpace"],
        "pullback": [
            "Pullback",
        ],
        "across_architectures": ["Distances", "distances", "LayerPair"],
        "distance": ["euclidean", "functional", "layerwise", "TensorDistance"],
        "optim": ["Fromage", "Lamb"],
    },
    {"weightspace.net.WeightspaceError": ["GeodesicError", "PullbackError"]},
)
