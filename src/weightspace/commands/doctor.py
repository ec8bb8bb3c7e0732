"""`weightspace doctor`: what is installed, which devices and data are found, and whether a network can be read."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
from torch import nn

from weightspace.net.errors import WeightspaceError, first_line
from weightspace.net.model import fresh
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task import datasets

__all__ = ["Finding", "Health", "doctor"]

_NEED = re.compile(r"(?P<name>[\w.-]+)(?P<rest>[^;]*)(;.*extra\s*==\s*['\"](?P<extra>[\w-]+)['\"])?")
_LOADERS = {"mnist": datasets.mnist, "fashion-mnist": datasets.fashion_mnist, "cifar10": datasets.cifar10}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for: what was found, whether it is as it should be, and what to do where it is not.

    `licence`: of a package, as it says itself.
    """

    group: str
    name: str
    found: str
    well: bool
    do: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Health:
    """All findings, in groups. `well`: nothing that weightspace cannot do without is missing."""

    findings: list[Finding]

    @property
    def well(self) -> bool:
        """Whether all that is needed is there."""
        return all(finding.well for finding in self.findings if finding.group in ("needed", "check"))

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {"well": self.well, "findings": [asdict(finding) for finding in self.findings]}


def doctor() -> Health:
    """Look at versions, devices, data sets and extras, and read the symmetry of a small network. Writes nothing.

    >>> from weightspace.commands.doctor import doctor
    >>> doctor().well
    True
    """
    return Health([*_machine(), *_packages(), *_data(), _check()])


def _machine() -> list[Finding]:
    python = platform.python_version()
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} processors"
    where = f"{python} on {platform.system()} {platform.machine()}"
    found = [
        Finding("machine", "python", where, sys.version_info >= (3, 11)),
        Finding("machine", "torch computes with", threads, True),
    ]
    for k in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(k)
        found.append(Finding("machine", f"cuda:{k}", f"{about.name}, {about.total_memory / 1e9:.0f} GB", True))
    if torch.backends.mps.is_available():
        found.append(Finding("machine", "mps", "found", True))
    if len(found) == 2:
        found.append(Finding("machine", "accelerator", "none: everything is computed on the processor", True))
    return found


def _packages() -> list[Finding]:
    """What is needed, and what belongs to extras, with the installed versions."""
    found = [Finding("needed", "weightspace", metadata.version("weightspace"), True)]
    for need in metadata.requires("weightspace") or []:
        parts = _NEED.match(need)
        if parts is None or parts["extra"] in ("dev", "docs"):
            continue
        name, extra = re.sub(r"\[.*", "", parts["name"]), parts["extra"]
        try:
            group, version = f"extra {extra}" if extra else "needed", metadata.version(name)
            found.append(Finding(group, name, version, True, licence=_licence(name)))
        except metadata.PackageNotFoundError:
            do = f"pip install 'weightspace[{extra}]'" if extra else f"pip install '{name}{parts['rest'].strip()}'"
            found.append(Finding(f"extra {extra}" if extra else "needed", name, "missing", False, do))
    return sorted(found, key=lambda finding: finding.group != "needed")


def _licence(name: str) -> str:
    """The licence that an installed package states."""
    about = metadata.metadata(name)
    stated = next((about[key] for key in ("License-Expression", "License") if key in about), "")
    kinds = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
    return stated if stated and len(stated.splitlines()) == 1 else ", ".join(kinds) or "not stated"


def _data() -> list[Finding]:
    """Which data sets can be opened."""
    place = os.environ.get("WEIGHTSPACE_DATA")
    found = [Finding("data", "digits", f"{len(datasets.digits())} examples for training, embedded", True)]
    for name, load in _LOADERS.items():
        try:
            found.append(Finding("data", name, f"{len(load(split='test')):,} examples for testing", True))
        except WeightspaceError as error:
            said = first_line(error) if place else "not found"
            do = "" if place else "set WEIGHTSPACE_DATA to the folder of its official files"
            found.append(Finding("data", name, said, False, do))
    return found


def _small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


def _check() -> Finding:
    """Whether the symmetry of a small network is read as it should be."""
    try:
        net = fresh(_small, seed=0)
        group = str(Symmetry.of(net, torch.zeros(2, 4)))
    except Exception as error:
        return Finding("check", "a network is read", first_line(error), False, "install the versions that are needed")
    return Finding("check", "a network is read", group, group == "S16 x R+16", "")
