"""The pullback metric: how far the outputs of a network on a task move when its weights do.

A = B J / sqrt(N) maps a step v of the weights to its drift, the root mean square change of the N examples' outputs;
G = A^T A, |v|_G = |A v|. B is the identity for logits, and sqrt(p) (1 - 1 p^T) for "fisher" (then G is the Fisher
information of the softmax); "hellinger" is an eighth of that.

All steps for a gradient g are in one family, v(lam) = -lam (G + lam)^-1 g: the gradient itself
for lam -> infinity, its part that does not change the outputs for lam -> 0. Its modes come from one factorisation,
of K = A A^T by eigenvectors ("dual", exact) or of a Krylov space of G ("gltr": Solving the trust-region subproblem
using the Lanczos method; Gould, Lucidi, Roma, Toint, 1999), after which every lam costs little.
Source: Engineering flexible machine learning systems by traversing functionally invariant paths
(Raghavan, Tharwat, Hari, Satani, Liu, Thomson, 2024), whose equation 4 is min v^T G v + beta v . g on |v|^2 = eps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from weightspace.curvature.layered import Setting
from weightspace.curvature.linearised import jacobian
from weightspace.curvature.tangent_kernel import KernelError, kernel
from weightspace.linear.operator import Operator, cgls
from weightspace.metric.per_layer import layer_modes
from weightspace.metric.preconditioned import Near, Preconditioner
from weightspace.metric.solvers import NULL, Dual, eigen_modes, factorised, krylov_modes, softmax_root, turning
from weightspace.metric.steps import Modes, Step, Tradeoff, largest_shift, secular
from weightspace.net.cost import Cost
from weightspace.net.errors import SymmetryError, WeightspaceError
from weightspace.net.net import Net, loose
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.digest import DigestError, digest
from weightspace.task.goal import Goal, gradient, not_aliased
from weightspace.task.outputs import counted, logits
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Pullback",
]


Outputs: TypeAlias = Literal["logits", "fisher", "hellinger"]
Solver: TypeAlias = Literal["auto", "dual", "gltr", "layer", "kronecker"]
_DUAL_ROWS = 1500
_LARGE = 1 << 28  # weights from which on a Krylov space needs too much memory
_KRYLOV = 15
_WAY = 30  # directions of a step of a flow, at most


@public
@dataclass(frozen=True)
class Pullback:
    """The pullback metric G = J^T B^T B J / N of a task: |v|_G is the change of its outputs under a step v.

    Labels are not used, except that positions of a sequence that they mark with -100 do not count.

    `output`: "logits", "fisher", "hellinger", or a function of what the network returns. `solver`: "dual" (exact; up to
    1500 rows = examples x outputs), "gltr" (Krylov, any size), "layer" (the inputs of every layer; its null space keeps
    the outputs for steps of any length, and is smaller), "kronecker" (layers apart, each a Kronecker product), or
    "auto": dual where it fits, else gltr, else layer where no basis would fit into memory. `damping` is added to G
    where it is inverted and nothing else sets the shift. `steps`: the dimension of the Krylov space. `mask`: weights
    where it is zero do not move; G is that of the others. Frozen weights (`Net.frozen`) do not move either, unless a
    given vector moves them.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> metric = ws.Pullback(task.take(20, seed=0))
    >>> step = metric.step(net, ws.gradient(task, net), length=0.1, budget=0.01)
    >>> round(step.length, 3), step.progress > 0, step.guarantee
    (0.1, True, 'first order; exact minimiser')
    >>> metric.drift(net + step.vector, net) < 0.02     # the measured change of the outputs
    True
    """

    task: Task
    output: Outputs | Callable[[Any], Tensor] = "logits"
    solver: Solver = "auto"
    damping: float = 0.0
    steps: int = _KRYLOV
    mask: Weights | None = None
    _last: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _seen: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.damping < math.inf:
            raise WeightspaceError(f"damping must be a number from 0, got {self.damping}")
        if self.steps < 1:
            raise WeightspaceError(f"a Krylov space needs at least one step, got {self.steps}")
        if not len(self.task):
            raise WeightspaceError("the metric needs examples; the task is empty")

    # -------------------------------------------------------------- the metric itself

    def outputs(self, net: Net) -> Float[Tensor, "examples outputs"]:
        """The outputs of all examples that the metric compares, flat."""
        with torch.no_grad():
            parts = [counted(self.picked(self.task.raw(net, x)), y) for x, y in self.task.batches(net)]
        if not parts[0].dim():
            raise WeightspaceError("the outputs are one number for all examples; give output= that keeps them apart")
        self._seen["classes"] = parts[0].shape[-1] if parts[0].dim() > 1 else 1
        found = torch.cat([part.reshape(len(part), -1) for part in parts])
        if not found.isfinite().all():
            raise WeightspaceError("the outputs hold NaN or infinity; look for it in the data and the weights")
        return found

    def factor(self, net: Net) -> Operator:
        """The operator A, from steps of the weights to drifts of the outputs; zero for masked or frozen weights."""
        return self._factor(net, self._holder(net))

    def _factor(self, net: Net, kept: Callable[[Tensor], Tensor]) -> Operator:
        j, mix, n = jacobian(net, self.task, self.picked), self._mix(net), len(self.task)
        turn, back = turning(mix, n), turning(None if mix is None else mix.mT, n)
        return Operator(j.rows, j.columns, lambda v: turn(j @ kept(v)), lambda u: kept(j.T @ back(u)))

    def operator(self, net: Net) -> Operator:
        """The operator G = A^T A."""
        return self.factor(net).gram()

    def inner(self, net: Net, v: Weights, u: Weights) -> Float[Tensor, ""]:
        """<v, u>_G, frozen weights included."""
        a = self._factor(net, self._holder(None))
        return torch.dot((a @ v.flat()).double(), (a @ u.flat()).double())

    def norm(self, net: Net, vector: Weights) -> Float[Tensor, ""]:
        """|v|_G = |A v|: the drift that the metric predicts, frozen weights included."""
        net.weights.check(vector)
        return (self._factor(net, self._holder(None)) @ vector.flat()).double().norm()

    def drift(self, net: Net, anchor: Net | Tensor) -> float:
        """The measured drift: the root mean square over the examples of |B (f - f_anchor)|, B taken at the anchor.

        Raises `WeightspaceError` where both networks share memory, so that the anchor would have moved too.
        """
        if isinstance(anchor, Net) and anchor.weights is not net.weights:
            not_aliased(net, anchor)
        reference = self.outputs(anchor) if isinstance(anchor, Net) else anchor
        outputs = self.outputs(net)
        if reference.shape != outputs.shape:
            raise WeightspaceError(
                f"the anchor's outputs are {tuple(reference.shape)}, the network's {tuple(outputs.shape)}"
            )
        moved = outputs - reference
        away = turning(self._mix(reference), len(self.task))(moved.flatten())
        return float(away.double().norm())

    def spectrum(self, net: Net, k: int = 50) -> Float[Tensor, " k"]:
        """The `k` largest nonzero eigenvalues of G with multiplicity, from the dual or by Lanczos."""
        if (dual := self._dual(net)) is not None:
            return dual.values.flip(0)[:k]
        values = self.operator(net).eigenvalues(k, dtype=net.dtype)
        return values[values > NULL * values[0]]

    def cost(self, net: Net) -> Cost:
        """The cost of one factorisation, from sizes alone: one example is run, to count its outputs."""
        with torch.no_grad():
            x = next(iter(self.task.take(1).batches(net)))[0]
            outputs = self.picked(self.task.raw(net, x)).numel()
        rows, n, wide = len(self.task) * outputs, net.weights.numel, net.weights.flat().element_size()
        solver = self.solver
        if solver == "auto":
            fits = rows <= _DUAL_ROWS and self.mask is None
            solver = "layer" if n > _LARGE else "dual" if fits else "gltr"
        if solver == "dual":
            return Cost(solver=solver, rows=rows, passes=1 + outputs, bytes=16 * rows**2)
        if solver == "gltr":
            return Cost(solver=solver, rows=rows, passes=4 * self.steps, bytes=wide * n * (self.steps + 4))
        columns = [w[0].numel() + 1 for w in net.weights.values() if w.dim() > 1]
        return Cost(
            solver=solver,
            rows=rows,
            passes=1 if solver == "layer" else 1 + outputs,
            bytes=16 * sum(c**2 for c in columns),
        )

    # -------------------------------------------------------------- steps for a gradient

    def modes(self, net: Net, covector: Weights) -> Modes:
        """One factorisation for a gradient, after which all steps of its family are cheap."""
        net.weights.check(covector)
        bad = covector.unusable()
        if bad:
            raise WeightspaceError(f"the gradient has NaN or infinity in {bad[0]}; lower the step or check the loss")
        g = self._holder(net)(covector.flat())
        if not float(g.norm()):
            raise WeightspaceError("the gradient is zero, so that no step makes progress")
        solver = "layer" if self.solver == "auto" and net.weights.numel > _LARGE else self.solver
        if solver in ("layer", "kronecker"):
            if self.mask is not None:
                raise WeightspaceError(f'{solver} has no mask; take solver="gltr"')
            mix = self._mix(net) if solver == "kronecker" else None
            modes = layer_modes(net, self.task, g, self.picked, both=solver == "kronecker", mix=mix)
            if not float(modes.coefficients.norm()):
                raise WeightspaceError(f'the gradient lies in weights that {solver} leaves alone; take solver="gltr"')
            return modes
        dual = self._dual(net)
        modes = krylov_modes(self.operator(net), g, self.steps) if dual is None else eigen_modes(g, dual)
        told = "exact minimiser" if modes.exact else f"best in a Krylov space of {self.steps}"
        return replace(modes, told=f"first order; {told}", kept=f"first order; {told}")

    def steepest(self, net: Net, covector: Weights) -> Weights:
        """-(G + damping)^-1 c scaled to v^T (G + damping) v = 1: the natural-gradient direction for a gradient c.

        Raises `WeightspaceError` for damping 0: v would be infinite along directions that do not change the outputs.
        """
        if not self.damping:
            raise WeightspaceError(
                "without damping the steepest direction is infinitely long; give damping=, or use step"
            )
        modes = self.modes(net, covector)
        size = math.sqrt(float((modes.coefficients.square() / (modes.values + self.damping)).sum()))
        vector = modes.assemble(-1.0 / ((modes.values + self.damping) * size))
        return net.weights.shaped(vector.to(net.weights.flat()))

    def capacity(self, net: Net, goal: Goal | Task | Callable[[Net], Tensor]) -> float:
        """|P g| / |g|, P onto the null space of G: the part of a goal's gradient that keeps the task's outputs.

        With solver "layer", of the layers' null spaces. Where the dual does not fit, from 200 steps of CGLS: an upper
        bound, close where G has few large eigenvalues.
        """
        wanted = gradient(goal, net)
        modes = self.modes(net, wanted)
        if self.solver in ("layer", "kronecker"):
            free = modes.coefficients[modes.values == 0]
            return float(free.norm() / self._holder(net)(wanted.flat()).double().norm())
        if not modes.exact:
            g, a = self._holder(net)(wanted.flat()), self.factor(net)
            return float((g - a.T @ cgls(a.T, g, steps=200, tolerance=1e-5)).norm() / g.norm())
        free = modes.coefficients[modes.values <= NULL * modes.values.max()]
        return float(free.norm() / modes.coefficients.norm())

    def tradeoff(
        self, net: Net, goal: Goal | Task | Callable[[Net], Tensor], length: float = 1.0, n: int = 41
    ) -> Tradeoff:
        """Progress on a goal against drift, to first order, for steps of one length."""
        modes = self.modes(net, gradient(goal, net))
        top = float(modes.values.max()) or 1.0
        shifts = [0.0, *np.geomspace(1e-8 * top, 1e3 * top, n - 2), math.inf]
        rows = [(s, modes.drift(s), modes.progress(s), modes.length(s)) for s in shifts]
        kept = [(s, length * d / size, length * p / size) for s, d, p, size in rows if size > 0]
        return Tradeoff(*(np.array(column) for column in zip(*kept, strict=True)))

    def step(
        self,
        net: Net,
        covector: Weights,
        *,
        length: float | None = None,
        budget: float | None = None,
        beta: float | None = None,
        eps: float | None = None,
    ) -> Step:
        """The step of most progress with |v| = `length` and a predicted drift within `budget`.

        With `beta` and `eps` instead: argmin v^T G v + beta v . g on |v|^2 = eps. Where no step of that length is
        within the budget, it is shortened. Raises `WeightspaceError` for a length, budget, beta or eps that is
        not positive.
        """
        given = {"length": length, "budget": budget, "beta": beta, "eps": eps}
        for name, value in given.items():
            if value is not None and not 0 < value < math.inf:
                raise WeightspaceError(f"{name} must be positive, got {value}")
        if (length is None) == (eps is None) or (beta is None) != (eps is None):
            raise WeightspaceError("give length= (and budget=), or beta= and eps=")
        modes = self.modes(net, covector)
        if length is not None:
            return self.along(net, modes, length, budget)
        assert beta is not None and eps is not None
        shift = secular(modes, beta, math.sqrt(eps))
        return self._taken(net, modes, shift, _within(modes, math.sqrt(eps), shift, budget))

    def along(self, net: Net, modes: Modes, length: float, budget: float | None = None) -> Step:
        """`step` for a gradient whose `modes` are known."""
        return self._taken(net, modes, *self._scaled(modes, length, budget))

    def _scaled(self, modes: Modes, length: float, budget: float | None) -> tuple[float, float]:
        """The shift lam of the best step, and its factor."""
        shift = self.damping or math.inf
        if budget is not None:
            shift = largest_shift(modes, budget / length, shift)
        return shift, _within(modes, length, shift, budget)

    def _taken(self, net: Net, modes: Modes, shift: float, scale: float) -> Step:
        vector = net.weights.shaped(modes.assemble(-scale * modes.shrunk(shift)).to(net.weights.flat()))
        told = modes.kept if shift <= NULL * float(modes.values.max()) else modes.told
        drift, progress = scale * modes.drift(shift), scale * modes.progress(shift)
        return Step(vector, scale * modes.length(shift), drift, progress, shift, told)

    def retract(self, net: Net, anchor: Net | Tensor, steps: int = 1, inner: int = 20) -> Net:
        """`net` moved back to the outputs of `anchor` by Gauss-Newton steps, with the Jacobian fixed at `net`.

        w <- w - argmin |A d - r|^2 + damping |d|^2, of least norm, by `inner` steps of CGLS; r is the drift.
        """
        reference = self.outputs(anchor) if isinstance(anchor, Net) else anchor
        a, turn = self.factor(net), turning(self._mix(net), len(self.task))
        for _ in range(steps):
            residual = turn((self.outputs(net) - reference).flatten())
            if not float(residual.norm()):
                break
            correction = cgls(a, residual, self.damping, inner)
            net = net + -1.0 * net.weights.shaped(correction.to(net.weights.flat()))
        return net

    # -------------------------------------------------------------- on the way of a flow

    def near(self, net: Net) -> Near | None:
        """The network with all that steps from it need, from one forward pass; None where it has to be taken apart.

        For `solver` "auto" without a mask, tasks of at most 1,500 outputs in all, and networks of linear maps and
        convolutions (`Setting.of`): where a step would take the eigenvectors of K.
        """
        if self.solver != "auto" or self.mask is not None or net.weights.numel > _LARGE:
            return None
        setting = Setting.of(net, self.task, self.picked)
        found = None if setting is None else Near(net, setting, self._mix)
        return None if found is None or found.outputs.numel() > _DUAL_ROWS else found

    def near_modes(
        self, near: Near, covector: Weights, preconditioner: Preconditioner, length: float, budget: float | None
    ) -> Modes:
        """`modes` from a few directions, as many as the step of `along` for a length and a budget needs."""

        def progress(modes: Modes) -> tuple[float, float, float]:
            shift, scale = self._scaled(modes, length, budget)
            return scale * modes.progress(shift), scale * modes.length(shift) / length, shift

        modes = near.modes(covector.flat(), preconditioner, max(self.steps, _WAY), progress)
        told = f"first order; best of {len(modes.values)} directions"
        return replace(modes, told=told, kept=told)

    # -------------------------------------------------------------- solvers

    def _holder(self, net: Net | None) -> Callable[[Tensor], Tensor]:
        """A function that sets masked weights of a vector to zero, and the frozen ones of a network."""
        mask = None if self.mask is None else self.mask.flat()
        free = loose(net).flat() if net is not None and net.frozen else None
        held = [part for part in (mask, free) if part is not None]
        return lambda vector: math.prod((part.to(vector) for part in held), start=vector)

    @property
    def picked(self) -> Callable[[Any], Tensor]:
        """The function that picks the outputs from what the network returns."""
        return self.output if callable(self.output) else logits

    def _mix(self, at: Net | Tensor) -> Tensor | None:
        """B for every example and position, at a network or its outputs; None for the identity."""
        if callable(self.output) or self.output == "logits":
            return None
        outputs = at if isinstance(at, Tensor) else self.outputs(at)
        return softmax_root(outputs, self._seen["classes"], self.output)

    def turned(self, net: Net, rows: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """B / sqrt(N) times a change of the outputs, B taken at the net."""
        return turning(self._mix(net), len(self.task))(rows)

    def _dual(self, net: Net) -> Dual | None:
        """Eigenvalues and eigenvectors of K = A A^T that are not zero, and A; None where the dual does not fit."""
        if self.solver == "gltr" or (self.mask is not None and self.solver == "auto"):
            return None
        if self.mask is not None:
            raise WeightspaceError('the dual has no mask; take solver="gltr"')
        try:
            key = digest(net, self.task, self.output)
        except DigestError:
            key = None
        if key is not None and self._last.get("key") == key:
            return Dual(self._last["values"], self._last["vectors"], self._last["factor"])
        a = self.factor(net)
        if self.solver == "auto" and a.rows > _DUAL_ROWS:
            return None
        try:
            k = kernel(net.free(), self.task, self.picked)
        except (KernelError, SymmetryError, RuntimeError) as error:
            if self.solver == "dual":
                raise WeightspaceError(f"the dual cannot be built ({error})") from error
            return None
        found = factorised(k, self._mix(net), len(self.task), a)
        self._last.clear()
        self._last.update(key=key, **found._asdict())
        return found


def _within(modes: Modes, length: float, shift: float, budget: float | None) -> float:
    """The factor of v(lam) for a length, or for the drift that is left."""
    scale = length / modes.length(shift)
    return scale if budget is None or scale * modes.drift(shift) <= budget else budget / modes.drift(shift)
