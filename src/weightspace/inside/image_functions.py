"""Image functions: the part of one example in a gradient step, read as a function of its own.

With a_i the input of a layer on example i and d_i = dL_i/dz the gradient at its pre-activations z (zero where the gate
is off), the gradient of that example's loss is the linear map x -> d_i (a_i . x) + d_i, for a convolution the
convolution with the kernel made of d_i and a_i. Under SGD with batches B_t and learning rate r, w_T - w_0 is
-r sum_t mean_{i in B_t} f_i^t.
Source: Image functions in neural networks: a perspective on generalization (anonymous, 2021), equations 2, 3 and 10.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace.net.differentiable import called
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.goal import gradient
from weightspace.task.task import Task

__all__ = ["ImageFunction", "image_function"]


@public
@dataclass(frozen=True)
class ImageFunction:
    """The image function f_i of example i: in every layer, the linear map with the gradient of its loss as weights.

    `weights` is that gradient. Made by `image_function`.
    """

    net: Net
    weights: Weights

    @property
    def layers(self) -> dict[str, list[str]]:
        """Layer -> names of its weights, for all linear maps and convolutions."""
        found = {}
        for path, module in self.net.architecture.named_modules():
            names = [f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
            if names and hasattr(module, "weight") and module.weight.dim() > 1 and not isinstance(module, nn.Embedding):
                found[path] = [name for name in names if name in self.weights]
        return {path: names for path, names in found.items() if names}

    def __call__(self, x: Tensor, layer: str) -> Tensor:
        """f_i of one layer at inputs x of that layer: d_i (a_i . x) + d_i for every unit."""
        if layer not in self.layers:
            raise WeightspaceError(f"no layer {layer!r} here; there are {', '.join(self.layers)}")
        module = self.net.architecture.get_submodule(layer)
        own = {name.removeprefix(f"{layer}.").lstrip("."): self.weights[name] for name in self.layers[layer]}
        return called(module, own, (x.to(self.net.dtype),), {})

    @torch.no_grad()
    def isolated(self, task: Task) -> Tensor:
        """The outputs on a task of the network whose layers have -f_i for weights: the example's step alone.

        Parameters of normalisation layers stay as they are.
        """
        names = {name for names in self.layers.values() for name in names}
        alone = self.net.weights.replace({n: -self.weights[n] for n in names})
        return task.outputs(self.net.at(alone, self.net.state))

    def correlation(self, other: ImageFunction) -> dict[str, float]:
        """Layer -> cosine <f, g> / (|f| |g|) of weights and biases, and "all" for all layers; 0 where one is zero."""
        self.net.check(other.net)
        groups = {**self.layers, "all": list(self.weights)}
        return {layer: _cosine(self.weights, other.weights, names) for layer, names in groups.items()}


@public(order=("net", "example", "task"))
def image_function(net: Net, task: Task, example: int) -> ImageFunction:
    """The gradient of the loss of one example of `task`, as a function in every layer of `net`; in evaluation mode.

    Raises `WeightspaceError` for an index out of range, or a task without labels.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> f = ws.image_function(net, task, example=0)
    >>> f.layers
    {'1': ['1.weight', '1.bias'], '3': ['3.weight', '3.bias']}
    >>> f(task.example(60).flatten(1), layer="1").shape
    torch.Size([60, 16])
    >>> round(f.correlation(f)["all"], 3)
    1.0
    """
    if not 0 <= example < len(task):
        raise WeightspaceError(f"example {example} is not in a task of {len(task)} examples; count from 0")
    return ImageFunction(net, gradient(task.pick([example]), checked(net)))


def _cosine(v: Weights, u: Weights, names: list[str]) -> float:
    products = [sum(float(a[n].double().flatten() @ b[n].double().flatten()) for n in names)
                for a, b in ((v, u), (v, v), (u, u))]  # fmt: skip
    size = (products[1] * products[2]) ** 0.5
    return products[0] / size if size else 0.0
