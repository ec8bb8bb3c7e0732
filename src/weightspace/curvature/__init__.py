"""Jacobian, Hessian, Gauss-Newton, Fisher information and tangent kernel of a task at a network."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "gradients": ["squared_gradients", "squares", "traces"],
        "fisher": ["fisher_trace", "FisherTrace", "gradient_noise", "GradientNoise", "Unmeasured"],
        "outputs": ["law_of", "likelihood", "nats", "output_hessian", "OutputHessian"],
        "curvature": ["blocks", "curvature_diagonal", "fisher_information", "gauss_newton", "graph_bytes", "hessian"],
        "linearised": ["jacobian", "Linearised", "tangent", "trusted"],
        "tangent_kernel": ["kernel", "KernelError"],
    },
    {"weightspace.net.WeightspaceError": ["CurvatureError"]},
)
