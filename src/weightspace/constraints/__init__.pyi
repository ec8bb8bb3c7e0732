"""Weights that keep a form: the kinds of constraint, their free parameters, and the nearest constrained network."""

from weightspace.constraints.constraining import constrain as constrain
from weightspace.constraints.constraining import kind as kind
from weightspace.constraints.constraining import kinds_of as kinds_of
from weightspace.constraints.constraining import project as project
from weightspace.constraints.constraining import released as released
from weightspace.constraints.constraining import with_weights as with_weights
from weightspace.constraints.form import Kind as Kind
from weightspace.constraints.fourier import circular as circular
from weightspace.constraints.matrices import LowRank as LowRank
from weightspace.constraints.matrices import Orthogonal as Orthogonal
from weightspace.constraints.ordered import Ordered as Ordered
from weightspace.constraints.shared import Antisymmetric as Antisymmetric
from weightspace.constraints.shared import Asymmetric as Asymmetric
from weightspace.constraints.shared import Circulant as Circulant
from weightspace.constraints.shared import Masked as Masked
from weightspace.constraints.shared import SharedBlocks as SharedBlocks
from weightspace.constraints.shared import Symmetric as Symmetric
from weightspace.constraints.shared import Toeplitz as Toeplitz
