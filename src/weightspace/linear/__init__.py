"""Linear algebra by matrix-vector products: operators, eigenvalues, traces, log-determinants, norms, assignment."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "weightspace.net.cost": ["Cost"],
        "norms": ["convolution_bound", "convolution_norm", "rough_bound", "spectral_bound", "spectral_norm"],
        "estimate": ["Bracket", "Estimate", "Linear", "OperatorError"],
        "krylov": ["eigenvalues", "Krylov", "lanczos"],
        "determinants": ["bracket", "cost", "logdet", "Nystrom", "nystrom"],
        "traces": ["diagonal", "trace"],
        "operator": ["cgls", "Operator"],
    },
    {"weightspace.net.WeightspaceError": ["AssignmentError"]},
)
