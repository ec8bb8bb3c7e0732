"""Copies up to symmetry: members whose canonical forms agree, told by short random projections of these.

A hash of rounded numbers would not do: of a million numbers some always lie at the edge of a step of the rounding, and
rounding errors of a renumbered and rescaled copy take them across. So the canonical form x is projected once,

    s_b = sum over entries i with h(i) = b of e_i x_i,    h(i) in 0 .. 255 and signs e_i drawn by name and shape,

which keeps distances (E |s - t|^2 = |x - y|^2, standard error 9 % of it), and two members are on one orbit where
|s - t| <= 1e-5 max(|s|, |t|). A network fine-tuned by more than that is another one.

Source: Charikar, Chen, Farach-Colton, Finding frequent items in data streams, 2002 (count sketch).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from sqlalchemy import select, update

from weightspace.atlas.holdings import Holdings
from weightspace.atlas.members import Member
from weightspace.atlas.records import Sketches
from weightspace.atlas.sketches import sketch
from weightspace.atlas.tables import architectures, networks
from weightspace.checkpoint import architecture, files
from weightspace.net.inputs import carried
from weightspace.net.net import Net
from weightspace.symmetry import saved
from weightspace.symmetry.symmetry import Symmetry

__all__ = ["Orbits", "group_of", "orbit_of", "projected"]

SAME = 1e-5


@dataclass
class Orbits:
    """Names of members that are one network up to symmetry, and the reasons why some could not be asked."""

    groups: list[list[str]] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def projected(tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """256 random projections of named tensors, in float64: the sum of the sketches of all (see `sketch`).

    >>> import weightspace as ws
    >>> from weightspace.atlas.orbits import projected
    >>> net, _ = ws.demo.example()
    >>> far = projected((net + net.weights).tensors) - projected(net.tensors)
    >>> bool(abs((far**2).sum() / float(net.weights.norm()) ** 2 - 1) < 0.3)
    True
    """
    return sketch(tensors).numbers.sum(0).numpy()


def group_of(held: Holdings, member: Member, net: Net | None = None) -> Symmetry:
    """The symmetry group of a member's architecture: read and verified once, then kept in the catalogue.

    `net`: that of the member, where it is open already. Raises `WeightspaceError` where the architecture is not known,
    the group cannot be read, or there is no example of an input.
    """
    if net is None:
        held.template(member)  # refuses one that is not known, or changed since
    a = architectures.c
    mine = a.fingerprint == member.fingerprint, a.made == member.made
    with held.catalogue.reading() as connection:
        row = connection.execute(select(a.example, a.certificate).where(*mine)).one()
    if row.certificate:
        return saved.from_json(files.parse(row.certificate), Symmetry, f"the group of {member.made}")
    net = held.net(member) if net is None else net
    example = architecture.parse_example(row.example) if row.example else architecture.example_of(net.module())
    group = Symmetry.of(net, carried(example, net))
    with held.catalogue.writing() as connection:
        connection.execute(update(architectures).where(*mine).values(certificate=json.dumps(group.as_json())))
    return group


def orbit_of(held: Holdings, sketches: Sketches, member: Member) -> str:
    """The orbit of a member: the key of the first member found on it. Computed once, and kept in the catalogue.

    Raises `WeightspaceError` where the architecture is not known, or has no canonical form.
    """
    if member.orbit is not None:
        return member.orbit
    net = held.net(member)
    method = f"canonical-{hashlib.sha256(f'{member.made} {net.fingerprint}'.encode()).hexdigest()[:32]}"
    known = sketches.of(method)
    if member.key not in known:
        known[member.key] = projected(group_of(held, member, net).canonical(net.double()).tensors)
        sketches.put(method, {member.key: known[member.key]})
    orbits = {one.key: one.orbit for one in held.listed(networks.c.orbit.is_not(None))}
    orbit = member.key
    for key, other in known.items():
        if orbits.get(key) is not None and _near(other, known[member.key]):
            orbit = str(orbits[key])
            break
    with held.catalogue.writing() as connection:
        connection.execute(update(networks).where(networks.c.name == member.name).values(orbit=orbit))
    return orbit


def _near(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.linalg.norm(a - b) <= SAME * max(np.linalg.norm(a), np.linalg.norm(b)))
