"""Checkpoints: named tensors in a file, read without running code from it, and written whole or not at all."""

from weightspace.checkpoint.reader import Checkpoint as Checkpoint
from weightspace.checkpoint.reader import finite as finite
from weightspace.checkpoint.reader import read as read
from weightspace.checkpoint.refusal import CheckpointError as CheckpointError
from weightspace.checkpoint.writer import save as save
