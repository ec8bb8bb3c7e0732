"""Copies under their content: in a folder, and in a store of fsspec (its memory stands for a cloud)."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest
import torch

import weightspace as ws
from weightspace.atlas.content import content
from weightspace.atlas.objects import Objects
from weightspace.checkpoint import reader
from weightspace.net.errors import WeightspaceError

W = {"w": torch.arange(8.0).view(2, 4)}
KEY = content(W).key


@pytest.fixture
def cloud():
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


def test_a_copy_is_what_its_name_says(tmp_path):
    store = Objects(tmp_path / "objects")
    path = store.put(KEY, W)
    assert content(reader.read(path)).key == KEY == path.stem and store.file(KEY) == path
    assert store.put(KEY, W) == path and len([*tmp_path.rglob("*.*")]) == 1
    store.remove(KEY)
    store.remove(KEY)
    with pytest.raises(WeightspaceError, match="not there any more; add the network again"):
        store.file(KEY)


def test_a_cloud_store_is_fetched_once_and_checked(tmp_path, cloud):
    Objects("memory://nets", tmp_path / "here").put(KEY, W)
    other = Objects("memory://nets", tmp_path / "there")
    path = other.file(KEY)
    assert content(reader.read(path)).key == KEY and path.is_relative_to(tmp_path / "there")
    assert not [name for name in cloud.store if name.endswith(".part")]
    cloud.store.clear()
    assert other.file(KEY) == path
    with pytest.raises(WeightspaceError, match="cannot be fetched"):
        Objects("memory://nets", tmp_path / "third").file(KEY)


def test_a_cloud_that_holds_something_else_is_refused(tmp_path, cloud):
    Objects("memory://nets", tmp_path / "here").put(KEY, W)
    (place,) = cloud.store
    Objects("memory://nets", tmp_path / "x").put(content({"w": torch.zeros(2)}).key, {"w": torch.zeros(2)})
    (other,) = {*cloud.store} - {place}
    cloud.store[place] = cloud.store[other]
    with pytest.raises(WeightspaceError, match="is not what was stored there"):
        Objects("memory://nets", tmp_path / "there").file(KEY)
    assert not [*(tmp_path / "there").rglob("*.safetensors")]


@pytest.mark.parametrize(
    "root", ["http://127.0.0.1/x", "filecache::memory://x", "simplecache::s3://b", "github://a:b@c"]
)
def test_addresses_that_could_reach_anything_are_refused(root):
    with pytest.raises(WeightspaceError, match="networks are kept in a folder, or under s3"):
        Objects(root)


@pytest.mark.parametrize("key", ["../../etc/passwd", "", "A" * 64, KEY + "/x"])
def test_a_key_is_never_a_path(tmp_path, key):
    with pytest.raises(WeightspaceError, match="not the key of a content"):
        Objects(tmp_path).put(key, W)
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightspaceError, match="cannot be made"):
        Objects(tmp_path / "file" / "objects").put(KEY, W)


def test_a_copied_folder_reads_back_with_its_configuration_and_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=16)
    folder = tmp_path / "gpt"
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "evil.py").write_text("raise SystemExit")
    with ws.Atlas(tmp_path / "atlas") as atlas:
        member = atlas.add(folder, name="gpt", copy=True)
        kept = Path(member.made)
        assert tmp_path / "atlas" in kept.parents and member.kind == "object"
        assert atlas.add(folder, name="gpt", copy=True).made == member.made
        shutil.rmtree(folder)
        assert {item.name for item in kept.iterdir()} == {
            "config.json", "generation_config.json", "tokenizer.json", "model.safetensors"
        }  # fmt: skip
        again = transformers.AutoModelForCausalLM.from_pretrained(kept)
        assert again.config.n_embd == 8 and len(atlas.net("gpt").weights) > 0
        assert not atlas.check()
        atlas.remove("gpt")
        assert not kept.exists()
