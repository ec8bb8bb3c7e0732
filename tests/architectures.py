"""Tiny architectures, each with its symmetry group written down by hand: the ground truth for reading it.

The group is that of the evaluation-mode function, exact: a move that a norm's eps breaks is not in it. An
axis is a set of units; `kinds` says what may be done to them: P permutation, R positive scale, S sign. A
unit inside an outer one (channel in a head) is listed `over` the outer axis's size: its move may differ
from one outer unit to the next. Kinds that an outer axis merely inherits (scaling a head is scaling all of
its channels) are listed on the inner one. An axis that cannot be permuted (output, rotary pair) is listed
if its units can be scaled or flipped.

Three moves recur. BatchNorm in evaluation mode: (convolution, running mean) up, BatchNorm weight down: R
and S, exactly. A norm's affine parameters followed by linear maps alone: R and S of the stream that is
normalised. The key bias of softmax attention adds the same number to every score of a query: inert, so R
and S come free.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.net.net import Net

__all__ = ["CASES", "Case", "Expected", "identity", "keep", "noisy", "turn"]

Example = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True)
class Expected:
    """One axis: its units, the sizes of the axes it may depend on (outermost first), its kinds of move."""

    size: int
    over: tuple[int, ...] = ()
    kinds: str = "P"
    note: str = ""


@dataclass(frozen=True)
class Case:
    """An architecture, its inputs and its group; `also` is the same group written another way.

    `inert` names the tensors that the function ignores.
    """

    name: str
    build: Callable[[], nn.Module]
    draw: Callable[[], Example]
    expected: tuple[Expected, ...]
    also: tuple[Expected, ...] | None = None
    inert: tuple[str, ...] = ()

    def make(self, seed: int) -> nn.Module:
        """The module in float64 and evaluation mode, initialised from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build().double().eval()

    def example(self, seed: int) -> Example:
        """Random inputs, in the form that `net(x)` takes."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.draw()


CASES: dict[str, Case] = {}


def case(
    name: str,
    draw: Callable[[], Example],
    *expected: Expected,
    also: tuple[Expected, ...] | None = None,
    inert: tuple[str, ...] = (),
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Enter the decorated builder (a function without arguments, or a Module class) under `name`."""

    def enter(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES[name] = Case(name, build, draw, expected, also, inert)
        return build

    return enter


def noisy(case: Case, seed: int) -> Net:
    """A Net whose every tensor is generic: fresh norms and zero biases would hide a wrong move."""
    net = Net.of(case.make(seed))
    generator = torch.Generator().manual_seed(seed)

    def shake(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return tensor * (0.2 * noise).exp() if name.endswith("running_var") else tensor + 0.3 * noise

    return net.load({name: shake(name, tensor) for name, tensor in net.tensors.items()})


# planted faults: what a wrong element of the group would make of a network


def keep(net: Net, moved: Net, name: str) -> Net:
    """`moved`, but the tensor `name` was left out."""
    return moved.load({**moved.tensors, name: net.tensors[name]})


def turn(net: Net, name: str) -> Net:
    """`net` with the slices of the tensor `name` in reverse order, and nothing else moved."""
    return net.load({**net.tensors, name: net.tensors[name].flip(0)})


def identity(net: Net) -> Net:
    """`net` itself: a move that does nothing satisfies every law but one."""
    return net


# inputs


def reals(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape, dtype=torch.float64)


def tokens(vocabulary: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(vocabulary, shape)


def several(*draws: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(draw() for draw in draws)


class Apply(nn.Module):
    """A module from a function: `forward(self, *inputs)` is `function(self, *inputs)`."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        return self.function(self, *args, **kwargs)


def free(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / math.sqrt(shape[-1]))


E, L = Expected, nn.Linear

# perceptrons


@case("mlp", reals(4, 5), E(7, kinds="PR"), E(11, kinds="PR"))
def _():
    def f(m, x):
        return m.c(F.relu(m.b(F.relu(m.a(x)))))

    return Apply(f, a=L(5, 7), b=L(7, 11), c=L(11, 3))


def perceptron(*between: Callable[[], nn.Module], sizes: tuple[int, ...] = (5, 7, 11, 3)) -> nn.Module:
    layers: list[nn.Module] = []
    for i, (m, n) in enumerate(zip(sizes, sizes[1:], strict=False)):
        last = i == len(sizes) - 2
        layers += [L(m, n)] if last else [L(m, n), *[make(n) for make in between]]
    return nn.Sequential(*layers)


def entry(name: str, kinds: str, *between: Callable[[int], nn.Module]) -> None:
    case(name, reals(4, 5), E(7, kinds=kinds), E(11, kinds=kinds))(lambda: perceptron(*between))


entry("mlp_modules", "PR", lambda n: nn.ReLU())
entry("mlp_inplace", "PR", lambda n: nn.ReLU(inplace=True))
entry("mlp_leaky", "PR", lambda n: nn.LeakyReLU(0.1))
entry("mlp_tanh", "PS", lambda n: nn.Tanh())
entry("mlp_gelu", "P", lambda n: nn.GELU())
entry("mlp_linear", "PRS", lambda n: nn.Identity())
entry("mlp_dropout", "PR", lambda n: nn.ReLU(), lambda n: nn.Dropout(0.5))
entry("mlp_batchnorm", "PRS", nn.BatchNorm1d, lambda n: nn.ReLU())
entry("mlp_layernorm_relu", "PR", nn.LayerNorm, lambda n: nn.ReLU())
entry("mlp_layernorm_tanh", "PS", nn.LayerNorm, lambda n: nn.Tanh())
case("mlp_eights", reals(8, 8), E(8, kinds="PR"), E(8, kinds="PR"))(
    lambda: perceptron(lambda n: nn.ReLU(), sizes=(8, 8, 8, 8))
)


@case("shared_layer", reals(4, 5), E(7, kinds="PR", note="the shared matrix moves as D W D^-1"))
def _():
    def f(m, x):
        return m.c(F.relu(m.b(F.relu(m.b(F.relu(m.a(x)))))))

    return Apply(f, a=L(5, 7), b=L(7, 7), c=L(7, 3))


@case("input_skip", reals(4, 5), E(7, kinds="PR"), E(11, kinds="PR"))
def _():
    def f(m, x):
        h = x + m.b(F.relu(m.a(x)))
        return m.d(F.relu(m.c(F.relu(h))))

    return Apply(f, a=L(5, 7), b=L(7, 5), c=L(5, 11), d=L(11, 3))


@case("inplace_ops", reals(4, 5), E(7, kinds="PR", note="residual"), E(11, kinds="PR"))
def _():
    def f(m, x):
        h = m.a(x).relu_()
        y = m.c(F.relu_(m.b(h))).mul_(0.5)
        y += h
        return m.d(y.relu_())

    return Apply(f, a=L(5, 7), b=L(7, 11), c=L(11, 7), d=L(7, 3))


@case("glu", reals(4, 5), E(7, kinds="PRS", note="the linear half up, the next matrix down"))
def _():
    return nn.Sequential(L(5, 14), nn.GLU(), L(7, 3))


@case("glu_chunk", reals(4, 5), E(7, kinds="PRS"))
def _():
    def f(m, x):
        gate, value = m.a(x).chunk(2, dim=-1)
        return m.b(F.silu(gate) * value)

    return Apply(f, a=L(5, 14), b=L(7, 3))


@case("maxout", reals(4, 5), E(7, kinds="PR"), E(3, (7,), "P", "pieces of a unit"))
def _():
    def f(m, x):
        return m.b(m.a(x).view(x.shape[0], 7, 3).amax(-1))

    return Apply(f, a=L(5, 21), b=L(7, 2))


@case("lora", reals(4, 5), E(7, kinds="PR"), E(2, kinds="PL", note="rank"))
def _():
    def f(m, x):
        h = F.relu(m.base(x) + 2 * (x @ m.down.T) @ m.up.T)
        return m.head(h)

    return Apply(f, base=L(5, 7), down=free(2, 5), up=free(7, 2), head=L(7, 3))


@case("lora_merged", reals(4, 5), E(7, kinds="PR"), E(2, kinds="PL", note="rank"))
def _():
    def f(m, x):
        return m.head(F.relu(F.linear(x, m.base.weight + m.up @ m.down, m.base.bias)))

    return Apply(f, base=L(5, 7), down=free(2, 5), up=free(7, 2), head=L(7, 3))


@case(
    "weight_norm",
    reals(4, 5),
    E(7, kinds="PRS", note="the direction's length is free; g and v flip"),
    E(11, kinds="PR"),
)
def _():
    normed = nn.utils.parametrizations.weight_norm
    return nn.Sequential(normed(L(5, 7)), nn.ReLU(), L(7, 11), nn.ReLU(), L(11, 3))


@case("einsum", reals(4, 5), E(7, kinds="PR"), E(11, kinds="PR"))
def _():
    def f(m, x):
        h = F.relu(torch.einsum("bi,hi->bh", x, m.a) + m.a_bias)
        return torch.einsum("...h,ho->...o", F.relu(h @ m.b), m.c)

    return Apply(f, a=free(7, 5), a_bias=free(7), b=free(7, 11), c=free(11, 3))


@case("bilinear", several(reals(4, 5), reals(4, 2)), E(7, kinds="PR"), E(3, kinds="PR"))
def _():
    def f(m, x, y):
        return m.both(F.relu(m.a(x)), F.relu(m.b(y)))

    return Apply(f, a=L(5, 7), b=L(2, 3), both=nn.Bilinear(7, 3, 2))


@case("siamese", several(reals(4, 5), reals(4, 5)), E(7, kinds="PR"), E(3, kinds="PS", note="<f(x), f(y)>"))
def _():
    def f(m, x, y):
        a, b = (m.b(F.relu(m.a(z))) for z in (x, y))
        return (a * b).sum(-1)

    return Apply(f, a=L(5, 7), b=L(7, 3))


@case(
    "cosine_head",
    reals(4, 5),
    E(7, kinds="PR"),
    E(11, kinds="PO", note="features"),
    E(3, kinds="R", note="classes are the output, but the length of a class vector is free"),
)
def _():
    def f(m, x):
        features = m.b(F.relu(m.a(x)))
        return 10 * F.normalize(features, dim=-1) @ F.normalize(m.classes, dim=-1).T

    return Apply(f, a=L(5, 7), b=L(7, 11), classes=free(3, 11))


@case("tied_autoencoder_tanh", reals(4, 5), E(7, kinds="PS"))
def _():
    def f(m, x):
        return F.linear(torch.tanh(m.a(x)), m.a.weight.T, m.bias)

    return Apply(f, a=L(5, 7), bias=free(5))


@case("tied_autoencoder_relu", reals(4, 5), E(7, kinds="P", note="scaled twice, so not at all"))
def _():
    def f(m, x):
        return F.linear(F.relu(m.a(x)), m.a.weight.T, m.bias)

    return Apply(f, a=L(5, 7), bias=free(5))


@case("dict_out", reals(4, 5), E(7, kinds="PR"), E(11, kinds="PR"))
def _():
    def f(m, x):
        h = F.relu(m.a(x))
        return {"logits": m.c(F.relu(m.b(h))), "extra": m.d(h)}

    return Apply(f, a=L(5, 7), b=L(7, 11), c=L(11, 3), d=L(7, 2))


@case(
    "tuple_out",
    reals(4, 5),
    E(11, kinds="PR", note="the first hidden layer is an output, so only the second"),
)
def _():
    def f(m, x):
        h = F.relu(m.a(x))
        return m.c(F.relu(m.b(h))), (h,)

    return Apply(f, a=L(5, 7), b=L(7, 11), c=L(11, 3))


@case("dict_in", lambda: {"x": reals(4, 5)(), "scale": reals(4, 1)()}, E(7, kinds="PR"))
def _():
    def f(m, x, scale):
        return m.b(F.relu(m.a(x)) * scale)

    return Apply(f, a=L(5, 7), b=L(7, 3))


# convolutions


@case("cnn_flatten", reals(2, 2, 8, 8), E(5, kinds="PR"), E(7, kinds="PR"))
def _():
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 7, 3),
        nn.ReLU(),
        nn.Flatten(),
        L(28, 3),
    )


@case("cnn_eights", reals(8, 8, 8, 8), E(8, kinds="PR"), E(8, kinds="PR"))
def _():
    same = {"kernel_size": 3, "padding": 1}
    return nn.Sequential(
        nn.Conv2d(8, 8, **same), nn.ReLU(), nn.Conv2d(8, 8, **same), nn.ReLU(), nn.Flatten(), L(512, 8)
    )


@case("cnn_bn", reals(2, 2, 6, 6), E(5, kinds="PRS"), E(7, kinds="PRS"))
def _():
    def f(m, x):
        h = F.relu(m.bn1(m.conv1(x)))
        return m.fc(F.relu(m.bn2(m.conv2(h))).mean((2, 3)))

    return Apply(
        f,
        conv1=nn.Conv2d(2, 5, 3),
        bn1=nn.BatchNorm2d(5),
        conv2=nn.Conv2d(5, 7, 3),
        bn2=nn.BatchNorm2d(7),
        fc=L(7, 3),
    )


@case("cnn_bn_inplace", reals(2, 2, 6, 6), E(5, kinds="PRS"), E(7, kinds="PRS"))
def _():
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 7, 3, bias=False),
        nn.BatchNorm2d(7),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        L(7, 3),
    )


def resnet(norm: Callable[[int], nn.Module], stream: int, hidden: int) -> nn.Module:
    def f(m, x):
        h = F.relu(m.n0(m.c0(x)))
        h = F.relu(h + m.n2(m.c2(F.relu(m.n1(m.c1(h))))))
        return m.fc(h.mean((2, 3)))

    def conv(i: int, o: int) -> nn.Module:
        return nn.Conv2d(i, o, 3, padding=1, bias=False)

    parts = {"c0": conv(2, stream), "c1": conv(stream, hidden), "c2": conv(hidden, stream)}
    norms = {"n0": norm(stream), "n1": norm(hidden), "n2": norm(stream)}
    return Apply(f, **parts, **norms, fc=L(stream, 3))


case("resnet_bn", reals(2, 2, 5, 5), E(5, kinds="PRS"), E(7, kinds="PRS"))(lambda: resnet(nn.BatchNorm2d, 5, 7))
case("resnet_gn1", reals(2, 2, 5, 5), E(5, kinds="PR"), E(7, kinds="PR"))(
    lambda: resnet(lambda n: nn.GroupNorm(1, n), 5, 7)
)
case(
    "resnet_gn4",
    reals(2, 2, 5, 5),
    E(4, kinds="PS", note="groups of the stream; a whole group flips, with its norm weights"),
    E(3, (4,), "PR", "norm weight and bias up, next convolution down"),
    E(4, kinds="PS", note="groups of the block"),
    E(2, (4,), "PR"),
)(lambda: resnet(lambda n: nn.GroupNorm(4, n), 12, 8))


@case("depthwise", reals(2, 2, 6, 6), E(7, kinds="PR"), E(5, kinds="PR"))
def _():
    return nn.Sequential(
        nn.Conv2d(2, 7, 3),
        nn.ReLU(),
        nn.Conv2d(7, 7, 3, groups=7),
        nn.ReLU(),
        nn.Conv2d(7, 5, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        L(5, 3),
    )


@case("depthwise_multiplier", reals(2, 2, 6, 6), E(5, kinds="PR"), E(3, (5,), "PR"))
def _():
    def f(m, x):
        return m.c(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3)))

    return Apply(f, a=nn.Conv2d(2, 5, 3), b=nn.Conv2d(5, 15, 3, groups=5), c=L(15, 2))


@case("grouped_conv", reals(2, 2, 6, 6), E(3, kinds="P"), E(2, (3,), "PR"), E(5, (3,), "PR"), E(11, kinds="PR"))
def _():
    def f(m, x):
        h = F.relu(m.b(F.relu(m.a(x))))
        return m.d(F.relu(m.c(h)).amax((2, 3)))

    return Apply(f, a=nn.Conv2d(2, 6, 3), b=nn.Conv2d(6, 15, 3, groups=3), c=nn.Conv2d(15, 11, 1), d=L(11, 3))


@case("densenet", reals(2, 2, 5, 5), E(5, kinds="PRS"), E(7, kinds="PRS"), E(3, kinds="PRS"))
def _():
    def f(m, x):
        h = m.stem(x)
        h = torch.cat([h, m.c1(F.relu(m.n1(h)))], 1)
        h = torch.cat([h, m.c2(F.relu(m.n2(h)))], 1)
        return m.fc(F.relu(m.n3(h)).mean((2, 3)))

    convs = {"stem": nn.Conv2d(2, 5, 3), "c1": nn.Conv2d(5, 7, 3, padding=1), "c2": nn.Conv2d(12, 3, 1)}
    norms = {f"n{i}": nn.BatchNorm2d(n) for i, n in ((1, 5), (2, 12), (3, 15))}
    return Apply(f, **convs, **norms, fc=L(15, 2))


def unet(**interpolation: Any) -> nn.Module:
    def f(m, x):
        high = F.relu(m.down1(x))
        low = F.relu(m.down2(F.max_pool2d(high, 2)))
        low = F.interpolate(low, scale_factor=2, **interpolation)
        return m.out(F.relu(m.up(torch.cat([low, high], dim=1))))

    def conv(i: int, o: int) -> nn.Module:
        return nn.Conv2d(i, o, 3, padding=1)

    return Apply(f, down1=conv(2, 5), down2=conv(5, 7), up=conv(12, 3), out=nn.Conv2d(3, 2, 1))


UNET = E(5, kinds="PR"), E(7, kinds="PR"), E(3, kinds="PR")
case("unet_nearest", reals(2, 2, 6, 6), *UNET)(lambda: unet(mode="nearest"))
case("unet_bilinear", reals(2, 2, 6, 6), *UNET)(lambda: unet(mode="bilinear", align_corners=False))
case("unet_bilinear_corners", reals(2, 2, 6, 6), *UNET)(lambda: unet(mode="bilinear", align_corners=True))


@case(
    "squeeze_excite",
    reals(2, 2, 6, 6),
    E(7, kinds="PR", note="the squeeze undoes the scale"),
    E(3, kinds="PR"),
)
def _():
    def f(m, x):
        h = F.relu(m.conv(x))
        gate = torch.sigmoid(m.up(F.relu(m.down(h.mean((2, 3))))))
        return m.fc((h * gate[:, :, None, None]).mean((2, 3)))

    return Apply(f, conv=nn.Conv2d(2, 7, 3), down=L(7, 3), up=L(3, 7), fc=L(7, 2))


@case("pixel_shuffle", reals(2, 2, 4, 4), E(5, kinds="PR"), E(3, kinds="PR", note="the 2 x 2 positions stay"))
def _():
    def f(m, x):
        return m.c(F.relu(m.shuffle(m.b(F.relu(m.a(x))))))

    def conv(i: int, o: int) -> nn.Module:
        return nn.Conv2d(i, o, 3, padding=1)

    return Apply(f, a=conv(2, 5), b=conv(5, 12), c=conv(3, 2), shuffle=nn.PixelShuffle(2))


@case("pools", reals(2, 2, 12, 12), E(5, kinds="PR"), E(7, kinds="PR"), E(3, kinds="PR"), E(11, kinds="PR"))
def _():
    def f(m, x):
        h = F.avg_pool2d(F.relu(m.a(x)), 2)
        h = F.max_pool2d(F.relu(m.b(h)), 2)
        h = F.adaptive_max_pool2d(F.relu(m.c(h)), 1).flatten(1)
        return m.e(F.relu(m.d(h)))

    def conv(i: int, o: int) -> nn.Module:
        return nn.Conv2d(i, o, 3, padding=1)

    return Apply(f, a=conv(2, 5), b=conv(5, 7), c=conv(7, 3), d=L(3, 11), e=L(11, 2))


@case("adaptive_pool_flatten", reals(2, 2, 8, 8), E(5, kinds="PR"))
def _():
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Dropout2d(0.3), nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), L(30, 3)
    )


@case("upsample", reals(2, 2, 4, 4), E(5, kinds="PR"), E(7, kinds="PR"))
def _():
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.ReLU(),
        nn.Conv2d(5, 7, 3, padding=1),
        nn.ReLU(),
        nn.Upsample(size=(5, 6), mode="bilinear"),
        nn.Conv2d(7, 2, 1),
    )


@case("conv1d", reals(3, 2, 9), E(5, kinds="PR"), E(7, kinds="PR"))
def _():
    return nn.Sequential(
        nn.Conv1d(2, 5, 3),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(5, 7, 2),
        nn.LeakyReLU(),
        nn.Flatten(),
        L(14, 3),
    )


@case("conv3d", reals(2, 2, 4, 5, 6), E(5, kinds="PRS"), E(7, kinds="PR"))
def _():
    return nn.Sequential(
        nn.Conv3d(2, 5, 2),
        nn.BatchNorm3d(5),
        nn.ReLU(),
        nn.Conv3d(5, 7, 2),
        nn.ReLU(),
        nn.AvgPool3d(2),
        nn.Flatten(),
        L(14, 3),
    )


@case("conv_transpose", reals(2, 2, 3, 3), E(5, kinds="PR"), E(7, kinds="PR"))
def _():
    return nn.Sequential(
        nn.ConvTranspose2d(2, 5, 2, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(5, 7, 3),
        nn.ReLU(),
        nn.Conv2d(7, 2, 3),
    )


@case("conv_transpose_grouped", reals(2, 2, 3, 3), E(3, kinds="P"), E(2, (3,), "PR"), E(5, (3,), "PR"))
def _():
    return nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 15, 2, groups=3), nn.ReLU(), nn.Conv2d(15, 2, 1)
    )


@case(
    "instance_norm_prelu",
    reals(2, 2, 6, 6),
    E(5, kinds="PRS", note="R: norm up; S: convolution and norm weight; the convolution's bias is inert"),
    E(7, kinds="PR"),
    inert=("0.bias",),
)
def _():
    return nn.Sequential(
        nn.Conv2d(2, 5, 3),
        nn.InstanceNorm2d(5, affine=True),
        nn.PReLU(5),
        nn.Conv2d(5, 7, 3),
        nn.PReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        L(7, 3),
    )


@case(
    "zero_padded_shortcut",
    reals(2, 2, 6, 6),
    E(5, kinds="PR", note="the stem, and the first channels of the second stage"),
    E(7, kinds="PR"),
    E(6, kinds="PR", note="the channels that the shortcut fills with zeros"),
)
def _():
    def f(m, x):
        h = F.relu(m.stem(x))
        shortcut = F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 0, 6))
        return m.fc(F.relu(shortcut + m.b(F.relu(m.a(h)))).mean((2, 3)))

    return Apply(
        f,
        stem=nn.Conv2d(2, 5, 3, padding=1),
        a=nn.Conv2d(5, 7, 3, padding=1, stride=2),
        b=nn.Conv2d(7, 11, 3, padding=1),
        fc=L(11, 3),
    )


@case(
    "convnext",
    reals(2, 2, 5, 5),
    E(5, kinds="PRS", note="norm or layer scale against linear maps"),
    E(7, kinds="P"),
)
def _():
    def f(m, x):
        x = m.stem(x)
        h = m.norm(m.depth(x).permute(0, 2, 3, 1))
        h = m.gamma * m.b(F.gelu(m.a(h)))
        return m.fc((x + h.permute(0, 3, 1, 2)).mean((2, 3)))

    depth = nn.Conv2d(5, 5, 3, padding=1, groups=5)
    return Apply(
        f,
        stem=nn.Conv2d(2, 5, 1),
        depth=depth,
        norm=nn.LayerNorm(5),
        a=L(5, 7),
        b=L(7, 5),
        gamma=free(5),
        fc=L(5, 3),
    )


# recurrent networks


@case("lstm", reals(2, 4, 3), E(7, kinds="PS", note="cell input row, hidden column and readout flip"))
def _():
    def f(m, x):
        return m.fc(m.rnn(x)[0][:, -1])

    return Apply(f, rnn=nn.LSTM(3, 7, batch_first=True), fc=L(7, 2))


@case("lstm_bidirectional", reals(2, 3, 3), *[E(5, kinds="PS")] * 4)
def _():
    def f(m, x):
        return m.fc(m.rnn(x)[0].mean(1))

    return Apply(f, rnn=nn.LSTM(3, 5, num_layers=2, bidirectional=True, batch_first=True), fc=L(10, 2))


@case("gru", reals(2, 4, 3), E(7, kinds="PS", note="candidate row, hidden column and readout flip"))
def _():
    def f(m, x):
        return m.fc(m.rnn(x)[1][-1])

    return Apply(f, rnn=nn.GRU(3, 7, batch_first=True), fc=L(7, 2))


@case("rnn_relu", reals(2, 4, 3), E(7, kinds="PR"))
def _():
    def f(m, x):
        return m.fc(m.rnn(x)[0][:, -1])

    return Apply(f, rnn=nn.RNN(3, 7, nonlinearity="relu", batch_first=True), fc=L(7, 2))


# embeddings and positions


@case("embedding_mean", tokens(13, 4, 6), E(5, kinds="PL", note="linear on both sides"), E(7, kinds="PR"))
def _():
    def f(m, x):
        return m.b(F.relu(m.a(m.table(x).mean(1))))

    return Apply(f, table=nn.Embedding(13, 5), a=L(5, 7), b=L(7, 3))


@case(
    "tied_residual",
    tokens(13, 3, 4),
    E(5, kinds="PO", note="a scale would be squared by the head; no norm, so that any rotation does"),
    E(7, kinds="P"),
)
def _():
    def f(m, x):
        h = m.table(x)
        h = h + m.b(F.gelu(m.a(h)))
        return F.linear(h, m.table.weight)

    return Apply(f, table=nn.Embedding(13, 5), a=L(5, 7), b=L(7, 5))


@case(
    "tied_bottleneck",
    tokens(13, 3, 4),
    E(5, kinds="PL", note="table up, both matrices down"),
    E(7, kinds="PR"),
)
class TiedBottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(13, 5)
        self.a, self.b, self.head = L(5, 7), L(7, 5), L(5, 13, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.b(F.relu(self.a(self.table(x)))))


class Positions(nn.Module):
    """Tokens plus fixed sines, then a perceptron; the buffer is saved with the weights or not."""

    def __init__(self, persistent: bool, norm: bool = False):
        super().__init__()
        angle = torch.arange(4)[:, None] / 10 ** (torch.arange(6) / 3)
        self.register_buffer("sines", torch.where(torch.arange(6) % 2 == 0, angle.sin(), angle.cos()), persistent)
        self.table, self.a, self.b = nn.Embedding(13, 6), L(6, 7), L(7, 3)
        self.norm = nn.LayerNorm(6) if norm else nn.Identity()

    def forward(self, x):
        return self.b(F.relu(self.a(self.norm(self.table(x) + self.sines))).mean(1))


case("position_buffer", tokens(13, 3, 4), E(7, kinds="PR", note="the sines pin the stream"))(lambda: Positions(False))
case(
    "position_buffer_norm",
    tokens(13, 3, 4),
    E(7, kinds="PR"),
    E(6, kinds="RS", note="pinned by the sines, but norm weights go up and the next matrix down"),
)(lambda: Positions(False, norm=True))
case(
    "position_buffer_saved",
    tokens(13, 3, 4),
    E(6, kinds="PRS", note="a persistent buffer is part of the point and moves"),
    E(7, kinds="PR"),
)(lambda: Positions(True))


@case(
    "position_parameter",
    tokens(13, 3, 4),
    E(5, kinds="PO", note="rows beyond the length turn too"),
    E(7, kinds="P"),
)
def _():
    def f(m, x):
        h = m.table(x) + m.positions[:, : x.shape[1]]
        h = h + m.b(F.gelu(m.a(m.norm(h))))
        return m.head(h.mean(1))

    parts = {
        "table": nn.Embedding(13, 5),
        "norm": nn.LayerNorm(5),
        "a": L(5, 7),
        "b": L(7, 5),
        "head": L(5, 3),
    }
    return Apply(f, positions=free(1, 9, 5), **parts)


@case("mixer", reals(2, 4, 3), E(5, note="stream"), E(7, note="tokens"), E(11, note="channels"))
def _():
    def f(m, x):
        h = m.embed(x)
        h = h + m.t2(F.gelu(m.t1(m.norm(h).transpose(1, 2)))).transpose(1, 2)
        h = h + m.c2(F.gelu(m.c1(h)))
        return m.head(h.mean(1))

    mixing = {"t1": L(4, 7), "t2": L(7, 4), "c1": L(5, 11), "c2": L(11, 5)}
    return Apply(f, embed=L(3, 5), norm=nn.LayerNorm(5), head=L(5, 2), **mixing)


# attention


def attention(heads: int, channels: int) -> tuple[Expected, ...]:
    """Heads; the channels in which queries meet keys; those from values to output; both inside a head."""
    qk = E(channels, (heads,), "PL", "query up, key down; a key bias is inert")
    vo = E(channels, (heads,), "PL", "value up, output down")
    return E(heads, note="heads"), qk, vo


def heads_first(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Embedding, one pre-norm block around `attend`, mean over the tokens, head."""

    def __init__(self, attend: nn.Module, width: int, inputs: int = 2, hidden: int = 7, outputs: int = 3):
        super().__init__()
        self.embed, self.attend, self.head = L(inputs, width), attend, L(width, outputs)
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.a, self.b = L(width, hidden), L(hidden, width)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.attend(self.n1(x))
        x = x + self.b(F.gelu(self.a(self.n2(x))))
        return self.head(x.mean(1))


def block_group(width: int, heads: int, channels: int, hidden: int = 7) -> tuple[Expected, ...]:
    return (
        E(width, kinds="PO", note="stream: writers and readers turn, gains folded"),
        *attention(heads, channels),
        E(hidden),
    )


@case("mha", reals(2, 4, 2), *block_group(6, 2, 3))
def _():
    attend = Apply(lambda m, x: m.mha(x, x, x)[0], mha=nn.MultiheadAttention(6, 2, batch_first=True))
    return Block(attend, 6)


@case(
    "mha_cross",
    several(reals(2, 4, 6), reals(2, 5, 7), reals(2, 5, 3)),
    *attention(2, 3),
    E(6, kinds="PRS", note="the output projection meets the head: linear on both sides"),
)
def _():
    def f(m, q, k, v):
        return m.head(m.mha(q, k, v)[0])

    return Apply(f, mha=nn.MultiheadAttention(6, 2, kdim=7, vdim=3, batch_first=True), head=L(6, 2))


@case("mha_memory", several(reals(2, 4, 6), reals(2, 5, 6)), *attention(2, 3), E(6, kinds="PRS", note="as above"))
def _():
    def f(m, x, memory):
        return m.head(m.mha(x, memory, memory)[0])

    return Apply(f, mha=nn.MultiheadAttention(6, 2, batch_first=True), head=L(6, 2))


@case(
    "encoder_layer",
    reals(2, 4, 2),
    E(15, kinds="PRS", note="last norm up, head down"),
    *attention(3, 5),
    E(7, kinds="PR"),
)
def _():
    layer = nn.TransformerEncoderLayer(15, 3, 7, batch_first=True)
    return Apply(lambda m, x: m.head(m.layer(m.embed(x)).mean(1)), embed=L(2, 15), layer=layer, head=L(15, 2))


@case("encoder_layer_norm_first", reals(2, 4, 2), *block_group(15, 3, 5))
def _():
    layer = nn.TransformerEncoderLayer(15, 3, 7, activation="gelu", batch_first=True, norm_first=True)
    return Apply(lambda m, x: m.head(m.layer(m.embed(x)).mean(1)), embed=L(2, 15), layer=layer, head=L(15, 2))


def fused(split: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], by_hand: bool = False) -> nn.Module:
    """Self-attention, 3 heads of 5: `split` takes 45 numbers apart to three (batch, head, token, 5)."""

    def f(m, x):
        q, k, v = split(m.qkv(x))
        if by_hand:
            return m.out(joined((q @ k.transpose(-2, -1) / math.sqrt(5)).softmax(-1) @ v))
        return m.out(joined(F.scaled_dot_product_attention(q, k, v)))

    return Block(Apply(f, qkv=L(15, 45), out=L(15, 15)), 15)


@case("fused_qkv_permute", reals(2, 4, 2), *block_group(15, 3, 5))
def _():
    return fused(lambda y: y.reshape(*y.shape[:2], 3, 3, 5).permute(2, 0, 3, 1, 4), by_hand=True)


@case("fused_qkv_unbind", reals(2, 4, 2), *block_group(15, 3, 5))
def _():
    return fused(lambda y: y.reshape(*y.shape[:2], 3, 3, 5).permute(2, 0, 3, 1, 4).unbind(0))


@case("fused_qkv_chunk", reals(2, 4, 2), *block_group(15, 3, 5))
def _():
    return fused(lambda y: tuple(heads_first(z, 3) for z in y.chunk(3, dim=-1)))


@case("fused_qkv_split", reals(2, 4, 2), *block_group(15, 3, 5))
def _():
    return fused(lambda y: tuple(z.view(2, 4, 3, 5).transpose(1, 2) for z in y.split(15, dim=2)), by_hand=True)


@case("fused_qkv_in_heads", reals(2, 4, 2), *block_group(15, 3, 5))
def _():
    return fused(lambda y: y.view(2, 4, 3, 15).transpose(1, 2).chunk(3, dim=-1))


@case("attention_eights", reals(8, 8, 8), *block_group(8, 8, 8, 8), inert=("attend.k.bias",))
def _():
    def f(m, x):
        q, k, v = (heads_first(part(x), 8) for part in (m.q, m.k, m.v))
        return m.out(joined(F.scaled_dot_product_attention(q, k, v, is_causal=True)))

    return Block(Apply(f, q=L(8, 64), k=L(8, 64), v=L(8, 64), out=L(64, 8)), 8, 8, 8, 8)


class Rotary(nn.Module):
    """Rotate pairs of channels by an angle that grows with the position (RoFormer, Su et al. 2021)."""

    def __init__(self, channels: int, length: int, interleaved: bool = False):
        super().__init__()
        angle = torch.arange(length)[:, None] / 10 ** (torch.arange(channels // 2) * 2 / channels)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self.interleaved = interleaved

    def forward(self, x):
        if self.interleaved:
            a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
            return torch.stack([a * self.cos - b * self.sin, a * self.sin + b * self.cos], -1).flatten(-2)
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return x * torch.cat([self.cos, self.cos], -1) + turned * torch.cat([self.sin, self.sin], -1)


def rotary_attention(interleaved: bool) -> nn.Module:
    def f(m, x):
        q, k, v = (heads_first(part(x), 3) for part in (m.q, m.k, m.v))
        return m.out(joined(F.scaled_dot_product_attention(m.rotary(q), m.rotary(k), v)))

    parts = {"q": L(18, 18), "k": L(18, 18), "v": L(18, 18), "out": L(18, 18)}
    return Block(Apply(f, rotary=Rotary(6, 4, interleaved), **parts), 18)


ROTARY = (
    E(18, kinds="PO", note="stream"),
    E(3, note="heads"),
    E(3, (3,), "R", "a pair keeps its frequency: query up and key down"),
    E(2, (3, 3), "O", "both channels of a pair, query and key turned by one angle"),
    E(6, (3,), "PL", "value up, output down"),
    E(7),
)
case("rope_halves", reals(2, 4, 2), *ROTARY)(lambda: rotary_attention(False))
case("rope_interleaved", reals(2, 4, 2), *ROTARY)(lambda: rotary_attention(True))


class Llama(nn.Module):
    """Two kv heads, three query heads to each: tokens, RMSNorm, grouped attention, SwiGLU, RMSNorm, head."""

    def __init__(self, rotary: bool = False, repeat: bool = True):
        super().__init__()
        d, self.repeat = 4, repeat
        self.table, self.head = nn.Embedding(13, 7), L(7, 13, bias=False)
        self.n1, self.n2, self.n3 = (nn.RMSNorm(7, eps=1e-6) for _ in range(3))
        self.q, self.k, self.v, self.o = (L(*s, bias=False) for s in ((7, 6 * d), (7, 2 * d), (7, 2 * d), (6 * d, 7)))
        self.gate, self.up, self.down = L(7, 11, bias=False), L(7, 11, bias=False), L(11, 7, bias=False)
        self.rotary = Rotary(d, 5) if rotary else nn.Identity()

    def attend(self, x):
        q, k, v = heads_first(self.q(x), 6), heads_first(self.k(x), 2), heads_first(self.v(x), 2)
        q, k = self.rotary(q), self.rotary(k)
        if self.repeat:
            k, v = (z.repeat_interleave(3, dim=1) for z in (k, v))
        return self.o(joined(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=not self.repeat)))

    def forward(self, x):
        x = self.table(x)
        x = x + self.attend(self.n1(x))
        h = self.n2(x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.head(self.n3(x))


STREAM = E(7, kinds="PO", note="the stream turns under RMSNorm, each norm's weight folded into what reads it")
GROUPS = E(2, note="kv heads"), E(3, (2,), "P", "query heads of a kv head")
VALUES = E(4, (2,), "PL", "value up, output down, shared by the queries of a kv head")
SWIGLU = E(11, kinds="PRS", note="the linear half up, down-projection down")
LLAMA = (STREAM, *GROUPS, E(4, (2,), "PL", "query up, key down"), VALUES, SWIGLU)
case("llama", tokens(13, 2, 5), *LLAMA)(Llama)
case("llama_enable_gqa", tokens(13, 2, 5), *LLAMA)(lambda: Llama(repeat=False))
PAIRS = E(2, (2,), "R", "rotary pairs"), E(2, (2, 2), "O", "their rotations, shared by the queries of a kv head")
case("llama_rope", tokens(13, 2, 5), STREAM, *GROUPS, *PAIRS, VALUES, SWIGLU)(lambda: Llama(rotary=True))


@case("vit", reals(2, 1, 4, 4), *block_group(6, 2, 3))
def _():
    def f(m, x):
        h = m.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([m.first.expand(h.shape[0], -1, -1), h], dim=1) + m.positions
        h = m.encoder(h)
        return m.head(m.norm(h[:, 0]))

    layer = nn.TransformerEncoderLayer(6, 2, 7, activation="gelu", batch_first=True, norm_first=True)
    parts = {"patches": nn.Conv2d(1, 6, 2, stride=2), "norm": nn.LayerNorm(6), "head": L(6, 3)}
    return Apply(f, encoder=layer, first=free(1, 1, 6), positions=free(1, 5, 6), **parts)


# experts


@case("experts_einsum", reals(4, 3), E(5, note="experts"), E(7, (5,), "PR", "hidden units of an expert"))
def _():
    def f(m, x):
        gate = m.gate(x).softmax(-1)
        h = F.relu(torch.einsum("bi,ehi->beh", x, m.a) + m.a_bias)
        return torch.einsum("be,beh,eoh->bo", gate, h, m.b)

    return Apply(f, gate=L(3, 5), a=free(5, 7, 3), a_bias=free(5, 7), b=free(5, 2, 7))


@case("experts_index", reals(4, 3), *[E(7, kinds="PR")] * 3, also=(E(7, (3,), "PR"),))
def _():
    def f(m, x):
        return torch.stack([F.relu(x @ m.a[i].T) @ m.b[i] for i in range(3)], dim=1)

    return Apply(f, a=free(3, 7, 3), b=free(3, 7, 2))
