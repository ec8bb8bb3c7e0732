"""Generalization bounds: how large the error on new examples is at most, given the error on n seen ones."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "weightspace.net.cost": ["Cost"],
        "inequalities": [
            "CATONI",
            "catoni",
            "constant",
            "f_lambda",
            "f_quad",
            "grid_nats",
            "hold_out",
            "kl_bernoulli",
            "kl_inverse",
            "langford",
            "LINEAR",
            "maurer",
            "mcallester",
            "monte_carlo",
            "pinsker",
        ],
        "fit": ["descend", "expected_error", "Fit", "on_grid", "places", "slopes"],
        "pac_bound": ["bounds_of", "cost", "Family", "pac_bayes", "RiskBound"],
    },
    {"weightspace.net.WeightspaceError": ["RiskError"]},
)
