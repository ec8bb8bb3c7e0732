"""Architectures, example inputs and networks named on the command line: `package.module:factory`, folders, `.pt2`.

`package.module:factory` is imported from the current directory or the environment, which runs the user's own code. A
Hugging Face folder names its architecture in `config.json`; code in it is never run. An exported program (`.pt2`) is
code that came with a file, so it is opened only with `--trust-code`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.checkpoint import adapter
from weightspace.checkpoint.files import read_json
from weightspace.net.errors import WeightspaceError

__all__ = ["ArchitectureError", "ExampleError", "example_of", "find", "parse_example"]


_FORM = "give --arch package.module:factory, such as mypkg.models:resnet20 or mypkg.models:resnet20(width=16)"
_PT2 = (
    "is an exported program, which is code: opening one can run anything it holds; "
    "if you trust where it came from, add --trust-code"
)
_HF = "needs transformers; install it by pip install 'weightspace[hf]', or give --arch"
_LARGEST_EXAMPLE = 1 << 28
_IMAGE = 64  # pixels, the side of an example image for a network that takes any size


class ArchitectureError(WeightspaceError):
    """An architecture, example input or checkpoint that does not exist or does not fit."""


class ExampleError(ArchitectureError):
    """An architecture that does not say what its inputs look like."""


def find(arch: str | None, paths: list[Path], trust_code: bool = False) -> nn.Module:
    """The module that `arch` names, with arbitrary weights; without `arch`, the one that `paths[0]` describes.

    `arch` is `package.module:factory`, a Hugging Face folder (with `config.json`) or a `.pt2`. A low-rank adapter is
    described by its own tensors (see `checkpoint.adapter`). Raises `ArchitectureError` where there is none.

    >>> from weightspace.checkpoint import architecture
    >>> type(architecture.find("weightspace.demo:digits_cnn(width=4)", [])).__name__
    'Sequential'
    """
    if arch is None:
        described = [q for p in paths[:1] for q in (p, p.parent) if (q / "config.json").is_file() or q.suffix == ".pt2"]
        if not described and paths and adapter.describes(paths[0]):
            return adapter.of(paths)
        if not described:
            raise ArchitectureError(f"which architecture do these weights belong to? {_FORM}")
        arch = str(described[0])
    path = Path(arch).expanduser()
    if path.suffix == ".pt2":
        return _program(path, trust_code)
    if path.is_dir():
        return _pretrained(path)
    return _made(arch)


# ------------------------------------------------------------------ package.module:factory


def _made(arch: str) -> nn.Module:
    module, factory, arguments = _parse(arch)
    made = _attribute(_import(module, arch), factory, arch)
    if isinstance(made, nn.Module):
        if arguments:
            raise ArchitectureError(f"--arch {arch}: {factory} is a module already and takes no arguments")
        return made
    if not callable(made):
        raise ArchitectureError(f"--arch {arch}: {factory} is a {type(made).__name__}, not a function or Module class")
    try:
        net = made(**arguments)
    except (Exception, SystemExit) as error:
        raise ArchitectureError(f"--arch {arch}: {factory} failed with {_reason(error)}; see --debug") from error
    if not isinstance(net, nn.Module):
        raise ArchitectureError(f"--arch {arch}: {factory}() gave a {type(net).__name__}, wanted a torch.nn.Module")
    return net


def _parse(arch: str) -> tuple[str, str, dict[str, Any]]:
    """The parts of `pkg.mod:factory(width=16)`: ("pkg.mod", "factory", {"width": 16}); arguments are literals."""
    module, colon, call = arch.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module):
        seen = "no such folder, and no colon" if not colon else f"{module!r} is not a module name"
        raise ArchitectureError(f"--arch {arch}: {seen}; {_FORM}")
    try:
        tree = ast.parse(call.strip(), mode="eval").body
        called = tree if isinstance(tree, ast.Call) else None
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in called.keywords if k.arg} if called else {}
        if called and (called.args or len(arguments) != len(called.keywords)):
            raise ValueError("write arguments as name=value")
        name = ast.unparse(called.func if called else tree)
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
            raise ValueError(f"{name!r} is not a name")
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ArchitectureError(f"--arch {arch}: cannot be understood ({_reason(error)}); {_FORM}") from error
    return module, name, arguments


def _import(module: str, arch: str) -> types.ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if module == missing or module.startswith(f"{missing}."):
            raise ArchitectureError(
                f"--arch {arch}: there is no module {missing!r} here ({here}) or in the environment; {_FORM}"
            ) from error
        raise ArchitectureError(f"--arch {arch}: {module} needs {missing}, which is not installed") from error
    except (Exception, SystemExit) as error:
        raise ArchitectureError(f"--arch {arch}: importing {module} failed with {_reason(error)}") from error


def _attribute(module: types.ModuleType, name: str, arch: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            candidates = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            own = [n for n in candidates if getattr(vars(module)[n], "__module__", "") == module.__name__]
            raise ArchitectureError(
                f"--arch {arch}: {module.__name__} has no {name!r}; it defines {', '.join(own[:6]) or 'no function'}"
            )
        found = getattr(found, part)
    return found


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# ------------------------------------------------------------------ Hugging Face folders


def _pretrained(folder: Path) -> nn.Module:
    """The transformers model that `config.json` names, with random weights; no code of the folder is run."""
    path = folder / "config.json"
    if not path.is_file():
        raise ArchitectureError(f"{folder} has no config.json, so it is not a Hugging Face model; {_FORM}")
    try:
        import transformers
    except ImportError as error:
        raise ArchitectureError(f"{folder} {_HF}") from error
    try:
        names = read_json(path)["architectures"] or [None]
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        config.use_cache = False  # outputs that hold a cache cannot be exported
        named = getattr(transformers, str(names[0]), None)
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            return named(config)
        return transformers.AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ArchitectureError(f"{path} describes no model of transformers ({_reason(error)}); give --arch") from error


# ------------------------------------------------------------------ exported programs


def open_program(path: Path, trust_code: bool) -> Any:
    if not path.is_file():
        raise ArchitectureError(f"{path}: no such file; check the path")
    if not trust_code:
        raise ArchitectureError(f"{path} {_PT2}")
    try:
        return torch.export.load(path)
    except Exception as error:
        raise ArchitectureError(f"{path} is not an exported program ({_reason(error)}); write it again") from error


def _program(path: Path, trust_code: bool) -> nn.Module:
    module = open_program(path, trust_code).module()

    def stay(self: nn.Module, mode: bool = True) -> nn.Module:
        return self  # the mode was fixed at export, and torch's own method raises an error

    module.train = types.MethodType(stay, module)
    module.eval = types.MethodType(stay, module)
    return module


# ------------------------------------------------------------------ examples


def parse_example(text: str, seed: int = 0) -> Tensor:
    """An example input from text: `2x3x32x32`, standard normal numbers; `ids:2x16`, the token ids 0, 1, 2, ...

    Raises `ArchitectureError` for text that is not a shape.

    >>> from weightspace.checkpoint import architecture
    >>> architecture.parse_example("2x1x8x8").shape
    torch.Size([2, 1, 8, 8])
    """
    kind, colon, shape = text.rpartition(":")
    try:
        sizes = [int(n) for n in shape.lower().replace(",", "x").split("x")]
    except ValueError:
        sizes = []
    if (
        not sizes
        or min(sizes) < 1
        or math.prod(sizes) > _LARGEST_EXAMPLE
        or kind not in ("", "ids")
        or (colon and not kind)
    ):
        raise ArchitectureError(
            f"--example {text}: not a shape; give sizes with the batch first, such as 2x3x32x32, or ids:2x16 for tokens"
        )
    if kind:
        return torch.arange(math.prod(sizes)).remainder(8).reshape(sizes)
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def _tokens(config: Any) -> Tensor:
    """Token ids of two short texts, (2, 8): 0, 1, 2, ..."""
    return torch.arange(16).reshape(2, 8).remainder(getattr(config, "vocab_size", None) or 16)


def _images(config: Any) -> Tensor:
    """Two random images (2, channels, height, width)."""
    size = getattr(config, "image_size", _IMAGE)
    size = size if isinstance(size, (list, tuple)) else [size] * 2
    return torch.randn(2, getattr(config, "num_channels", 3), *size)


def _spectra(config: Any) -> Tensor:
    """Two random spectrograms, with two frames for each position: the convolutions of a speech encoder halve them."""
    return torch.randn(2, getattr(config, "num_mel_bins", 80), 2 * getattr(config, "max_source_positions", 1500))


def _sound(config: Any) -> Tensor:
    """Two random waveforms, long enough for sixteen frames."""
    return torch.randn(2, 16 * math.prod(getattr(config, "conv_stride", [320])) + 400)


_INPUTS = {"input_ids": _tokens, "pixel_values": _images, "input_features": _spectra, "input_values": _sound}


def example_of(module: nn.Module) -> Any:
    """An example input of a module: its `example_input_array` (Lightning), or one made for a transformers model.

    Of a transformers model: tokens, images or sound, as its main input is; with tokens for the decoder, or images
    beside the text, where it takes both. Raises `ArchitectureError` for any other module.

    >>> import weightspace as ws
    >>> from weightspace.checkpoint import architecture
    >>> architecture.example_of(ws.demo.digits_cnn(width=4)).shape
    torch.Size([2, 1, 8, 8])
    """
    own = getattr(module, "example_input_array", None)
    if own is not None:
        return own
    config, main = getattr(module, "config", None), getattr(module, "main_input_name", "")
    if config is not None and main in _INPUTS:
        taken = inspect.signature(module.forward).parameters
        text, images = (getattr(config, name, config) for name in ("text_config", "vision_config"))
        example = {main: _INPUTS[main](images if main == "pixel_values" else text)}
        if main == "input_ids" and images is not config and "pixel_values" in taken:
            example["pixel_values"] = _images(images)
        if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in taken:
            example["decoder_input_ids"] = _tokens(getattr(config, "decoder", config))
        return example
    raise ExampleError("what does an input look like? give --data, or --example with a shape such as 2x3x32x32")
