"""Data sets as tasks: embedded digits, and MNIST, Fashion-MNIST and CIFAR-10 from their official files.

Images are float32 (example, channel, height, width). The folder is `dir`, or else the environment variable
WEIGHTSPACE_DATA; it holds the files themselves or a folder named after the data set. Nothing is downloaded. The sizes
that a file claims are checked against its bytes before anything is allocated, and no code in a file is run. A file that
unpacks to more than 256 MiB and 4 times its size is refused, unless WEIGHTSPACE_UNPACKED allows that many bytes. Every
function raises `TaskError` for a file that is missing or unusable.
"""

from __future__ import annotations

import gzip
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from weightspace.net.public import public
from weightspace.task.examples import TaskError
from weightspace.task.formats import OFFICIAL, Split, about, find_file, read_idx, read_parquet, scaled
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import UInt8

__all__ = ["cifar10", "digits", "fashion_mnist", "mnist"]


# mean and standard deviation of the training pixels, channel by channel, on the scale [0, 1]
STATISTICS = {
    "mnist": ([0.1307], [0.3081]),
    "fashion-mnist": ([0.2860], [0.3530]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
}
_TEST_DIGITS = 450


@public
def digits(split: Split = "train", seed: int = 0, *, flat: bool = False, batch: int = 512) -> Task:
    """Handwritten digits, 8x8 pixels in [0, 1], 10 classes: 1347 for training and 450 for testing, embedded.

    With P the permutation of 1797 drawn by `numpy.random.RandomState(seed)`, P[:450] is the test split and
    P[450:] the training split, as in scikit-learn's `train_test_split(test_size=450, random_state=seed)`.
    `flat` gives (example, 64).
    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, 1998.

    >>> import weightspace as ws
    >>> ws.digits("test")
    Task(450 examples, cross-entropy, mean)
    >>> ws.digits().example(3).shape
    torch.Size([3, 1, 8, 8])
    """
    pixels, labels = _digits()
    order = np.random.RandomState(seed).permutation(len(labels))
    order = order[:_TEST_DIGITS] if split == "test" else order[_TEST_DIGITS:]
    images = torch.from_numpy(pixels[order]).float() / 16
    return Task(images if flat else images.view(-1, 1, 8, 8), labels[order].astype(np.int64), batch=batch)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels from the file that comes with scikit-learn, which is not imported: that takes a second."""
    home = find_spec("sklearn")
    if home is None or not home.submodule_search_locations:
        raise TaskError("the digits come with scikit-learn, which is not installed; pip install scikit-learn")
    path = Path(home.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path) as file:
            table = np.loadtxt(file, delimiter=",")
    except OSError as error:
        raise TaskError(f"{path}: the digits that come with scikit-learn cannot be read; reinstall it") from error
    return table[:, :-1], table[:, -1]


@public
def mnist(
    dir: str | os.PathLike[str] | None = None, split: Split = "train", *, flat: bool = False, batch: int = 512
) -> Task:
    """MNIST: handwritten digits, 28x28 pixels, 60,000 for training and 10,000 for testing, from its idx(.gz) files.

    Pixels are standardised to (x / 255 - .1307) / .3081.
    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits, 1998.

    >>> import weightspace as ws
    >>> ws.task.mnist("data")  # of a folder without the files
    Traceback (most recent call last):
    weightspace.task.examples.TaskError: data has no train-images-idx3-ubyte; give the folder of the official files
    """
    return _official("mnist", dir, split, flat, batch)


@public
def fashion_mnist(
    dir: str | os.PathLike[str] | None = None, split: Split = "train", *, flat: bool = False, batch: int = 512
) -> Task:
    """Fashion-MNIST: clothing, 28x28 pixels, 60,000 for training and 10,000 for testing, from its idx(.gz) files.

    Pixels are standardised to (x / 255 - .2860) / .3530.
    Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017.

    >>> import weightspace as ws
    >>> ws.task.fashion_mnist("data")  # of a folder without the files
    Traceback (most recent call last):
    weightspace.task.examples.TaskError: data has no train-images-idx3-ubyte; give the folder of the official files
    """
    return _official("fashion-mnist", dir, split, flat, batch)


@public
def cifar10(
    dir: str | os.PathLike[str] | None = None, split: Split = "train", *, flat: bool = False, batch: int = 512
) -> Task:
    """CIFAR-10: photographs, 3x32x32, 10 classes, from `train.parquet` and `test.parquet` (columns image, label).

    Standardised by channel, mean .4914 .4822 .4465, deviation .2470 .2435 .2616. Needs the `data` extra.
    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.

    >>> import weightspace as ws
    >>> ws.task.cifar10("data")  # of a folder without the files
    Traceback (most recent call last):
    weightspace.task.examples.TaskError: data has no train.parquet; give the folder of the official files
    """
    pixels, labels, _ = read_parquet(find_file(_folder("cifar10", dir), f"{split}.parquet"))
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (3, 32, 32):
        raise TaskError(f"{split}.parquet holds {pixels.shape[1:]} {pixels.dtype}, not images of (3, 32, 32)")
    return _images(pixels, labels, "cifar10", flat, batch)


def _folder(name: str, dir: str | os.PathLike[str] | None) -> Path:
    place = dir or os.environ.get("WEIGHTSPACE_DATA")
    if not place:
        raise TaskError(f"where is {name}? give its folder, or set WEIGHTSPACE_DATA to the folder of {name}/")
    path = Path(place).expanduser()
    return path / name if (path / name).is_dir() else path


def _official(name: str, dir: str | os.PathLike[str] | None, split: Split, flat: bool, batch: int) -> Task:
    folder, prefix = _folder(name, dir), OFFICIAL[split]
    path = find_file(folder, f"{prefix}-images-idx3-ubyte")
    pixels, labels = read_idx(path), read_idx(find_file(folder, f"{prefix}-labels-idx1-ubyte"))
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (28, 28):
        raise TaskError(f"{path} holds {pixels.shape[1:]} {pixels.dtype}, not images of (28, 28)")
    with about(path):
        return _images(pixels[:, None], labels, name, flat, batch)


def _images(pixels: UInt8[np.ndarray, "n c h w"], labels: np.ndarray, name: str, flat: bool, batch: int) -> Task:
    mean, deviation = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in STATISTICS[name])
    images = scaled(pixels).sub_(mean).div_(deviation)
    return Task(images.flatten(1) if flat else images, labels, batch=batch)
