"""The canonical orientation of axes that matrices move: the eigenvectors of their second moments as coordinates.

For an axis, let M = sum_p A_p A_p^T over its places p, each as a matrix (units, everything else). Permutations and
rotations of all other axes leave M alone, and a rotation R of its own makes it R M R^T, so that the coordinates in
which M is diagonal belong to the orbit, up to the order and the signs of the eigenvectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from weightspace.net.errors import SymmetryError
from weightspace.net.net import Net
from weightspace.symmetry.axis import MATRICES, Generator, Place
from weightspace.symmetry.balance import balancing
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group
from weightspace.symmetry.matrix import complement, on_all

__all__ = ["upright"]


_APART = 1e-9  # eigenvalues closer than this, relative to the largest, are a tie


def upright(group: Group, net: Net, discrete: Callable[[Group, Net], Element]) -> Element:
    """The element that balances a folded network, turns its axes upright, and then settles the discrete moves.

    Signs of the coordinates of a stream are those of their inner products with one fixed vector of the embeddings,
    heads and biases; order and signs inside of heads are settled by `discrete`, which is given the group of
    permutations and signs that are left. Raises `SymmetryError` where two eigenvalues are equal, or a sign is not
    determined.
    """
    element = balancing(group, net.tensors, tolerance=1e-13, sweeps=2000, strict=True)
    net = net.double()
    for kind in MATRICES:
        turns = {}
        for k, generator in enumerate(group.generators):
            if generator.kind == kind:
                find = _heads if kind == "linear" or group[generator.axis].over else _stream
                turns[k] = find(group, generator, element(net))
        element = Element(group, group.identity().permutations, turns) @ element
    rest, number = _rest(group)
    found = discrete(rest, element(net))
    factors = {number[k]: f for k, f in found.factors.items()}
    factors = {k: _as_matrix(group, k, f) if element.is_matrix(k) else f for k, f in factors.items()}
    return Element(group, {**group.identity().permutations, **found.permutations}, factors) @ element


def _as_matrix(group: Group, k: int, signs: Tensor) -> Tensor:
    """Signs as matrices: one for every unit, or for both coordinates of a pair."""
    if group.generators[k].proper:
        signs = signs[..., None].expand(*signs.shape, 2)
    return torch.diag_embed(signs.double())


def _rest(group: Group) -> tuple[Group, list[int]]:
    """The group of what is left, and the number that each of its generators has in the whole group.

    Streams are settled; what general linear moves leave is an order and signs, and the rotations of a pair half a turn,
    which is a sign of the axis of pairs.
    """
    generators, number = [], []
    kinds: dict[str, tuple[str, ...]] = {}
    for k, g in enumerate(group.generators):
        if g.kind == "orthogonal" and not group[g.axis].over:
            kinds[g.axis] = ()
            continue
        if g.proper:
            axis = group[g.axis].over[-1]
            kinds |= {g.axis: (), axis: (*group[axis].kinds, "sign")}
            at = [(p.block, group.blocks[p.block].leaves.index(axis)) for p, _ in g.exponents]
            g = Generator(axis, "sign", tuple((Place(*place), 1.0) for place in at))
        elif g.kind in MATRICES:
            kinds[g.axis] = ("permutation", "sign")
            g = Generator(g.axis, "sign", tuple((place, 1.0) for place, _ in g.exponents))
        generators.append(g)
        number.append(k)
    axes = [replace(axis, kinds=kinds.get(axis.name, axis.kinds)) for axis in group.every]
    rest = group.again(every=axes, generators=generators, gauge=(), free=(), exchanges=())
    return rest, number


def _rows(group: Group, generator: Generator, net: Net) -> Iterator[tuple[Tensor, bool, float]]:
    """The axis at each of its places as (outer.., units, rest), whether nothing else moves there, and the exponent."""
    moving = {a.name for a in group.axes}
    for place, exponent in generator.exponents:
        block = group.blocks[place.block]
        alone = not moving & {leaf for d, leaf in enumerate(block.leaves) if d != place.leaf}
        yield group.units(block, place.leaf, net.tensors[block.tensor].detach().contiguous()), alone, exponent


def _stream(group: Group, generator: Generator, net: Net) -> Tensor:
    n = group[generator.axis].size
    moments, anchor = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    source = torch.Generator().manual_seed(0)
    for rows, alone, _ in _rows(group, generator, net):
        moments += rows @ rows.T
        if alone:
            anchor += rows @ torch.randn(rows.shape[1], generator=source, dtype=torch.float64)
    basis = complement(n) if generator.ones else torch.eye(n, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(basis.T @ moments @ basis)
    _check_apart(generator, values)
    along = vectors.T @ basis.T @ anchor
    if bool((along.abs() <= _APART * anchor.norm()).any()):
        raise SymmetryError(
            f"{generator.axis} has no canonical rotation: the sign of a coordinate is not determined by the tensors in "
            "which nothing else moves"
        )
    turn = along.sign()[:, None] * vectors.T
    return on_all(turn.flip(0), basis) if generator.ones else turn.flip(0)


def _heads(group: Group, generator: Generator, net: Net) -> Tensor:
    moments = sum(rows @ rows.mT for rows, _, exponent in _rows(group, generator, net) if exponent > 0)
    assert isinstance(moments, Tensor)
    values, vectors = torch.linalg.eigh(moments)
    if bool(_ties(values).any()) and not generator.proper and (turn := _anchored(group, generator, net)) is not None:
        return turn
    _check_apart(generator, values)
    turn = vectors.mT.flip(-2)
    if generator.proper:
        turn[..., 1, :] *= torch.linalg.det(turn).sign()[..., None]
    return turn


def _anchored(group: Group, generator: Generator, net: Net) -> Tensor | None:
    """Where nothing else moves: Q^T for sum_p A_p C_p = Q T, T upper triangular with T_ii > 0, C_p fixed matrices.

    For factors whose second moments are all alike, as of a pair of low rank of which one factor is still zero.
    """
    sizes, source = group.sizes(group[generator.axis]), torch.Generator().manual_seed(0)
    anchor = torch.zeros(*sizes, sizes[-1], dtype=torch.float64)
    for rows, alone, exponent in _rows(group, generator, net):
        if alone and exponent > 0:
            anchor += rows @ torch.randn(rows.shape[-1], sizes[-1], generator=source, dtype=torch.float64)
    q, r = torch.linalg.qr(anchor)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    if bool((diagonal.abs() <= _APART * anchor.abs().max()).any()):
        return None
    return (q * diagonal.sign()[..., None, :]).mT


def _ties(values: Tensor) -> Tensor:
    return values.diff(dim=-1) <= _APART * values[..., -1:]


def _check_apart(generator: Generator, values: Tensor) -> None:
    if bool(_ties(values).any()):
        raise SymmetryError(
            f"{generator.axis} has no canonical rotation: two of its second moments are equal to 9 digits, and the "
            "coordinates of that plane are not determined"
        )
