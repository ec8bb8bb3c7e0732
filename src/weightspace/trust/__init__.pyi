"""How far the outputs move when the weights do: measured with noise, modelled, expected to first order, proven."""

from weightspace.trust.bounds.certificate import Certificate as Certificate
from weightspace.trust.bounds.certificate import certificate as certificate
from weightspace.trust.bounds.certificate import certificates as certificates
from weightspace.trust.bounds.certificate import lipschitz as lipschitz
from weightspace.trust.bounds.rounding import BoundError as BoundError
from weightspace.trust.expected_displacement import Displacement as Displacement
from weightspace.trust.expected_displacement import displacement as displacement
from weightspace.trust.perturbation import Stability as Stability
from weightspace.trust.perturbation import Step as Step
from weightspace.trust.perturbation import movable as movable
from weightspace.trust.perturbation import perturb as perturb
from weightspace.trust.perturbation import stability as stability
from weightspace.trust.perturbation import width as width
from weightspace.trust.relative import log_relative_trust as log_relative_trust
from weightspace.trust.relative import relative_distances as relative_distances
from weightspace.trust.relative import relative_trust as relative_trust
from weightspace.trust.sensitivity import Breakdown as Breakdown
from weightspace.trust.sensitivity import Sensitivities as Sensitivities
from weightspace.trust.sensitivity import Trust as Trust
from weightspace.trust.sensitivity import breakdown as breakdown
from weightspace.trust.sensitivity import sensitivities as sensitivities
from weightspace.trust.sensitivity import trust_per_example as trust_per_example
