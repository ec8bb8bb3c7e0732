"""A path is a curve of networks."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "divergence": ["Divergence"],
        "path": ["curve", "line", "Path"],
        "diffusion": [
            "Action",
            "action",
            "action_cost",
            "laplacian",
            "path_integral",
            "sgd_temperature",
            "spectral_gap",
        ],
        "barrier": ["kramers_rate", "minimum_action_path", "Passage", "Rate"],
        "loss_plane": ["Grid", "Plane", "plane"],
        "trail": ["Trail"],
    },
    {
        "weightspace.net.Cost": ["ActionCost"],
        "weightspace.net.WeightspaceError": ["DiffusionError"],
        "weightspace.training.swa": ["swa"],
    },
)
