"""Products with circulant weights by the Fourier transform: n log n operations in place of n^2.

Source: CirCNN (Ding et al., 2017), for layers of circulant blocks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.constraints.shared import Circulant
from weightspace.net.public import public

__all__ = ["FOURIER_SIZE", "FourierLinear", "circular"]

# of a block: from here on quicker than the matrix, forwards and backwards (experiments.forms speed)
FOURIER_SIZE = 256
_EXACT = (torch.float32, torch.float64)


@public(grad=False)
def circular(coefficients: Tensor, inputs: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The circular convolution y_o = sum_c w_oc * x_c: circulant blocks times inputs, by the Fourier transform.

    `coefficients`: (channels out, channels in, *grid), the first columns of the blocks, or `grid` alone for one block;
    `inputs`: (.., channels in x grid). Exact up to rounding.

    >>> import torch
    >>> import weightspace as ws
    >>> ws.constraints.circular(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([[1.0, 2.0, 3.0]]), (3,))   # a shift by one
    tensor([[3., 1., 2.]])
    """
    if coefficients.dim() == len(grid):
        coefficients = coefficients[None, None]
    dims, size = tuple(range(-len(grid), 0)), math.prod(grid)
    x = inputs.reshape(-1, inputs.shape[-1] // size, *grid)
    left = torch.fft.rfftn(coefficients, dim=dims).flatten(2)
    right = torch.fft.rfftn(x, dim=dims)
    product = torch.einsum("ocf,bcf->bof", left, right.flatten(2))
    out = torch.fft.irfftn(product.view(len(x), len(left), *right.shape[2:]), s=grid, dim=dims)
    return out.reshape(*inputs.shape[:-1], len(left) * size)


class FourierLinear(nn.Linear):
    """A linear layer that multiplies by the Fourier transform while its weight is constrained to circulant blocks.

    Where that is not possible (half precision, an export of the graph) it multiplies with the matrix.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs x W^T + b."""
        chains: Any = getattr(self, "parametrizations", {})
        chain: Any = chains["weight"] if "weight" in chains else ()
        kind = getattr(chain[0], "kind", None) if len(chain) == 1 else None
        told = torch.compiler.is_compiling() or torch.compiler.is_exporting() or not inputs.numel()
        if told or not isinstance(kind, Circulant) or not inputs.dtype == chain.original.dtype in _EXACT:
            return super().forward(inputs)
        found = circular(chain.original, inputs, kind.circle(chain[0].shape))
        return found if self.bias is None else found + self.bias
