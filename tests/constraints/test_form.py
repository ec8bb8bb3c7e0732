"""Laws of every kind of constraint: the nearest weight is nearest, idempotent, differentiable and of its form."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.constraints.kinds import AFFINE, KINDS, SIDE, drawn, feasible
from weightspace.constraints.form import Kind
from weightspace.constraints.shared import Circulant, Symmetric
from weightspace.net.errors import WeightspaceError

every = pytest.mark.parametrize("name", KINDS)


@every
def test_the_nearest_weight_is_its_own_nearest(name):
    near = KINDS[name].nearest(drawn(0), "w")
    assert torch.allclose(KINDS[name].nearest(near, "w"), near, atol=1e-9)


@every
def test_no_other_weight_of_the_form_is_nearer(name):
    kind, weight = KINDS[name], drawn(3)
    least = float((kind.nearest(weight, "w") - weight).norm())
    others = [feasible(kind, seed, scale) for seed in range(20) for scale in (0.01, 0.3, 1.0)]
    assert all(float((other - weight).norm()) >= least - 1e-4 for other in others)
    constants = kind.constants((SIDE, SIDE), "w") | kind.state(weight)
    free = kind.solved(weight, constants)
    for seed in range(20):  # and none close by
        close = tuple(f + 1e-2 * drawn(seed, *f.shape) for f in free)
        assert float((kind.weight(close, (SIDE, SIDE), constants) - weight).norm()) >= least - 1e-5


@pytest.mark.parametrize("name", AFFINE)
def test_the_nearest_of_an_affine_family_is_that_of_least_squares(name):
    kind, weight = AFFINE[name], drawn(5)
    constants = kind.constants((SIDE, SIDE), "w")
    (free,) = kind.solved(weight, constants)

    def entries(theta: Tensor) -> Tensor:
        return kind.weight((theta.view(free.shape),), (SIDE, SIDE), constants).reshape(-1)

    zero = entries(torch.zeros(free.numel(), dtype=torch.float64))
    basis = torch.stack([entries(row) - zero for row in torch.eye(free.numel(), dtype=torch.float64)], 1)
    theta = torch.linalg.lstsq(basis, (weight.reshape(-1) - zero)[:, None]).solution[:, 0]
    assert torch.allclose(theta, free.reshape(-1), atol=1e-10)
    assert int(torch.linalg.matrix_rank(basis)) == kind.size((SIDE, SIDE))  # no parameter too many


class Wrong(Symmetric):
    """A planted error: the upper triangle in place of the mean."""

    def solved(self, weight, constants):
        return super().solved(weight.triu() + weight.triu(1).mT, constants)


def test_a_wrong_nearest_weight_is_seen():
    weight = drawn(3)
    wrong, right = Wrong().nearest(weight), Symmetric().nearest(weight)
    assert torch.allclose(wrong, wrong.mT) and float((wrong - weight).norm()) > float((right - weight).norm()) + 0.1


@every
@pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated:DeprecationWarning")
def test_derivatives_are_right(name):
    kind = KINDS[name]
    constants = kind.constants((SIDE, SIDE), "w") | kind.state(drawn(0))
    free = [f.clone().requires_grad_() for f in kind.solved(drawn(0), constants)]
    with torch.no_grad():
        for k, f in enumerate(free):
            f += 0.1 * drawn(k, *f.shape)

    def weight(*theta: Tensor) -> Tensor:
        return kind.weight(theta, (SIDE, SIDE), constants)

    assert torch.autograd.gradcheck(weight, free, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(weight, free)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_nearest_weight_has_the_dtype_of_the_weight(name, dtype):
    near = KINDS[name].nearest(drawn(0).to(dtype), "w")
    wide = KINDS[name].nearest(drawn(0).to(dtype).double(), "w")
    assert near.dtype == dtype and torch.equal(near, wide.to(dtype))


@every
def test_sizes_are_those_of_the_free_parameters(name):
    kind = KINDS[name]
    free = kind.solved(drawn(1), kind.constants((SIDE, SIDE), "w"))
    assert kind.size((SIDE, SIDE)) == sum(f.numel() for f in free)


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_is_nearest_to_what_is_not_finite(name, bad):
    weight = drawn(0)
    weight[1, 2] = bad
    with pytest.raises(WeightspaceError, match="w holds NaN or infinity"):
        KINDS[name].nearest(weight, "w")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_numbers_that_are_not_real_are_refused(dtype):
    with pytest.raises(WeightspaceError, match="real floating-point"):
        Circulant().nearest(torch.ones(SIDE, SIDE, dtype=dtype))


@every
def test_a_kind_does_not_change(name):
    assert isinstance(KINDS[name], Kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        KINDS[name].anything = 1
