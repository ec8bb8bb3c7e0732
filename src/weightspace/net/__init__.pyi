"""Networks and weight vectors: a network is a point of weight space, a difference of networks is a vector."""

from weightspace.net.cost import Cost as Cost
from weightspace.net.errors import ArchitectureMismatch as ArchitectureMismatch
from weightspace.net.errors import InputError as InputError
from weightspace.net.errors import WeightspaceError as WeightspaceError
from weightspace.net.growing import grow as grow
from weightspace.net.model import Model as Model
from weightspace.net.model import fresh as fresh
from weightspace.net.names import prefixes as prefixes
from weightspace.net.net import Net as Net
from weightspace.net.net import checked as checked
from weightspace.net.net import loose as loose
from weightspace.net.net import unfrozen as unfrozen
from weightspace.net.state import math_attention as math_attention
from weightspace.net.weights import Weights as Weights
from weightspace.net.weights import finite as finite
from weightspace.net.weights import squared_distance as squared_distance
from weightspace.net.weights import wide as wide
