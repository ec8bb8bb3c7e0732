"""Architectures, example inputs and networks named on the command line: `package.module:factory`, folders, `.pt2`.

`package.module:factory` is imported from the current directory or the environment, which runs the user's own code. A
Hugging Face folder names its architecture in `config.json`; code in it is never run. An exported program (`.pt2`) is
code that came with a file, so it is opened only with `--trust-code`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import math
import os
import re
import sys
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.checkpoint import reader
from weightspace.checkpoint.files import FileNote, read_json
from weightspace.checkpoint.refusal import chosen, some
from weightspace.net.errors import ArchitectureMismatch, WeightspaceError
from weightspace.net.names import prefixes
from weightspace.net.net import Net

__all__ = ["ArchitectureError", "Stored", "check", "example_of", "find", "load", "parse_example"]


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


def find(arch: str | None, paths: list[Path], trust_code: bool = False) -> nn.Module:
    """The module that `arch` names, with arbitrary weights; without `arch`, the one that `paths[0]` describes.

    `arch` is `package.module:factory`, a Hugging Face folder (with `config.json`) or a `.pt2`. Raises
    `ArchitectureError` where there is none.

    >>> from weightspace.checkpoint import architecture
    >>> type(architecture.find("weightspace.demo:digits_cnn(width=4)", [])).__name__
    'Sequential'
    """
    if arch is None:
        described = [q for p in paths[:1] for q in (p, p.parent) if (q / "config.json").is_file() or q.suffix == ".pt2"]
        if not described and any((p / "adapter_config.json").is_file() for p in paths):
            raise ArchitectureError(f"{paths[0]} holds an adapter, not a whole network; merge it into its base model")
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


def _open_program(path: Path, trust_code: bool) -> Any:
    if not path.is_file():
        raise ArchitectureError(f"{path}: no such file; check the path")
    if not trust_code:
        raise ArchitectureError(f"{path} {_PT2}")
    try:
        return torch.export.load(path)
    except Exception as error:
        raise ArchitectureError(f"{path} is not an exported program ({_reason(error)}); write it again") from error


def _program(path: Path, trust_code: bool) -> nn.Module:
    module = _open_program(path, trust_code).module()

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
    raise ArchitectureError("what does an input look like? give --data, or --example with a shape such as 2x3x32x32")


# ------------------------------------------------------------------ checkpoints of it


class Stored(Mapping[str, Tensor]):
    """The tensors of a network under the names of its file, each computed when read: `move(network's name, tensor)`."""

    def __init__(self, source: Mapping[str, Tensor], net: Net, move: Any) -> None:
        self._source, self._move = source, move
        first: dict[int, str] = {}
        architecture = net.architecture
        named = [
            *architecture.named_parameters(remove_duplicate=False),
            *architecture.named_buffers(remove_duplicate=False),
        ]
        self._own = {name: first.setdefault(id(tensor), name) for name, tensor in named}

    def __getitem__(self, name: str) -> Tensor:
        return self._move(self._own[name], self._source[name])

    @property
    def shapes(self) -> Mapping[str, torch.Size] | None:
        """The shapes of the tensors by name, where the source has them without reading data; else None."""
        return getattr(self._source, "shapes", None)

    @property
    def dtypes(self) -> Mapping[str, torch.dtype] | None:
        """The dtypes of the tensors by name, where the source has them without reading data; else None."""
        return getattr(self._source, "dtypes", None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)


class _Part(Mapping[str, Tensor]):
    """Some tensors of a file, under other names. `names`: new name -> name in the file."""

    def __init__(self, source: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._source, self._names = source, names

    def __getitem__(self, name: str) -> Tensor:
        return self._source[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def shapes(self) -> Mapping[str, torch.Size] | None:
        """The shapes of the tensors by name, where the source has them without reading data; else None."""
        return self._cut(getattr(self._source, "shapes", None))

    @property
    def dtypes(self) -> Mapping[str, torch.dtype] | None:
        """The dtypes of the tensors by name, where the source has them without reading data; else None."""
        return self._cut(getattr(self._source, "dtypes", None))

    def _cut(self, known: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return None if known is None else {name: known[source] for name, source in self._names.items()}


def _named(template: Net, source: Mapping[str, Tensor], path: Path) -> tuple[Mapping[str, Tensor], list[str]]:
    """The tensors of a file without a prefix such as "model.", and a note of what was left out.

    A file that holds the architecture under several prefixes holds several networks: see `refusal.chosen`.
    """
    under = prefixes(template.architecture, template.tensors, source)
    if not under:
        return source, []
    start = chosen(path, [prefix.rstrip(".") for prefix in under])
    start += "." if start else ""
    other = tuple(prefix for prefix in under if prefix != start and not start)
    left = [name for name in source if not name.startswith(start) or (other and name.startswith(other))]
    if not left and not start:
        return source, []
    gone = {*left}
    names = {name.removeprefix(start): name for name in source if name not in gone}
    return _Part(source, names), [f"took {start!r}, left out {some(left)}"] if left else []


def _translated(template: Net, path: Path, source: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of an older Hugging Face folder under today's names, and a note of what was left out.

    Transformers has since renamed the layers of some networks, and translates the names. Empty where the tensors do not
    fit. Its own report is not printed.
    """
    kind: Any = type(template.architecture)
    folder = path if path.is_dir() else path.parent
    if not kind.__module__.startswith("transformers.") or not (folder / "config.json").is_file():
        return {}, []
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            model, seen = kind.from_pretrained(
                None, config=template.architecture.config, state_dict=dict(source), output_loading_info=True,
                local_files_only=True, use_safetensors=True, dtype="auto",
            )  # fmt: skip
    except Exception:  # the caller reports the names that do not fit
        return {}, []
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    if seen["missing_keys"] or seen["mismatched_keys"]:
        return {}, []
    left = sorted(seen["unexpected_keys"])
    return dict(model.state_dict()), [f"left out {some(left)}"] if left else []


def check(template: Net, path: Path) -> None:
    """Raise `WeightspaceError` unless a checkpoint can be opened and its names and shapes fit the network.

    No tensor is read, except of a folder whose names transformers has to translate.

    >>> import tempfile
    >>> import weightspace as ws
    >>> from weightspace.checkpoint import architecture
    >>> net, _ = ws.demo.example()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     architecture.check(net, ws.checkpoint.save(net.tensors, folder))
    """
    if path.suffix == ".pt2":
        return
    opened = reader.read(path)
    shapes, dtypes = opened.shapes, opened.dtypes
    hollow = {name: torch.empty(shapes[name], dtype=dtypes[name], device="meta") for name in opened}
    _fit(template, hollow, path, opened)


def _fit(
    template: Net, source: Mapping[str, Tensor], path: Path, whole: Mapping[str, Tensor]
) -> tuple[Net, Mapping[str, Tensor], list[str]]:
    """The network of these tensors, the tensors under names that fit it, and notes of what was left out.

    `source` may be on the meta device; `whole` holds the data.
    """
    tensors, notes = _named(template, source, path)
    try:
        return template.load(tensors), tensors, notes
    except ArchitectureMismatch as error:
        found, notes = _translated(template, path, whole)
        if not found:
            raise ArchitectureError(f"{path}: {error}{_hint(source)}") from error
    return template.load(found), found, notes


def _hint(names: Iterable[str]) -> str:
    changes = all("lora_" in name or "adapter" in name for name in names)
    return " It holds an adapter, not a whole network: merge it into its base model first." if changes else ""


def load(template: Net, path: Path, trust_code: bool = False) -> tuple[Net, Mapping[str, Tensor], dict[str, str]]:
    """The network of a checkpoint, its tensors under the names of the file, and the metadata of the file.

    Warns by a `FileNote` of everything that was left out or renamed. Raises `WeightspaceError` for a file that cannot
    be read, tensors that do not fit, several networks among which none was chosen, and NaN or infinity.

    >>> import tempfile
    >>> import weightspace as ws
    >>> from weightspace.checkpoint import architecture
    >>> net, _ = ws.demo.example()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found, tensors, metadata = architecture.load(net, ws.checkpoint.save(net.tensors, folder))
    >>> float((found - net).norm())
    0.0
    """
    notes: list[str] = []
    if path.suffix == ".pt2":
        source: Mapping[str, Tensor] = dict(_open_program(path, trust_code).state_dict)
        metadata: dict[str, str] = {}
    else:
        opened = reader.read(path)
        source, metadata, notes = opened, dict(opened.metadata), list(opened.notes)
    net, source, more = _fit(template, source, path, source)
    for note in [*notes, *more]:
        warnings.warn(f"{path}: {note}", FileNote, stacklevel=2)
    bad = [*net.weights.unusable(), *net.state.unusable()]
    if bad:
        raise ArchitectureError(f"{path}: NaN or infinity in {bad[0]}; give weights from before training diverged")
    return net, source, metadata
