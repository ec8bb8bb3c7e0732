"""Metrics on weight space: the length of a step, the steepest direction, and optimisers that follow it."""

from weightspace.metric.across_architectures import Distances as Distances
from weightspace.metric.across_architectures import LayerPair as LayerPair
from weightspace.metric.across_architectures import distances as distances
from weightspace.metric.distance import TensorDistance as TensorDistance
from weightspace.metric.distance import euclidean as euclidean
from weightspace.metric.distance import functional as functional
from weightspace.metric.distance import layerwise as layerwise
from weightspace.metric.metric import Adam as Adam
from weightspace.metric.metric import Euclidean as Euclidean
from weightspace.metric.metric import Metric as Metric
from weightspace.metric.metric import Relative as Relative
from weightspace.metric.metric import Remembering as Remembering
from weightspace.metric.metric import Spectral as Spectral
from weightspace.metric.metric import by_layer as by_layer
from weightspace.metric.null_space import NullSpace as NullSpace
from weightspace.metric.optim import Fromage as Fromage
from weightspace.metric.optim import Lamb as Lamb
from weightspace.metric.pullback import Pullback as Pullback
