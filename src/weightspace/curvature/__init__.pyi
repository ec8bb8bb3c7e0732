"""Jacobian, Hessian, Gauss-Newton, Fisher information and tangent kernel of a task at a network."""

from weightspace.curvature.curvature import blocks as blocks
from weightspace.curvature.curvature import curvature_diagonal as curvature_diagonal
from weightspace.curvature.curvature import fisher_information as fisher_information
from weightspace.curvature.curvature import gauss_newton as gauss_newton
from weightspace.curvature.curvature import graph_bytes as graph_bytes
from weightspace.curvature.curvature import hessian as hessian
from weightspace.curvature.fisher import FisherTrace as FisherTrace
from weightspace.curvature.fisher import GradientNoise as GradientNoise
from weightspace.curvature.fisher import Unmeasured as Unmeasured
from weightspace.curvature.fisher import fisher_trace as fisher_trace
from weightspace.curvature.fisher import gradient_noise as gradient_noise
from weightspace.curvature.gradients import squared_gradients as squared_gradients
from weightspace.curvature.gradients import squares as squares
from weightspace.curvature.gradients import traces as traces
from weightspace.curvature.linearised import Linearised as Linearised
from weightspace.curvature.linearised import jacobian as jacobian
from weightspace.curvature.linearised import tangent as tangent
from weightspace.curvature.linearised import trusted as trusted
from weightspace.curvature.outputs import OutputHessian as OutputHessian
from weightspace.curvature.outputs import law_of as law_of
from weightspace.curvature.outputs import likelihood as likelihood
from weightspace.curvature.outputs import nats as nats
from weightspace.curvature.outputs import output_hessian as output_hessian
from weightspace.curvature.tangent_kernel import KernelError as KernelError
from weightspace.curvature.tangent_kernel import kernel as kernel
