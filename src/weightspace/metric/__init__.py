"""How far a small step goes, and which step is best."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "metric": ["Adam", "by_layer", "Euclidean", "Metric", "Relative", "Spectral"],
        "pullback": ["Pullback", "PullbackError"],
        "distance": ["euclidean", "functional", "layerwise", "TensorDistance"],
        "optim": ["Fromage", "Lamb"],
    },
)
