"""Linear algebra by matrix-vector products: operators, eigenvalues, traces, log-determinants, norms, assignment."""

from weightspace.linear.determinants import Nystrom as Nystrom
from weightspace.linear.determinants import bracket as bracket
from weightspace.linear.determinants import cost as cost
from weightspace.linear.determinants import logdet as logdet
from weightspace.linear.determinants import nystrom as nystrom
from weightspace.linear.estimate import Bracket as Bracket
from weightspace.linear.estimate import Estimate as Estimate
from weightspace.linear.estimate import Linear as Linear
from weightspace.linear.estimate import OperatorError as OperatorError
from weightspace.linear.krylov import Krylov as Krylov
from weightspace.linear.krylov import eigenvalues as eigenvalues
from weightspace.linear.krylov import lanczos as lanczos
from weightspace.linear.norms import convolution_bound as convolution_bound
from weightspace.linear.norms import convolution_norm as convolution_norm
from weightspace.linear.norms import rough_bound as rough_bound
from weightspace.linear.norms import spectral_bound as spectral_bound
from weightspace.linear.norms import spectral_norm as spectral_norm
from weightspace.linear.operator import Operator as Operator
from weightspace.linear.operator import cgls as cgls
from weightspace.linear.traces import diagonal as diagonal
from weightspace.linear.traces import trace as trace
from weightspace.net.cost import Cost as Cost
