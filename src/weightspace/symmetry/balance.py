"""Scale balancing: of all positive rescalings of a network, the one of least norm.

For scale generators k with factors exp(t_k[x]), |g w|^2 = sum_j n_j exp(2 sum_k e_jk t_k) over all tensors that a scale
moves, running statistics too, is convex in t, and no direction leaves all of them alone, so that the minimum is one
point per orbit (Rueger and Ossen, The metric structure of weight space, 1997; Stock, Graham, Gribonval and Jegou,
Equi-normalization of neural networks, 2019). Coordinate descent with a Newton step per unit finds it, between steps
common to all units of an axis.

There is no minimum along a scale that only shrinks nonzero weights: a direction under weight normalisation, a dead
unit, a low-rank pair of which one factor is still zero. These units are idle. Their weights are left out of the norm,
and brought nearest one instead: sum_j (log |w_j| + sum_k e_jk t_k)^2 is minimised, which again has one solution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightspace.net.errors import SymmetryError
from weightspace.net.net import Net
from weightspace.symmetry.axis import Generator, Place
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group
from weightspace.symmetry.matrix import root
from weightspace.symmetry.moved import Moved

__all__ = ["balance", "balancing", "unit_variances"]


_ROOM = 1 << 21  # numbers
_MOST_STEPS, _NEWTON = 2000, 8
_ROUNDING, _LOST = 1e-13, 1e-5
_MOST_TURNS, _RANK = 500, 1e-10
_HISTORY, _STALE = 8, 30  # turns without half the step: rounding


def balancing(
    group: Group, tensors: Mapping[str, Tensor], tolerance: float = 1e-5, sweeps: int = 500, strict: bool = False
) -> Element:
    """The element of positive scales and of general linear moves that minimises the norm of `tensors`.

    With X and Y the sums of outer products of the units where M and where M^-T acts, tr(M X M^T) + tr(M^-T Y M^-1) is
    least where S = M^T M solves S X S = Y: S = X^-1/2 (X^1/2 Y X^1/2)^1/2 X^-1/2, and M = S^1/2 up to a rotation.
    Scales and matrices take turns, accelerated, until neither moves. `strict`: raise `SymmetryError` where there is no
    minimum, because scales together shrink without end what none of them shrinks alone (BatchNorm with eps = 0).
    """
    found = _scales(group, tensors, tolerance, sweeps, strict)
    chosen = {k: g for k, g in enumerate(group.generators) if g.kind == "linear"}
    mixing, least, stale = _Anderson(), math.inf, 0
    whole: dict[int, tuple[Tensor, Tensor]] = {}
    for _ in range(_MOST_TURNS if chosen else 0):
        after = _turn(group, tensors, found, chosen, whole)
        if any(k not in chosen for k in found.factors):  # scales too
            after = _scales(group, Moved(after, tensors, torch.float64), tolerance, sweeps, strict) @ after
        before, now = _logs(found, after), _logs(after, after)
        step = float((now - before).abs().max())
        least, stale = (step, 0) if step < least / 2 else (least, stale + 1)
        if step < max(tolerance, 1e-12) or stale >= _STALE:
            return after
        found = _from_logs(after, mixing.next(before, now))
    return found


def _turn(
    group: Group,
    tensors: Mapping[str, Tensor],
    found: Element,
    chosen: Mapping[int, Generator],
    whole: dict[int, tuple[Tensor, Tensor]],
) -> Element:
    """The element after one general linear move of every generator to its least norm, the others held.

    `whole`: which second moments had full rank at first; filled in at the first turn.
    """
    grams = _unit_products(group, tensors, found, chosen)
    turns = {}
    for k in chosen:
        x, y = grams[k][1.0], grams[k][-1.0]
        turns[k] = _levelled(_even(x, y, whole.setdefault(k, (_whole(x), _whole(y)))), x, y)
    return Element(group, group.identity().permutations, turns) @ found


def _logs(element: Element, like: Element) -> Tensor:
    """The factors of an element as one vector: log f for scales, log M^T M for matrices, for those that `like` has."""
    parts = []
    for k, met in like.factors.items():
        factor = element.factors[k].double() if k in element.factors else None
        if not element.is_matrix(k):
            parts.append(torch.zeros_like(met) if factor is None else factor.log())
            continue
        eye = torch.eye(met.shape[-1], dtype=torch.float64).expand(met.shape)
        values, vectors = torch.linalg.eigh(eye if factor is None else factor.mT @ factor)
        parts.append((vectors * values.clamp_min(1e-300).log()[..., None, :]) @ vectors.mT)
    return torch.cat([part.flatten() for part in parts])


def _from_logs(like: Element, vector: Tensor) -> Element:
    """The element of `_logs`, its matrices symmetric: a rotation before them changes no norm."""
    factors, parts = {}, vector.split([f.numel() for f in like.factors.values()])
    for (k, met), part in zip(like.factors.items(), parts, strict=True):
        log = part.reshape(met.shape)
        factors[k] = torch.linalg.matrix_exp((log + log.mT) / 4) if like.is_matrix(k) else log.exp()
    return Element(like.group, like.permutations, factors)


class _Anderson:
    """Anderson's acceleration of a fixed-point map x -> y.

    The next point is the combination of the last images y whose residuals y - x cancel best; where a residual grows,
    the history is dropped and the plain step taken. Anderson, Iterative procedures for nonlinear integral equations,
    1965.
    """

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.residuals: list[Tensor] = []

    def next(self, point: Tensor, image: Tensor) -> Tensor:
        """The next point."""
        residual = image - point
        if self.residuals and float(residual.norm()) > float(self.residuals[-1].norm()):
            self.images, self.residuals = [], []
        self.images, self.residuals = [*self.images[-_HISTORY:], image], [*self.residuals[-_HISTORY:], residual]
        if len(self.images) < 2:
            return image
        changes = torch.stack([residual - r for r in self.residuals[:-1]], 1)
        weights = torch.linalg.lstsq(changes, residual[:, None], driver="gelsd").solution[:, 0]
        return image - torch.stack([image - y for y in self.images[:-1]], 1) @ weights


def _scales(group: Group, tensors: Mapping[str, Tensor], tolerance: float, sweeps: int, strict: bool) -> Element:
    slice_ = _Slice(group, tensors)
    before = step = math.inf
    for _ in range(sweeps):
        slice_.level()
        step = slice_.sweep()
        left = step / max(1 - step / before, 0.01) if before else 0.0  # a geometric series of steps
        if left < tolerance or step < _ROUNDING:
            break
        before = step
    else:
        if strict and step > _LOST:
            raise SymmetryError(
                f"the scales have no point of least norm: after {sweeps} sweeps a step is still {step:.1e}; several "
                "scales together shrink some weights without end. Read the group with scales=False"
            )
    slice_.rest()
    return Element(group, {}, {k: t.exp() for k, t in slice_.logs.items()})


def _unit_products(
    group: Group, tensors: Mapping[str, Tensor], element: Element, chosen: Mapping[int, Generator]
) -> dict[int, dict[float, Tensor]]:
    """For every generator and exponent the sum over its places of the outer products of units, one tensor at a time."""
    found: dict[int, dict[float, Tensor]] = {k: {} for k in chosen}
    held: dict[str, list[tuple[int, Place, float]]] = {}
    for k, generator in chosen.items():
        for place, exponent in generator.exponents:
            held.setdefault(group.blocks[place.block].tensor, []).append((k, place, exponent))
    for name, met in held.items():
        tensor = element.move(name, tensors[name].double())
        for k, place, exponent in met:
            rows = group.units(group.blocks[place.block], place.leaf, tensor)
            gram = rows @ rows.mT
            found[k][exponent] = found[k][exponent] + gram if exponent in found[k] else gram
    return found


def _even(x: Tensor, y: Tensor, whole: tuple[Tensor, Tensor]) -> Tensor:
    """M = S^1/2 with S X S = Y where both have full rank; `whole` says which do, for every outer index.

    Where one has less there is no least norm: M makes the whole one even, at that size at which both are as large.
    Where neither has full rank nothing is moved.
    """
    eye = torch.eye(x.shape[-1], dtype=torch.float64)
    first, second = (flag[..., None, None] for flag in whole)
    x, y = torch.where(first, x.double(), eye), torch.where(second, y.double(), eye)
    up, down = root(x, 0.5), root(x, -0.5)
    both = root(down @ root(up @ y @ up, 0.5) @ down, 0.5)
    return torch.where(first, torch.where(second, both, down), torch.where(second, root(y, 0.5), eye))


def _levelled(matrix: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """c M with |c M A| = |(c M)^-T C|, where neither is zero."""
    back = torch.linalg.inv(matrix)
    sizes = [torch.einsum("...ij,...jk,...ik->...", m, g.double(), m) for m, g in ((matrix, x), (back.mT, y))]
    alike = (sizes[0] > 0) & (sizes[1] > 0)
    scale = torch.where(alike, sizes[1] / sizes[0].clamp_min(1e-300), 1.0) ** 0.25
    return scale[..., None, None] * matrix


def _whole(gram: Tensor) -> Tensor:
    """Whether each of a batch of second moments has full rank."""
    values = torch.linalg.eigvalsh(gram.double())
    return values[..., 0] > _RANK * values[..., -1].clamp_min(1e-300)


def balance(group: Group, net: Net, tolerance: float = 1e-5) -> Net:
    """The same function with balanced scales. Raises `SymmetryError` for NaN and infinity."""
    group.check(net)
    if bad := [*net.weights.unusable(), *net.state.unusable()]:
        raise SymmetryError(f"{bad[0]} holds NaN or infinity; there is nothing to balance")
    return balancing(group, net.tensors, tolerance, strict=True)(net)


def unit_variances(group: Group, net: Net) -> Net:
    """The same function with every running variance v set to 1 - eps, and the gain of its norm over sqrt(v + eps).

    A layer before BatchNorm may be scaled together with its statistics; the outputs change by eps alone. Here the scale
    moves into the gain, where an exact symmetry undoes it. A variance that a scale of the group moves stays as it is.
    """
    scaled = {group.blocks[block].tensor for block, _ in group.exponents_at if _is_scaled(group, block)}
    tensors, new = net.tensors, {}
    for prefix, module in net.architecture.named_modules():
        if not isinstance(module, nn.modules.batchnorm._NormBase):
            continue
        gain, variance = (f"{prefix}.{part}".lstrip(".") for part in ("weight", "running_var"))
        if gain not in tensors or variance not in tensors or variance in scaled or gain in new:
            continue
        spread = tensors[variance].double() + module.eps
        if bool(((spread > 0) & spread.isfinite()).all()):
            new[gain] = (tensors[gain].double() / spread.sqrt()).to(tensors[gain])
            new[variance] = torch.full_like(tensors[variance], 1 - module.eps)
    weights, state = ({n: t for n, t in new.items() if n in part} for part in (net.weights, net.state))
    return net.at(net.weights.replace(weights), net.state.replace(state)) if new else net


def _is_scaled(group: Group, block: int) -> bool:
    """Whether a scale moves a block."""
    return any(
        group.generators[k].kind == "scale" and e
        for leaf in range(len(group.blocks[block].leaves))
        for k, e in group.exponents_at.get((block, leaf), ())
    )


class _Slice:
    """The optimisation problem: logarithms t_k of the factors, and the squared norms that they lead to."""

    def __init__(self, group: Group, tensors: Mapping[str, Tensor]) -> None:
        self.group, self.tensors = group, tensors
        self.chosen = {k: g for k, g in enumerate(group.generators) if g.kind == "scale"}
        self.logs = {k: torch.zeros(group.sizes(group[g.axis]), dtype=torch.float64) for k, g in self.chosen.items()}
        self.scaled = {(p.block, p.leaf) for g in self.chosen.values() for p, _ in g.exponents}
        self.blocks = sorted({block for block, _ in self.scaled})
        self._kept: dict[int, Tensor] = {}
        self._room = _ROOM
        self.live = {k: torch.ones_like(t) for k, t in self.logs.items()}
        while any([self._retire(k) for k in self.chosen]):
            pass

    def _retire(self, k: int) -> bool:
        """Find the idle units of a generator: those whose weights can only shrink, or only grow."""
        norms = self.norms(self.chosen[k])
        up, down = (sum((n for e, n in norms.items() if e * side > 0), torch.zeros(())) for side in (1, -1))
        idle = (self.live[k] > 0) & ~((up > 0) & (down > 0))
        self.live[k] = self.live[k].masked_fill(idle, 0.0)
        return bool(idle.any())

    def sweep(self) -> float:
        """Minimise over all factors of one unit, for every unit, an axis at a time; return the largest step."""
        largest = 0.0
        for axis in dict.fromkeys(g.axis for g in self.chosen.values()):
            mine = [k for k, g in self.chosen.items() if g.axis == axis]
            places = list(dict.fromkeys(p for k in mine for p, _ in self.chosen[k].exponents))
            exponents = torch.zeros(len(places), len(mine), dtype=torch.float64)
            for j, k in enumerate(mine):
                for place, e in self.chosen[k].exponents:
                    exponents[places.index(place), j] = e
            norms = torch.stack([self.at(place).flatten() for place in places])
            shared = torch.tensor([sum(p.block == q.block for q in places) for p in places], dtype=torch.float64)
            steps = _newton(exponents, norms, shared)
            for k, step in zip(mine, steps, strict=True):
                self.logs[k] += (step.reshape(self.logs[k].shape)) * self.live[k]
            largest = max(largest, float(steps.abs().max()))
        return largest

    def level(self) -> None:
        """Minimise over one common factor per generator, for all generators at once.

        Imbalance between layers converges slowly in sweeps; here it is a small convex problem of its own.
        """
        both = [k for k, g in self.chosen.items() if {e > 0 for _, e in g.exponents} == {True, False}]
        if len(both) < 2:
            return
        exponents = torch.zeros(len(self.blocks), len(both), dtype=torch.float64)
        row = {number: i for i, number in enumerate(self.blocks)}
        for j, k in enumerate(both):
            for place, exponent in self.chosen[k].exponents:
                exponents[row[place.block], j] += exponent
        norms = torch.stack([self.norm(number) for number in self.blocks])
        for k, shift in zip(both, _common(norms, exponents).tolist(), strict=True):
            self.logs[k] += shift

    def rest(self) -> None:
        """Bring the weights of idle units nearest one: least squares in logarithms, by conjugate gradients."""
        idle = {k: 1 - live for k, live in self.live.items() if bool((live == 0).any())}
        met = {p.block for k in idle for p, _ in self.chosen[k].exponents}
        logs, masks = {}, {}
        for number in sorted(met):
            squares, touched = self._squares(number), self._spread(number, idle)
            masks[number] = (squares > 0) & (touched != 0)
            logs[number] = squares.clamp(min=1e-300).log() / 2 + self._spread(number, self.logs, signed=True)

        def back(residual: Mapping[int, Tensor]) -> dict[int, Tensor]:
            return {k: self._gathered(k, residual, masks) * on for k, on in idle.items()}

        def forth(t: Mapping[int, Tensor]) -> dict[int, Tensor]:
            return {number: self._spread(number, t, signed=True) * masks[number] for number in masks}

        r = {k: -v for k, v in back(logs).items()}
        found = {k: torch.zeros_like(v) for k, v in r.items()}
        step, size = r, _square(r)
        least = 1e-28 * size
        for _ in range(_MOST_STEPS):
            if size <= least:
                break
            moved = forth(step)
            length = size / _square(moved)
            found = {k: t + length * step[k] for k, t in found.items()}
            turn = back(moved)
            r = {k: v - length * turn[k] for k, v in r.items()}
            size, before = _square(r), size
            step = {k: v + size / before * step[k] for k, v in r.items()}
        for k, t in found.items():
            self.logs[k] += t

    def _spread(self, number: int, tables: Mapping[int, Tensor], signed: bool = False) -> Tensor:
        """sum_k e_k t_k over the leaves of a block, or of |e_k| t_k."""
        block, value = self.group.blocks[number], self._squares(number)
        total = torch.zeros_like(value)
        for leaf in range(len(block.leaves)):
            for k, e in self.group.exponents_at.get((number, leaf), ()):
                if k in tables:
                    total = total + (e if signed else abs(e)) * self.group.spread(tables[k], block, leaf)
        return total

    def _gathered(self, k: int, values: Mapping[int, Tensor], masks: Mapping[int, Tensor]) -> Tensor:
        """The transpose of `_spread`."""
        total = torch.zeros_like(self.logs[k])
        for place, e in self.chosen[k].exponents:
            if place.block in values:
                value = (values[place.block] * masks[place.block]).to(torch.float64)
                total = total + e * self.group.gather(value, self.group.blocks[place.block], place.leaf)
        return total

    def norms(self, generator: Generator) -> dict[float, Tensor]:
        """Exponent -> squared norm of the places with that exponent, for every unit, at the present scales."""
        sums: dict[float, Tensor] = {}
        for place, exponent in generator.exponents:
            table = self.at(place)
            sums[exponent] = sums[exponent] + table if exponent in sums else table
        return sums

    def at(self, place: Place) -> Tensor:
        """Squared norms of the units at a place, at the present scales."""
        return self._sum(place.block, self.group.dims_of(self.group.blocks[place.block], place.leaf))

    def norm(self, number: int) -> Tensor:
        """Squared norm of a block at the present scales."""
        return self._sum(number, [])

    def _sum(self, number: int, keep: list[int]) -> Tensor:
        """Squares of a block times all factors, summed over the leaves that are not kept."""
        block, value = self.group.blocks[number], self._squares(number)
        operands: list[object] = [value, list(range(value.dim()))]
        for leaf in range(len(block.leaves)):
            met = [(k, e) for k, e in self.group.exponents_at.get((number, leaf), ()) if k in self.logs]
            if met:
                factor = torch.stack([2 * e * self.logs[k] for k, e in met]).sum(0).exp()
                for k, _ in met:
                    factor = factor * self.live[k]
                operands += [factor, self.group.dims_of(block, leaf)]
        return torch.einsum(*operands, keep)

    def _squares(self, number: int) -> Tensor:
        """Squared entries, summed over the leaves that no scale touches; cached while there is room."""
        if number in self._kept:
            return self._kept[number]
        block = self.group.blocks[number]
        if block.tensor not in self.tensors:
            return torch.zeros([1] * len(block.leaves), dtype=torch.float64)
        value = self.group.view(block, self.tensors[block.tensor].detach().contiguous())
        keep = {leaf for b, leaf in self.scaled if b == number}
        keep |= {block.leaves.index(o) for leaf in keep for o in self.group[str(block.leaves[leaf])].over}
        gone = [d for d in range(value.dim()) if d not in keep]
        if gone:  # a part at a time: squares in float64 are twice the tensor
            longest = max(gone, key=lambda d: value.shape[d])
            length = max(1, _ROOM * value.shape[longest] // max(value.numel(), 1))
            parts = value.split(length, longest)
            value = sum(part.to(torch.float64, copy=True).square_().sum(gone, keepdim=True) for part in parts)
        else:
            value = value.to(torch.float64, copy=True).square_()
        value = value.cpu()  # where the factors are
        if value.numel() <= self._room:
            self._room -= value.numel()
            self._kept[number] = value
        return value


def _square(tables: Mapping[int, Tensor]) -> float:
    return sum(float(t.square().sum()) for t in tables.values())


def _common(norms: Tensor, exponents: Tensor) -> Tensor:
    """argmin_t sum_b n_b exp(2 (E t)_b) by Newton steps; directions without a minimum stay where they are."""
    t = torch.zeros(exponents.shape[1], dtype=torch.float64)
    alive = (norms @ exponents.clamp(min=0) > 0) & (norms @ exponents.clamp(max=0) < 0)
    matrix = exponents * alive
    for _ in range(50):
        now = norms * (2 * matrix @ t).exp()
        slope, curvature = matrix.T @ now, 2 * matrix.T @ (now[:, None] * matrix)
        step = -torch.linalg.pinv(curvature, hermitian=True) @ slope
        while float((norms * (2 * matrix @ (t + step)).exp()).sum()) > float(now.sum()) * (1 + 1e-12):
            step = step / 2
        t = t + step
        if float(step.abs().max()) < 1e-9:
            break
    return t


def _newton(exponents: Tensor, norms: Tensor, shared: Tensor) -> Tensor:
    """argmin_t sum_j n_j exp(2 (E t)_j) for every column of `norms` by itself, as (generators, units).

    A place counts `shared` times in the curvature: units that occur in one block move at once. Units without weights do
    not move.
    """
    t = torch.zeros(exponents.shape[1], norms.shape[1], dtype=torch.float64)
    if exponents.shape[1] == 1 and bool((exponents.abs() == 1).all()) and bool((shared == 1).all()):
        up, down = ((norms * (exponents == side)).sum(0) for side in (1, -1))
        return torch.where((up > 0) & (down > 0), (down / up).log() / 4, t)
    for _ in range(1 if bool((shared > 1).any()) else _NEWTON):
        now = norms * (2 * exponents @ t).exp()
        slope = 2 * exponents.T @ now
        curvature = 4 * torch.einsum("mi,mj,mu->uij", exponents * shared[:, None], exponents, now)
        size = curvature.diagonal(dim1=1, dim2=2).sqrt()
        size = torch.where(size > 0, size, torch.ones_like(size))
        matrix = curvature / size[:, :, None] / size[:, None, :]
        matrix.diagonal(dim1=1, dim2=2).add_(1e-12)
        step = -(torch.linalg.solve(matrix, (slope.T / size)[..., None])[..., 0] / size).T.clamp(-1, 1)
        t = t + step
        if float(step.abs().max()) < 1e-14:
            break
    return t
