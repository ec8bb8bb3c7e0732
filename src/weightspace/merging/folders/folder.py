"""What a Hugging Face folder holds besides weights: the files of the parents that a merged network needs to be loaded.

The configuration, tokenizer, generation settings, processors, licence files and a model card. No code is run; code that
a configuration asks for is copied only where that is allowed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from weightspace.checkpoint import files
from weightspace.checkpoint.refusal import refusal, some
from weightspace.merging.folders.card import CARD, About, card, said_name
from weightspace.merging.folders.configuration import CONFIG, Changes, as_text, config_of, inside, merged_config, plain
from weightspace.merging.folders.tokenizer_files import CHAT, SETTINGS, tokenizer_files
from weightspace.net.public import public

__all__ = ["Carried", "carried", "home_of"]

_BESIDE = (
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "feature_extractor.json"),
    *("image_processor_config.json", "feature_extractor_config.json", "modules.json", "sentence_bert_config.json"),
    "config_sentence_transformers.json",
)
_ASKING = (SETTINGS, *_BESIDE)
GENERATION = "generation_config.json"
_LEGAL = re.compile(r"(?i)(licen[cs]e|notice|use_policy|copying)([-_.].*)?")
_IDS = re.compile(r"\w+_token_ids?")
_TEXT = 1 << 20  # bytes of a licence


@dataclass(frozen=True)
class Carried:
    """The files of a merged network's folder besides the weights: their content, or the file that is copied."""

    files: Mapping[str, bytes | Path]
    notes: tuple[str, ...]

    @public
    def write(self, out: Path, force: bool = False) -> list[Path]:
        """Write all into a folder, whole or none; returns their paths.

        Raises `CheckpointError` where one exists and not `force`, and where that fails.
        """
        if not force and (old := [name for name in self.files if (out / name).exists()]):
            raise refusal(out, f"holds {some(old)}", "choose another folder, or overwrite with force (--force)")
        made: dict[Path, Callable[[BinaryIO], None]] = {}
        try:
            for name, content in self.files.items():
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                made[out / name] = partial(_put, content)
            files.write_all(made)
        except OSError as error:
            do = "free space or choose another place"
            raise refusal(out, f"could not be written ({error.strerror or error})", do) from error
        return list(made)


def _put(content: bytes | Path, file: BinaryIO) -> None:
    if isinstance(content, bytes):
        file.write(content)
        return
    with content.open("rb") as source:
        shutil.copyfileobj(source, file)


def home_of(path: Path) -> Path | None:
    """The Hugging Face folder of a checkpoint: it, or the folder of the file, where that has a `config.json`."""
    folder = path if path.is_dir() else path.parent
    return folder if (folder / CONFIG).is_file() else None


@public
def carried(
    parents: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str] | None = None,
    *,
    changes: Changes | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    chat_template: str | None = None,
    about: About | None = None,
    remote_code: bool = False,
) -> Carried:
    """The files besides the weights that the merged network of some folders needs to be loaded, and notes.

    `changes`: what the merge changed in the configuration. `tokenizer`: "first", "base", "union" or the folder of one,
    where the rows of the weights were numbered by it (see `vocabulary`); None where the parents were merged row by row,
    which asks that their tokens have the same ids. `chat_template`: a text that takes the place of the
    first's. `about`: what the model card says. `remote_code`: whether the files of Python that a configuration asks for
    are copied. Nothing is written. Of parents that are no Hugging Face folders there is a note and no file. Raises
    `CheckpointError` where the configurations do not fit, where tokenizers that differ would be taken for one, where
    code is asked for and not allowed, and where a file cannot be read.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> import weightspace as ws
    >>> from weightspace.merging.folders.folder import carried
    >>> net, _ = ws.demo.example()
    >>> with tempfile.TemporaryDirectory() as place:
    ...     folders = [Path(place) / name for name in "ab"]
    ...     for folder in folders:
    ...         folder.mkdir()
    ...         _ = (folder / "config.json").write_text(json.dumps({"model_type": "digits"}))
    ...         _ = ws.checkpoint.save(net.weights, folder)
    ...     sorted(carried(folders).files)
    ['README.md', 'config.json']
    """
    paths, origin = [Path(path) for path in parents], None if base is None else Path(base)
    homes = [home_of(path) for path in [*paths, *([origin] if origin is not None else [])]]
    folders = [home for home in homes if home is not None]
    if not folders:
        return Carried({}, ("no config.json beside the parents: nothing but the weights is written",))
    first, changes = folders[0], changes or Changes()
    notes = [] if homes[0] is not None else [f"{paths[0]} has no config.json; that of {said_name(first)} was taken"]
    config, said = merged_config([*map(config_of, folders)], [*map(said_name, folders)], changes)
    notes += said
    of_base = folders[-1] if base is not None and homes[-1] is not None else None
    made, moved, said = tokenizer_files(folders, of_base, None if tokenizer is None else os.fspath(tokenizer))
    notes += said
    made |= {name: path for name in (*_BESIDE, GENERATION) if (path := inside(first, name)) is not None}
    made |= _sentences(first, notes) | _licences(folders, notes)
    asking = {CONFIG: config, **{name: plain(content) for name, content in made.items() if name in _ASKING}}
    made |= _code(folders, asking, remote_code, notes)
    if moved is not None:
        config = _moved(config, moved, CONFIG, notes)
        if GENERATION in made:
            made[GENERATION] = as_text(_moved(plain(made[GENERATION]), moved, GENERATION, notes))
    if chat_template is not None:
        made[CHAT] = chat_template.encode()
        settings = plain(made.get(SETTINGS))
        if settings.pop("chat_template", None) is not None:
            made[SETTINGS] = as_text(settings)
    text, said = card(paths, origin, about or About())
    return Carried({CONFIG: as_text(config), **made, CARD: text.encode()}, (*notes, *said))


def _moved(settings: Mapping[str, Any], moved: Mapping[int, int | None], name: str, notes: list[str]) -> dict[str, Any]:
    """The settings with the ids of tokens in their new numbering; ids that have none are left out, with a note."""
    made: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            made[key] = _moved(value, moved, name, notes)
        elif not _IDS.fullmatch(key) or value is None:
            made[key] = value
        else:
            ids = value if isinstance(value, list) else [value]
            new = [moved.get(k) if type(k) is int else None for k in ids]
            if any(k is None for k in new):
                notes.append(f"{name}: {key} {value!r:.60} is no token of the new tokenizer and was left out")
            else:
                made[key] = new if isinstance(value, list) else new[0]
    return made


def _sentences(folder: Path, notes: list[str]) -> dict[str, bytes | Path]:
    """The settings of the modules after the network in a folder of sentence-transformers."""
    listed = inside(folder, "modules.json")
    try:
        modules = files.read_json(listed) if listed is not None else []
    except (OSError, ValueError) as error:
        raise refusal(folder / "modules.json", f"cannot be read ({error})") from error
    made: dict[str, bytes | Path] = {}
    for module in modules if isinstance(modules, list) else []:
        name = module.get("path") if isinstance(module, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            continue
        if (path := inside(folder, f"{name}/config.json")) is not None:
            made[f"{name}/config.json"] = path
        if (folder / name).is_dir() and any(p.suffix in (".safetensors", ".bin") for p in (folder / name).iterdir()):
            notes.append(f"{name} has weights of its own, which are left out: copy or merge them apart")
    return made


def _licences(folders: Sequence[Path], notes: list[str]) -> dict[str, bytes | Path]:
    """The licence files of all folders; of several that differ, the later ones under their parent's name."""
    made: dict[str, bytes | Path] = {}
    for folder in dict.fromkeys(folders):
        for name in sorted(p.name for p in folder.iterdir() if _LEGAL.fullmatch(p.name)):
            path = inside(folder, name)
            if path is None or path.stat().st_size > _TEXT:
                continue
            first = made.get(name)
            if first is None:
                made[name] = path
            elif isinstance(first, Path) and first.read_bytes() != path.read_bytes():
                own = re.sub(r"[^\w.-]", "-", said_name(folder))
                made[f"{own}-{name}"] = path
                notes.append(f"{name} of {own} is another than the first's and was kept as {own}-{name}")
    return made


def _code(
    folders: Sequence[Path], asking: Mapping[str, Mapping[str, Any]], allowed: bool, notes: list[str]
) -> dict[str, bytes | Path]:
    """The files of Python of the first folder, where a file of settings asks for code and that is allowed."""
    first, wanting = folders[0], [name for name, settings in asking.items() if settings.get("auto_map")]
    if not wanting:
        return {}
    if not allowed:
        seen = f"asks for code of its own (auto_map in {', '.join(wanting)}), which every program that loads it runs"
        do = "read it, and where you trust it have it copied: remote_code=True (--copy-code)"
        raise refusal(first, seen, do)
    found = {name: inside(first, name) for name in sorted(p.name for p in first.iterdir() if p.suffix == ".py")}
    made: dict[str, bytes | Path] = {name: path for name, path in found.items() if path is not None}
    notes.append(f"code was copied and not run: {', '.join(made) or 'none is in the folder, it comes from elsewhere'}")
    for other in dict.fromkeys(folders[1:]):
        differ = [
            n for n, p in found.items() if p and (other / n).is_file() and (other / n).read_bytes() != p.read_bytes()
        ]
        if differ:
            notes.append(f"{some(differ)} of {said_name(other)} is another; the first's was copied")
    return made
