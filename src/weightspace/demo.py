"""stub"""
from torch import nn
import torch

class DigitsCNN(nn.Sequential):
    """Three convolutions of 32, 64 and 64 channels and a linear layer, for digits of 8x8 pixels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * width, 10),
        )  # fmt: skip
        self.example_input_array = torch.zeros(2, 1, 8, 8)
digits_cnn = DigitsCNN
