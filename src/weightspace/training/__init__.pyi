"""Averaging and recording training runs without changing them, and measuring critical learning periods."""

from weightspace.training.adapters import lightning_callback as lightning_callback
from weightspace.training.adapters import mlflow as mlflow
from weightspace.training.adapters import scalars as scalars
from weightspace.training.adapters import tensorboard as tensorboard
from weightspace.training.adapters import trainer_callback as trainer_callback
from weightspace.training.adapters import wandb as wandb
from weightspace.training.averages import Average as Average
from weightspace.training.averages import ema as ema
from weightspace.training.averages import lawa as lawa
from weightspace.training.averages import swa as swa
from weightspace.training.critical_periods import CriticalPeriod as CriticalPeriod
from weightspace.training.critical_periods import Row as Row
from weightspace.training.critical_periods import Training as Training
from weightspace.training.critical_periods import critical_period as critical_period
from weightspace.training.deficits import DEFICITS as DEFICITS
from weightspace.training.deficits import blur as blur
from weightspace.training.deficits import label_permutation as label_permutation
from weightspace.training.deficits import noise as noise
from weightspace.training.deficits import vertical_flip as vertical_flip
from weightspace.training.recorder import Recorder as Recorder
from weightspace.training.recording import Record as Record
from weightspace.training.recording import Recording as Recording
from weightspace.training.recording import RecordingError as RecordingError
from weightspace.training.recording import Writer as Writer
