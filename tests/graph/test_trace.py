"""Exporting a module: nothing is printed or logged on the way, and what is logged later is heard."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import nn

from weightspace.graph.trace import quiet, trace


class Loud(nn.Module):
    def forward(self, x):
        logging.getLogger("loud").critical("in a call")
        warnings.warn("in a call", stacklevel=1)
        return 2 * x


def test_an_export_is_silent_and_what_is_logged_after_it_is_heard():
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record):
            heard.append(record.getMessage())

    logger, ear = logging.getLogger("loud"), Ear()
    logger.addHandler(ear)
    try:
        with quiet():
            logger.critical("inside")
        assert trace(Loud(), torch.zeros(2)).nodes and not heard
        logger.critical("outside")
    finally:
        logger.removeHandler(ear)
    assert heard == ["outside"]
