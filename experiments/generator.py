"""Training the small generator of digits that the playground shakes: a conditional variational autoencoder.

An encoder of an 8 x 8 digit and its class has the mean and deviation of four latent numbers, from which the decoder
(`weightspace.web.playground.generator`) draws the digit again; only the decoder is kept. The embedded training digits
alone are used, and the loss on the test digits is printed: pixels' cross-entropy plus KL, in nats a picture.

    python -m experiments.generator [--seed 0] [--epochs 300] [--out src/weightspace/web/static/digits.safetensors]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import weightspace as ws
from weightspace.web.playground.generator import DIGITS, FILE, LATENTS, decoder

BATCH, RATE = 64, 2e-3


class Pair(nn.Module):
    """Encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64 + DIGITS, 256), nn.ReLU(), nn.Linear(256, 2 * LATENTS))
        self.decoder = decoder()

    def forward(self, pixels: Tensor, digits: Tensor, noise: Tensor) -> Tensor:
        """The loss in nats a picture: minus the evidence lower bound."""
        mean, log = self.encoder(torch.cat([pixels, digits], 1)).chunk(2, 1)
        drawn = mean + noise * (log / 2).exp()
        logits = self.decoder(torch.cat([digits, drawn], 1))
        apart = F.binary_cross_entropy_with_logits(logits, pixels, reduction="none").sum(1)
        return (apart + (mean.square() + log.exp() - log - 1).sum(1) / 2).mean()


def examples(split: str) -> tuple[Tensor, Tensor]:
    task = ws.task.digits(split, flat=True)
    return task.example(len(task)), F.one_hot(task.labels(), DIGITS).float()


def trained(seed: int, epochs: int) -> tuple[nn.Module, float]:
    """The decoder, and the loss on the test digits."""
    torch.manual_seed(seed)
    pair, (pixels, digits) = Pair(), examples("train")
    steps = epochs * -(-len(pixels) // BATCH)
    optimiser = torch.optim.Adam(pair.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(epochs):
        for part in torch.randperm(len(pixels)).split(BATCH):
            loss = pair(pixels[part], digits[part], torch.randn(len(part), LATENTS))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        pixels, digits = examples("test")
        return pair.decoder, float(pair(pixels, digits, torch.randn(len(pixels), LATENTS)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.generator", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--out", type=Path, default=FILE)
    given = parser.parse_args(arguments)
    made, loss = trained(given.seed, given.epochs)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    note = {"made by": f"python -m experiments.generator --seed {given.seed} --epochs {given.epochs}"}
    save_file({name: w.contiguous() for name, w in made.state_dict().items()}, given.out, note)
    print(f"{given.out.name}: {given.out.stat().st_size / 1000:.0f} kB, {loss:.2f} nats a picture on test digits")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
