"""Files as other tools leave them: the one network in them, or a refusal that names what could be meant."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import weightspace as ws
from weightspace.cli import main

NETS = """
import torch
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
"""


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


A, B = mlp().state_dict(), mlp(1).state_dict()
ADAM = {"state": {0: {"exp_avg": torch.ones(8, 6)}}, "param_groups": [{"lr": 0.1}]}


def under(prefix: str, state: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def same(net: ws.Net, state: dict) -> bool:
    return all(torch.equal(net.weights[n], w) for n, w in state.items())


def averaged() -> dict:
    return torch.optim.swa_utils.AveragedModel(mlp()).state_dict()


ONE = {
    "net": {"net": A, "epoch": 10},
    "any other word": {"backbone": A, "epoch": 10},
    "two levels": {"checkpoint": {"model": A, "optimizer": ADAM}, "args": {"lr": 0.1}},
    "beside an optimiser": {"network_fn_state_dict": A, "adam": ADAM, "scheduler": {"base_lrs": [0.1]}},
    "an optimiser of one level": {"params": A, "optimizer": {"exp_avg": torch.ones(9)}},
    "an average alone": {"ema": A, "optimizer": ADAM},
    "beside an average": {"model": A, "model_ema": B},
    "timm": {"state_dict": A, "state_dict_ema": B, "epoch": 1},
    "an average in capitals": {"weights": A, "weightsEMA": B},
    "params": {"params_ema": B, "params": A},
    "beside a teacher": {"teacher": B, "student": B, "model": A},
    "class weights beside": {"model": A, "class_weights": torch.ones(10)},
    "best score and history": {"state_dict": A, "callbacks": {"c": {"best_model_score": torch.tensor(0.5)}}},
    "random states": {"model": A, "rng_state": torch.zeros(20, dtype=torch.uint8)},
    "averaged model": averaged(),
    "averaged model inside": {"net": averaged(), "epoch": 1},
    "data parallel": under("module.", A),
    "compiled inside of Lightning": {"state_dict": under("model._orig_mod.", A)},
    "Lightning": {"state_dict": under("model.", A), "pytorch-lightning_version": "2", "loops": {}},
    "compiled in parts": {"0._orig_mod.weight": A["0.weight"], **{n: t for n, t in A.items() if n != "0.weight"}},
    "flat with an optimiser": {**A, "optimizer": ADAM, "epoch": 3},
    "flat beside an average": {**A, "ema": B},
}


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_one_network_in_a_file_is_taken(tmp_path, name, zipped):
    torch.save(ONE[name], tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert same(ws.Net.of(mlp(2)).load(ws.checkpoint.read(tmp_path / "a.pt")), A)


SEVERAL = {
    "two of no usual name": ({"G": A, "D": B}, "'G', 'D'"),
    "two of usual names": ({"net": A, "model": B}, "'net', 'model'"),
    "parts of one": ({"encoder": A, "decoder": B}, "'encoder', 'decoder'"),
    "two averages": ({"ema": A, "swa": B}, "'ema', 'swa'"),
    "a network among tensors": ({**A, "critic": B}, "'critic'"),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_where_several_could_be_meant_all_are_named(tmp_path, name):
    value, words = SEVERAL[name]
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(ws.WeightspaceError, match=f"{words}.*--weights"):
        ws.checkpoint.read(tmp_path / "a.pt")
    last = words.split(", ")[-1].strip("'")
    assert same(ws.Net.of(mlp()).load(ws.checkpoint.read(tmp_path / "a.pt", weights=last)), B)
    with pytest.raises(ws.WeightspaceError, match="no weights called 'nothing'"):
        ws.checkpoint.read(tmp_path / "a.pt", weights="nothing")


def test_an_average_is_chosen_by_its_name_at_every_level(tmp_path):
    torch.save({"state_dict": A, "state_dict_ema": B}, tmp_path / "a.pt")
    torch.save({"state_dict": {**under("model.", A), **under("model_ema.", B)}, "lr": 0.1}, tmp_path / "b.ckpt")
    save_file({**A, **under("ema.", B)}, tmp_path / "c.safetensors")
    for name in ("a.pt", "b.ckpt", "c.safetensors"):
        found = ws.checkpoint.read(tmp_path / name, weights="ema")
        assert same(ws.Net.of(mlp()).load(found), B) and "took" in found.notes[-1]
    save_file(A, tmp_path / "d.safetensors")
    assert "holds no weights called 'ema'" in ws.checkpoint.read(tmp_path / "d.safetensors", weights="ema").notes[0]


def test_a_prefix_with_more_beside_is_named(tmp_path):
    torch.save({"state_dict": {**under("model.", A), "criterion.weight": torch.ones(3)}}, tmp_path / "a.ckpt")
    with pytest.raises(ws.WeightspaceError, match=r"under 'model\.', beside criterion\.weight.*weights='model'"):
        ws.Net.of(mlp()).load(ws.checkpoint.read(tmp_path / "a.ckpt"))
    found = ws.checkpoint.read(tmp_path / "a.ckpt", weights="model")
    assert same(ws.Net.of(mlp()).load(found), A) and "criterion.weight" in found.notes[-1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


OPTIONS = ("--arch", "nets:mlp", "--example", "2x6")


def test_commands_tell_what_a_file_holds_beside_and_choose(here, capsys):
    torch.save({"state_dict": A, "state_dict_ema": B, "epoch": 1}, "a.pt")
    torch.save({**under("model.", A), "criterion.weight": torch.ones(3)}, "c.pt")
    save_file(A, "same.safetensors")
    save_file(B, "other.safetensors")
    assert main(["compare", "a.pt", "same.safetensors", *OPTIONS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"]["kind"] == "same" and any("state_dict_ema" in note for note in found["notes"])
    assert main(["compare", "a.pt", "other.safetensors", *OPTIONS, "--json", "--weights", "ema"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"]["kind"] == "same" and any("left out 'state_dict'" in note for note in found["notes"])
    for words in (
        ("align", "c.pt", "--to", "same.safetensors", "-o", "o.safetensors"),
        ("merge", "c.pt", "same.safetensors", "-o", "m.safetensors"),
    ):
        assert main([*words, *OPTIONS]) == 0
        told = capsys.readouterr()
        assert "criterion.weight" in told.out, words
    assert main(["perturb", "a.pt", "-o", "p.safetensors", "--arch", "nets:mlp"]) == 0
    assert "state_dict_ema" in capsys.readouterr().out


def test_a_note_is_told_where_a_command_fails(here, capsys):
    torch.save({"state_dict": A, "state_dict_ema": B}, "a.pt")
    save_file({n: t * float("nan") for n, t in A.items()}, "b.safetensors")
    assert main(["compare", "a.pt", "b.safetensors", *OPTIONS]) == 2
    assert "state_dict_ema" in capsys.readouterr().err


# folders


def written(folder: Path, **files: dict) -> Path:
    folder.mkdir()
    for name, state in files.items():
        name = name.replace("__", ".").replace("_0", "-0")
        save_file(state, folder / name) if name.endswith("safetensors") else torch.save(state, folder / name)
    return folder


FOLDERS = {
    "a .bin": {"pytorch_model__bin": A, "training_args__bin": {"lr": torch.ones(2)}},
    "a variant": {"model__fp16__safetensors": A},
    "diffusers": {"diffusion_pytorch_model__safetensors": A},
    "a variant of diffusers": {"diffusion_pytorch_model__fp16__safetensors": A},
    "both forms": {"model__safetensors": A, "pytorch_model__bin": A},
    "one of another name": {"consolidated__pth": A, "optimizer__pt": ADAM},
    "beside an adapter": {"model__safetensors": A, "adapter_model__safetensors": B},
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_as_they_come(tmp_path, name):
    folder = written(tmp_path / "m", **FOLDERS[name])
    (folder / "config.json").write_text("{}")
    found = ws.checkpoint.read(folder)
    assert same(ws.Net.of(mlp()).load(found), A)
    more = [item for item in FOLDERS[name] if not item.startswith(("training", "optimizer"))]
    assert bool(found.notes) == (len(more) > 1)


def test_a_variant_is_chosen_and_stale_shards_are_told(tmp_path):
    folder = written(tmp_path / "m", model__fp16__safetensors=A, model__bf16__safetensors=B)
    with pytest.raises(ws.WeightspaceError, match="variants 'bf16', 'fp16'.*--weights"):
        ws.checkpoint.read(folder)
    assert same(ws.Net.of(mlp()).load(ws.checkpoint.read(folder, weights="bf16")), B)
    ws.checkpoint.save(A, tmp_path / "m", shard=100)
    save_file(B, tmp_path / "m" / "model-00009-of-00009.safetensors")
    found = ws.checkpoint.read(tmp_path / "m")
    assert same(ws.Net.of(mlp()).load(found), A) and "model-00009-of-00009" in found.notes[0]


REFUSED = {
    "a distributed checkpoint": ([".metadata", "__0_0.distcp"], "dcp_to_torch"),
    "DeepSpeed": (["zero_to_fp32.py", "latest"], "DeepSpeed"),
    "an adapter without weights": (["adapter_config.json"], "no checkpoint"),
    "GGUF": (["model-q4.gguf"], "GGUF"),
    "TensorFlow": (["tf_model.h5"], "TensorFlow"),
    "Flax": (["flax_model.msgpack"], "Flax"),
    "shards alone": (["model-00001-of-00002.safetensors"], "without the .index.json"),
    "two of no usual name": (["a.pt", "b.pt"], "'a.pt', 'b.pt'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_folders_of_other_kinds_say_what_to_do(tmp_path, name):
    files, words = REFUSED[name]
    for file in files:
        (tmp_path / file).write_bytes(b"x" * 20)
    with pytest.raises(ws.WeightspaceError, match=words) as error:
        ws.checkpoint.read(tmp_path)
    assert "\n" not in str(error.value)


# by content, not by name


@pytest.mark.parametrize("ending", ["", ".th", ".model", ".weights", ".pkl", ".safetensors", ".pt"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_the_content_says_what_a_file_is(tmp_path, ending, kind):
    path = tmp_path / f"a{ending}"
    save_file(A, path) if kind == "safetensors" else torch.save(A, path, _use_new_zipfile_serialization=kind == "zip")
    assert same(ws.Net.of(mlp()).load(ws.checkpoint.read(path)), A)


OTHERS = {
    "a pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "git lfs pull",
    ),
    "a page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "XML": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(100), "GGUF"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "unpack"),
    "tar": (bytes(257) + b"ustar" + bytes(300), "tar archive"),
    "JSON": (b'{"error": "Repository not found"}', "JSON text"),
    "npy": (b"\x93NUMPY" + bytes(100), "numpy array"),
    "parquet": (b"PAR1" + bytes(100), "parquet"),
    "text": (b"Entry not found", "not|truncated|header"),
}


@pytest.mark.parametrize("ending", [".safetensors", ".bin", ".pt", ""])
@pytest.mark.parametrize("name", OTHERS)
def test_what_lies_in_place_of_weights_is_named(tmp_path, name, ending):
    content, words = OTHERS[name]
    (tmp_path / f"a{ending}").write_bytes(content)
    with pytest.raises(ws.WeightspaceError, match=words) as error:
        ws.checkpoint.read(tmp_path / f"a{ending}")
    assert "\n" not in str(error.value)


def test_archives_and_dtypes_that_are_none_of_torch_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones(3))
    with pytest.raises(ws.WeightspaceError, match="numpy arrays"):
        ws.checkpoint.read(tmp_path / "a.npz")
    for dtype in (torch.float4_e2m1fn_x2, torch.bits8, torch.float8_e8m0fnu):
        torch.save({"w": torch.zeros(4, dtype=torch.uint8).view(dtype)}, tmp_path / "a.pt")
        with pytest.raises(ws.WeightspaceError, match=f"'w' is of {dtype}.*float32"):
            ws.checkpoint.read(tmp_path / "a.pt")


def test_one_flipped_byte_of_what_torch_saved_is_seen(tmp_path):
    """The zip carries checksums, which torch itself does not look at; where it was told to write none, it is read."""
    torch.save(A, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[data.index(A["2.weight"].numpy().tobytes()) + 5] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    assert not torch.equal(torch.load(tmp_path / "a.pt", weights_only=True)["2.weight"], A["2.weight"]), "the premise"
    with pytest.raises(ws.WeightspaceError, match=r"2\.weight' is damaged"):
        ws.Net.of(mlp()).load(ws.checkpoint.read(tmp_path / "a.pt"))
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(A, tmp_path / "b.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(ws.Net.of(mlp()).load(ws.checkpoint.read(tmp_path / "b.pt")), A)
