"""How far the outputs move when the weights do: measured with noise, modelled, expected to first order, proven."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "relative": ["log_relative_trust", "relative_distances", "relative_trust"],
        "bounds.rounding": ["BoundError"],
        "bounds.certificate": ["Certificate", "certificate", "certificates", "lipschitz"],
        "expected_displacement": ["Displacement", "displacement"],
        "perturbation": ["movable", "perturb", "Stability", "stability", "Step", "width"],
        "sensitivity": ["Breakdown", "breakdown", "Sensitivities", "sensitivities", "Trust", "trust_per_example"],
    },
)
