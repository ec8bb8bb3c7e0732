"""Training and editing as flows: steps that lower a goal as far as a metric allows, and the known goals."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "attacks": ["attack", "attacked", "harden", "input_gradient", "robust_accuracy"],
        "goals": ["drift", "gem", "learn", "spread", "toward"],
        "forms": ["conform"],
        "anchors": ["ewc", "fisher", "hold"],
        "pruning": ["Prune", "prune", "share_at", "sparsity", "tightened"],
        "result": ["Flow", "Record"],
        "sharpness": ["neighbourhood"],
        "stepper": ["flow"],
        "narrowing": ["narrow"],
        "morphing": ["least_loss", "Morph", "morph", "Stage"],
        "ensembles": ["coherence", "disagreement", "ensemble", "swag"],
        "cycles": ["Cycle", "fge", "snapshots"],
    },
    {"weightspace.net.WeightspaceError": ["FlowError", "PruneError"]},
)
