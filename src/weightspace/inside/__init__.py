"""What happens inside a network on given examples: gates, activations, path overlap, similarity of layers."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "representation": ["cka", "matched", "procrustes", "pwcca", "similarity", "svcca"],
        "units": ["features", "forced", "Gates", "gates", "unit_outputs"],
        "path_overlap": [
            "against_distance",
            "cross_features",
            "cross_path",
            "dead",
            "early_to_mid",
            "features_since",
            "Neighbours",
            "neighbours",
            "off_diagonal",
            "overlap",
            "ranked",
            "self_features",
            "self_path",
            "shared_paths",
            "turnover",
        ],
        "image_functions": ["image_function", "ImageFunction"],
    },
)
