"""What a folder holds: one network a file or a Hugging Face folder, and a reason for the rest."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from weightspace.atlas.scan import Found, Left, scan
from weightspace.checkpoint import writer
from weightspace.net.net import Net
from weightspace.path.trail import Trail

W = {"w": torch.arange(8.0).view(2, 4), "v": torch.ones(3)}


def names(folder):
    return [one.name for one in scan(folder) if isinstance(one, Found)]


def reasons(folder):
    return {one.path.name: one.reason for one in scan(folder) if isinstance(one, Left)}


def put(path, tensors=W):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def test_files_are_named_by_their_place(tmp_path):
    for name in ("b.safetensors", "a/x.safetensors", "a/deep/er/y.v2.safetensors", "c.pt", "d.ckpt"):
        put(tmp_path / name)
    for name in ("notes.txt", "model.py", "data.npz", ".hidden.safetensors", ".git/x.safetensors", "optimizer.pt",
                 "training_args.bin", "tokenizer.model", "resume-00010.safetensors"):  # fmt: skip
        put(tmp_path / name)
    assert names(tmp_path) == ["b", "c", "d", "a/x", "a/deep/er/y.v2"] and not reasons(tmp_path)


def test_a_hugging_face_folder_is_one_network(tmp_path):
    put(tmp_path / "bert" / "model.safetensors")
    (tmp_path / "bert" / "config.json").write_text("{}")
    torch.save(W, tmp_path / "bert" / "pytorch_model.bin")
    found = [*scan(tmp_path)]
    assert found == [Found(tmp_path / "bert", "bert")]
    assert [*scan(tmp_path / "bert")] == [Found(tmp_path / "bert", "bert")]


@pytest.mark.parametrize("config", [True, False])
def test_shards_belong_to_their_index(tmp_path, config):
    folder = tmp_path / "large"
    folder.mkdir()
    writer.save(W, folder / "model.safetensors", shard=16)
    if config:
        (folder / "config.json").write_text("{}")
    assert names(tmp_path) == ["large" if config else "large/model"] and len([*folder.iterdir()]) == 3 + config


def test_what_holds_no_network_is_left_with_a_reason(tmp_path):
    (tmp_path / "code.pt2").write_bytes(b"PK")
    net = Net.of(nn.Linear(2, 2))
    Trail(tmp_path / "run.points", net)
    put(tmp_path / "other" / "atlas.db")
    put(tmp_path / "other" / "a.safetensors")
    found = reasons(tmp_path)
    assert not names(tmp_path)
    assert "is code and was not opened" in found["code.pt2"] and "holds a path" in found["run.points"]
    assert "is an atlas itself" in found["other"]


def test_links_and_depth_end(tmp_path):
    put(tmp_path / "a.safetensors")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "a.safetensors")
    assert names(tmp_path) == ["a", "b"]
    deep = tmp_path
    for _ in range(45):
        deep = deep / "d"
    put(deep / "x.safetensors")
    assert names(tmp_path) == ["a", "b"] and "deeper than 40" in [*reasons(tmp_path).values()][0]


def test_a_folder_that_cannot_be_read_does_not_end_the_walk(tmp_path, monkeypatch):
    put(tmp_path / "a" / "x.safetensors")
    put(tmp_path / "b" / "y.safetensors")
    real = os.scandir

    def closed(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert names(tmp_path) == ["b/y"] and reasons(tmp_path) == {"a": "cannot be read (Permission denied)"}
