"""Groups that are groups, defects against planted ones, the Reynolds average, and layers against dense oracles."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weightspace import digits
from weightspace.equivariance.equivariance import (
    equivariance_defect,
    invariance_defect,
    invariant,
    reynolds,
    reynolds_defect,
)
from weightspace.equivariance.finite_group import FiniteGroup
from weightspace.equivariance.layers import GroupConv, GroupPool
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.task.classification import accuracy
from weightspace.task.task import Task

GROUPS = {
    "circle": (FiniteGroup.shifts(6), (6,)),
    "torus": (FiniteGroup.shifts((3, 4)), (3, 4)),
    "even shifts": (FiniteGroup.shifts(6, step=2), (6,)),
    "quarter turns": (FiniteGroup.rotations(), (4, 4)),
    "dihedral": (FiniteGroup.dihedral(), (3, 3)),
    "permutations": (FiniteGroup.permutations([[0, 1, 2], [1, 2, 0], [2, 0, 1]]), (3,)),
    "regular": (FiniteGroup.dihedral().regular(), (8, 3, 3)),
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------ groups


@pytest.mark.parametrize("name", GROUPS)
def test_the_table_is_that_of_the_action(name):
    group, shape = GROUPS[name]
    x = noise(2, *shape)
    for i, j in product(range(len(group)), repeat=2):
        assert torch.equal(group(i, group(j, x)), group(int(group.table[i, j]), x)), (i, j)
    assert torch.equal(group(0, x), x)
    assert all(torch.equal(group(group.inverse(k), group(k, x)), x) for k in range(len(group)))
    assert sorted(group.table[1].tolist()) == list(range(len(group)))


@pytest.mark.parametrize("name", GROUPS)
def test_a_list_of_functions_is_read_as_the_same_group(name):
    group, shape = GROUPS[name]
    again = FiniteGroup.of(group.actions, torch.zeros(shape))
    assert torch.equal(again.table, group.table)
    turned = FiniteGroup.of([*group.actions[1:], group.actions[0]], torch.zeros(shape))
    x = noise(*shape)
    assert torch.equal(turned(0, x), x)


def test_matrices_are_a_representation():
    group = FiniteGroup.dihedral()
    rho = group.matrices((3, 3))
    x = noise(3, 3)
    for i in range(8):
        assert torch.equal(rho[i] @ x.flatten(), group(i, x).flatten())
        assert torch.equal(rho[i] @ rho.inverse(i), torch.eye(9, dtype=torch.float64))
        assert all(torch.equal(rho[i] @ rho[j], rho[int(group.table[i, j])]) for j in range(8))


TURN = FiniteGroup.rotations().actions


@pytest.mark.parametrize(
    "actions, message",
    [
        ([], "got none"),
        ([TURN[0], TURN[1]], "the list is not a group"),
        ([TURN[1], TURN[2], TURN[3]], "none of the 3 functions is the identity"),
        ([TURN[0], TURN[0]], "elements 0 and 1 act alike"),
        ([TURN[0], lambda x: x[..., 0]], r"turns shape \(4, 4\) into \(4,\)"),
        ([TURN[0], lambda x: x @ torch.eye(3)], r"does not act on shape \(4, 4\)"),
    ],
)
def test_lists_that_are_no_groups(actions, message):
    with pytest.raises(WeightspaceError, match=message):
        FiniteGroup.of(actions, torch.zeros(4, 4))


def test_actions_on_what_they_do_not_fit():
    for group, shape in (
        (FiniteGroup.rotations(), (3, 4)),
        (FiniteGroup.shifts(5), (4,)),
        (GROUPS["regular"][0], (7, 3, 3)),
    ):
        with pytest.raises(WeightspaceError, match=r"shape \("):
            group(1, torch.zeros(shape))
    with pytest.raises(WeightspaceError, match="by 4 need sizes that it divides"):
        FiniteGroup.shifts(6, step=4)
    with pytest.raises(WeightspaceError, match="rows that are permutations"):
        FiniteGroup.permutations([[0, 1], [0, 0]])


# ------------------------------------------------------------------ defects


def convolution(mode: str, k: int = 3) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(1, 2, k, padding=k // 2, padding_mode=mode, bias=False).double()


def test_shifts_pass_through_a_circular_convolution_and_no_other():
    x, group = digits("test").take(50), FiniteGroup.shifts((8, 8))
    assert equivariance_defect(convolution("circular"), x, group).worst < 1e-15
    assert equivariance_defect(convolution("zeros"), x, group).mean > 0.2
    assert equivariance_defect(convolution("circular"), x, FiniteGroup.rotations()).mean > 0.2


def test_a_planted_defect_is_measured():
    """f(x) = x + a e_1 <u, x>: the defect of a shift is known."""
    x, shift = noise(200, 4), FiniteGroup.shifts(4)
    planted = torch.zeros(4, 4, dtype=torch.float64)
    planted[0, 1] = 0.3
    found = equivariance_defect(lambda z: z + z @ planted.T, x, shift)
    for k in range(4):
        g = shift.matrices((4,))[k]
        exact = (x @ (planted @ g - g @ planted).T).norm() / (x + x @ planted.T).norm()
        assert found.elements[k] == pytest.approx(float(exact), rel=1e-12)
    assert found.elements[0] == 0 and found.worst == max(found.elements)
    assert found.mean == pytest.approx(sum(found.elements[1:]) / 3)


def test_invariance_and_another_action_on_the_outputs():
    x, group = noise(20, 6), FiniteGroup.shifts(6)
    assert invariance_defect(lambda z: z.sort().values, x, group).worst == 0
    assert invariance_defect(lambda z: z[:, :2], x, group).mean > 0.5
    back = FiniteGroup(group.actions[:1] + group.actions[:0:-1], group.table, "shifts back")
    assert equivariance_defect(lambda z: z.flip(-1), x, group, back).worst == 0
    assert equivariance_defect(lambda z: z.flip(-1), x, group).mean > 0.5


@pytest.mark.parametrize("how", ["max", "mean"])
def test_an_orbit_makes_any_function_invariant(how):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    test, group = digits("test").take(40), FiniteGroup.rotations()
    net = Net.of(module)
    still = invariant(net, group, how)
    assert invariance_defect(net, test, group).mean > 0.1
    assert invariance_defect(still, test, group).worst < 1e-6
    assert isinstance(still, Net) and list(still.weights) == ["inner.1.weight", "inner.1.bias"]
    x = test.example(40)
    seen = torch.stack([net(x.rot90(k, (-2, -1))) for k in range(4)])
    torch.testing.assert_close(still(x), seen.amax(0) if how == "max" else seen.mean(0))
    torch.testing.assert_close(invariant(module, group, how)(x), still(x))
    torch.testing.assert_close(invariant(net.__call__, group, how)(x), still(x))
    assert 0 <= accuracy(test)(still) <= 1
    assert isinstance(invariant(module, group, how), nn.Module)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: invariance_defect(lambda x: x * math.nan, noise(2, 4), FiniteGroup.shifts(4)), "outputs hold NaN"),
        (lambda: invariance_defect(lambda x: x, noise(2, 4) / 0, FiniteGroup.shifts(4)), "inputs hold NaN"),
        (lambda: invariance_defect(lambda x: x, noise(0, 4), FiniteGroup.shifts(4)), "an empty tensor"),
        (lambda: invariance_defect(lambda x: 0 * x, noise(2, 4), FiniteGroup.shifts(4)), "outputs are all zero"),
        (lambda: invariance_defect("net", noise(2, 4), FiniteGroup.shifts(4)), "got str"),
        (lambda: equivariance_defect(lambda x: x[:, :3], noise(2, 4), FiniteGroup.shifts(4)), "do not act on shape"),
        (
            lambda: equivariance_defect(lambda x: x, noise(2, 4), FiniteGroup.shifts(4), FiniteGroup.shifts((2, 2))),
            "is not the group on the inputs",
        ),
        (lambda: invariant(3, FiniteGroup.shifts(4)), "got int"),
        (lambda: invariance_defect(lambda x: x, Task({"a": noise(2, 4)}), FiniteGroup.shifts(4)), "got dict"),
    ],
)
def test_what_has_no_defect(call, message):
    with pytest.raises(WeightspaceError, match=message):
        call()
    with pytest.raises(WeightspaceError, match="how takes 'max' or 'mean', got str 'median'"):
        invariant(lambda x: x, FiniteGroup.shifts(4), "median")


# ------------------------------------------------------------------ weights


def dense(f, shape: tuple[int, ...]) -> torch.Tensor:
    """The matrix of a linear map of tensors of this shape."""
    size = math.prod(shape)
    eye = torch.eye(size, dtype=torch.float64).view(size, *shape)
    with torch.no_grad():
        return f(eye).reshape(size, -1).T


def test_the_average_of_a_circular_convolution_is_itself():
    shifts, layer = FiniteGroup.shifts((8, 8)), convolution("circular", 5)
    w = dense(layer, (1, 8, 8))
    assert reynolds_defect(w, shifts.matrices((1, 8, 8)), shifts.matrices((2, 8, 8))) < 1e-15
    zeros = dense(convolution("zeros", 5), (1, 8, 8))
    assert reynolds_defect(zeros, shifts.matrices((1, 8, 8)), shifts.matrices((2, 8, 8))) > 0.2


def test_the_average_of_noise():
    rho = FiniteGroup.shifts(64).matrices((64,))
    found = [reynolds_defect(noise(64, 64, seed=k), rho, rho) for k in range(3)]
    assert all(defect == pytest.approx(math.sqrt(1 - 1 / 64), rel=2e-3) for defect in found)


def test_the_average_is_the_projection_on_equivariant_maps():
    group = FiniteGroup.dihedral()
    rho, w = group.matrices((3, 3)), noise(9, 9)
    mean = reynolds(w, rho, rho)
    for k in range(8):
        torch.testing.assert_close(rho[k] @ mean, mean @ rho[k])
    assert float(((w - mean) * mean).sum()) == pytest.approx(0, abs=1e-12), "it is orthogonal"
    torch.testing.assert_close(reynolds(mean, list(rho), list(rho)), mean)
    oblique = torch.stack([torch.eye(2), torch.tensor([[1.0, 3.0], [0.0, -1.0]])])
    still = reynolds(noise(4, 2), oblique)
    torch.testing.assert_close(still @ oblique[1].double(), still)
    assert reynolds_defect(noise(9, 9), rho) > 0.5


def test_the_average_of_a_kernel_is_that_of_its_convolution():
    """Averaging taps and averaging the map on the torus are the same; so are channels that a group permutes."""
    turns, w = FiniteGroup.rotations(), noise(4, 1, 3, 3)
    regular = FiniteGroup(tuple(_cycle(k) for k in range(4)), turns.table)
    mean = reynolds(w, None, regular.matrices((4,)), kernel=turns)
    layer = lambda k: lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), k)  # noqa: E731
    on_maps = turns.regular(), (4, 4, 4)
    rho_in, rho_out = turns.matrices((1, 4, 4)), on_maps[0].matrices(on_maps[1])
    torch.testing.assert_close(reynolds(dense(layer(w), (1, 4, 4)), rho_in, rho_out), dense(layer(mean), (1, 4, 4)))
    assert reynolds_defect(mean, None, regular.matrices((4,)), kernel=turns) < 1e-15


def _cycle(k: int):
    return lambda x: x.roll(k, -1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: reynolds(noise(3), None), r"got shape \(3,\)"),
        (lambda: reynolds(noise(3, 3) / 0, FiniteGroup.shifts(3).matrices((3,))), "weights hold NaN"),
        (lambda: reynolds(noise(3, 4), FiniteGroup.shifts(3).matrices((3,))), "the weight needs 4 x 4"),
        (lambda: reynolds(noise(3, 3), torch.eye(3)[None], torch.eye(3).expand(2, 3, 3)), r"got \[1, 2\]"),
        (lambda: reynolds(noise(3, 3), torch.stack([torch.eye(3), torch.eye(3).roll(1, 0)])), "not one group"),
        (lambda: reynolds(noise(3, 3), None, torch.zeros(1, 3, 3)), "cannot be inverted"),
        (lambda: reynolds_defect(torch.zeros(3, 3), FiniteGroup.shifts(3).matrices((3,))), "weights are all zero"),
    ],
)
def test_what_has_no_average(call, message):
    with pytest.raises(WeightspaceError, match=message):
        call()


# ------------------------------------------------------------------ layers


def layers(group: str, padding: str = "circular", size: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    first = GroupConv(2, 3, size, group, lifting=True, padding=padding)
    return nn.Sequential(first, nn.ReLU(), GroupConv(3, 4, size, group, padding=padding), nn.Tanh())


POINT = {"p4": FiniteGroup.rotations(), "p4m": FiniteGroup.dihedral()}


@pytest.mark.parametrize("padding, size", [("circular", 3), ("zeros", 5), ("valid", 3), ("valid", 2)])
@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("group", POINT)
def test_turns_pass_through(group, side, padding, size):
    point, module = POINT[group], layers(group, padding, size)
    assert equivariance_defect(module, noise(3, 2, side, side).float(), point, point.regular()).worst < 1e-6
    double = module.double()
    assert equivariance_defect(double, noise(3, 2, side, side), point, point.regular()).worst < 1e-12
    pooled = nn.Sequential(double, GroupPool("mean"))
    assert equivariance_defect(pooled, noise(3, 2, side, side), point).worst < 1e-12
    assert equivariance_defect(double, noise(3, 2, side, side), point).worst > 0.1, "the elements change places"


@pytest.mark.parametrize("group", [*POINT, "shifts"])
def test_shifts_pass_through(group):
    module, torus = layers(group).double(), FiniteGroup.shifts((4, 6))
    assert equivariance_defect(module, noise(3, 2, 4, 6), torus).worst < 1e-12
    assert equivariance_defect(layers(group, "zeros").double(), noise(3, 2, 4, 6), torus).mean > 0.02


def test_sequences():
    torch.manual_seed(0)
    module = GroupConv(1, 2, 3, "shifts", dims=1).double()
    assert equivariance_defect(module, noise(3, 1, 7), FiniteGroup.shifts(7)).worst < 1e-12
    plain = F.conv1d(F.pad(noise(3, 1, 7), (1, 1), mode="circular"), module.weight, module.bias)
    torch.testing.assert_close(module(noise(3, 1, 7)), plain)


@pytest.mark.parametrize("group", POINT)
def test_layers_against_the_reynolds_average_of_their_matrices(group):
    """Turns and shifts together; and every equivariant local map is such a layer: the dimensions agree."""
    point, torus, n = POINT[group], FiniteGroup.shifts((3, 3)), len(POINT[group])
    lift = GroupConv(1, 1, 3, group, lifting=True, bias=False).double()
    inner = GroupConv(1, 1, 3, group, bias=False).double()
    for acting, on in ((point, point.regular()), (torus, torus)):
        one, many = acting.matrices((1, 3, 3)), on.matrices((1, n, 3, 3))
        assert reynolds_defect(dense(lift, (1, 3, 3)), one, many) < 1e-14
        assert reynolds_defect(dense(inner, (1, n, 3, 3)), many, many) < 1e-14
    both = [torus.matrices((1, 3, 3))[s] @ point.matrices((1, 3, 3))[k] for s in range(9) for k in range(n)]
    out = torus.matrices((1, n, 3, 3)), point.regular().matrices((1, n, 3, 3))
    together = [out[0][s] @ out[1][k] for s in range(9) for k in range(n)]
    assert reynolds_defect(dense(lift, (1, 3, 3)), both, together) < 1e-14
    characters = [float(a.trace() * b.trace()) for a, b in zip(both, together, strict=True)]
    assert sum(characters) / len(characters) == pytest.approx(lift.weight.numel())


def test_a_broken_layer_is_seen():
    module = layers("p4").double()
    module[2].index[1] = module[2].index[2]
    point = POINT["p4"]
    assert equivariance_defect(module, noise(3, 2, 6, 6), point, point.regular()).worst > 0.05


def test_a_network_of_layers_learns_and_stays_invariant():
    torch.manual_seed(0)
    head = [GroupPool(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 10)]
    module = nn.Sequential(GroupConv(1, 4, 3, lifting=True), nn.ReLU(), GroupConv(4, 4, 3), *head)
    test = digits("test").take(64)
    x, y = next(test.batches())
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = F.cross_entropy(module(x), y)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert invariance_defect(module, test, POINT["p4"]).worst < 1e-6
    assert "GroupConv(1, 4, size=3, p4, lifting, circular)" in str(module)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: GroupConv(1, 1, 3, "p6"), "unknown group 'p6'"),
        (lambda: GroupConv(1, 1, 3, padding="reflect"), "padding 'reflect'"),
        (lambda: GroupConv(1, 1, 4), "even size 4 has no centre"),
        (lambda: GroupConv(0, 1, 3), "p4 has no layer of 0 and 1 channels"),
        (lambda: GroupConv(1, 1, 3, dims=1), "p4 has no layer"),
        (lambda: GroupConv(1, 1, 3)(torch.zeros(1, 1, 4, 4)), r"expected maps \('example', 1, 4, 'size', 'size'\)"),
        (lambda: GroupConv(1, 1, 3, lifting=True)(torch.zeros(1, 2, 4, 4)), "got shape"),
        (lambda: GroupConv(1, 1, 7, lifting=True)(torch.zeros(1, 1, 2, 2)), "too small"),
        (lambda: GroupPool()(torch.zeros(1, 2, 4, 4)), "got shape"),
        (lambda: GroupPool("sum"), 'must be "max" or "mean"'),
    ],
)
def test_layers_that_do_not_fit(call, message):
    with pytest.raises(WeightspaceError, match=message):
        call()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mirrored", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_layers_of_escnn_are_equivariant_here_too(mirrored):
    """An independent implementation: its kernels pass this Reynolds test, and its maps turn as these do."""
    nn2 = pytest.importorskip("escnn.nn", reason="escnn is not installed", exc_type=ImportError)
    from escnn.gspaces import flipRot2dOnR2, rot2dOnR2

    space = flipRot2dOnR2(4) if mirrored else rot2dOnR2(4)
    images, maps = nn2.FieldType(space, [space.trivial_repr]), nn2.FieldType(space, [space.regular_repr] * 2)
    torch.manual_seed(0)
    first, second = (nn2.R2Conv(f, maps, 5, padding=2, bias=False).eval() for f in (images, maps))
    point = FiniteGroup.dihedral() if mirrored else FiniteGroup.rotations()

    def f(x):
        return second(nn2.ReLU(maps)(first(nn2.GeometricTensor(x, images)))).tensor.unflatten(1, (2, len(point)))

    pooled = equivariance_defect(lambda x: f(x).amax(2), noise(2, 1, 8, 8).float(), point)
    assert pooled.worst < 1e-5
    space_dimension = GroupConv(1, 2, 5, "p4m" if mirrored else "p4", lifting=True, bias=False).weight.numel()
    assert first.basisexpansion.dimension() <= space_dimension
    if not mirrored:
        assert equivariance_defect(f, noise(2, 1, 8, 8).float(), point, point.regular()).worst < 1e-5
        rho = [torch.block_diag(*[torch.eye(4).roll(k, 0)] * 2) for k in range(4)]
        kernel = first.filter.detach() if first.filter is not None else first.expand_parameters()[0].detach()
        assert reynolds_defect(kernel, None, rho, kernel=point) < 1e-5
