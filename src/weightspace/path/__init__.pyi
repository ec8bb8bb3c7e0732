"""A path is a curve of networks."""

from weightspace.path.barrier import Passage as Passage
from weightspace.path.barrier import Rate as Rate
from weightspace.path.barrier import kramers_rate as kramers_rate
from weightspace.path.barrier import minimum_action_path as minimum_action_path
from weightspace.path.diffusion import Action as Action
from weightspace.path.diffusion import action as action
from weightspace.path.diffusion import action_cost as action_cost
from weightspace.path.diffusion import laplacian as laplacian
from weightspace.path.diffusion import path_integral as path_integral
from weightspace.path.diffusion import sgd_temperature as sgd_temperature
from weightspace.path.diffusion import spectral_gap as spectral_gap
from weightspace.path.divergence import Divergence as Divergence
from weightspace.path.loss_plane import Grid as Grid
from weightspace.path.loss_plane import Plane as Plane
from weightspace.path.loss_plane import plane as plane
from weightspace.path.path import Path as Path
from weightspace.path.path import curve as curve
from weightspace.path.path import line as line
from weightspace.path.trail import Trail as Trail
