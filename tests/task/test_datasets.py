"""Data sets and data files: what they hold, and one line for each that cannot be read."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from weightspace.net.errors import WeightspaceError
from weightspace.task import data_files, datasets, formats
from weightspace.task.task import Task

DATA = Path(__file__).parents[3] / "shared" / "data"
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def needs(*names):
    absent = [name for name in names if not (DATA / name).exists()]
    return pytest.mark.skipif(bool(absent), reason=f"no {', '.join(absent)} in ../shared/data")


def whole(task: Task):
    parts = list(task.batches())
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def pixels(n=5, shape=(28, 28), seed=0):
    return np.random.RandomState(seed).randint(0, 256, (n, *shape)).astype(np.uint8)


def idx(array, code=0x08, sizes=None):
    sizes = array.shape if sizes is None else sizes
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, code, len(sizes), *sizes) + array.tobytes()


def refused(match, read, *args, **options):
    with pytest.raises(WeightspaceError, match=match) as caught:
        read(*args, **options)
    assert "\n" not in str(caught.value)


# embedded digits


def test_digits_are_the_split_of_scikit_learn():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    for seed in (0, 3):
        train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=450, random_state=seed)
        for split, rows, labels in (("train", train_x, train_y), ("test", test_x, test_y)):
            images, found = whole(datasets.digits(split, seed=seed))
            assert images.dtype == torch.float32 and found.dtype == torch.int64
            assert images.shape == (len(rows), 1, 8, 8) and len(rows) == {"train": 1347, "test": 450}[split]
            assert np.array_equal(images.flatten(1) * 16, rows) and np.array_equal(found, labels)
    assert not torch.equal(whole(datasets.digits(seed=0))[1], whole(datasets.digits(seed=1))[1])


def test_digits_are_flat_on_request_and_scaled_to_one():
    x, _ = whole(datasets.digits("test", flat=True))
    assert x.shape == (450, 64) and float(x.min()) == 0 and float(x.max()) == 1
    refused("split takes 'train' or 'test', got str 'valid'$", datasets.digits, "valid")


# official folders


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "mnist"
    place.mkdir()
    (place / f"{IMAGES}.gz").write_bytes(gzip.compress(idx(pixels())))
    (place / LABELS).write_bytes(idx(np.arange(5, dtype=np.uint8)))
    (place / "t10k-images-idx3-ubyte").write_bytes(idx(pixels(3, seed=1)))
    (place / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(3, dtype=np.uint8))))
    return place


def test_a_folder_is_given_or_found(folder, monkeypatch):
    monkeypatch.delenv("WEIGHTSPACE_DATA", raising=False)
    expected = (torch.from_numpy(pixels().astype(np.float32))[:, None] / 255 - 0.1307) / 0.3081
    for dir in (folder, str(folder), folder.parent):
        x, y = whole(datasets.mnist(dir))
        torch.testing.assert_close(x, expected)
        assert y.tolist() == list(range(5))
    refused("where is mnist.*WEIGHTSPACE_DATA", datasets.mnist)
    monkeypatch.setenv("WEIGHTSPACE_DATA", str(folder.parent))
    assert len(datasets.mnist(split="test")) == 3 and datasets.mnist(flat=True).example(1).shape == (1, 784)
    x, _ = whole(datasets.fashion_mnist(folder))
    torch.testing.assert_close(x, (expected * 0.3081 + 0.1307 - 0.2860) / 0.3530, rtol=0, atol=1e-5)


def test_a_folder_is_read_by_its_name(folder):
    assert torch.equal(whole(data_files.read(folder))[0], whole(datasets.mnist(folder))[0])
    assert len(data_files.read(folder, split="test")) == 3
    fashion = folder.rename(folder.parent / "Fashion-MNIST")
    assert torch.equal(whole(data_files.read(fashion))[0], whole(datasets.fashion_mnist(fashion))[0])
    refused("not a folder of mnist", data_files.read, folder.parent)
    refused("split takes 'train' or 'test', got str 'all'$", data_files.read, fashion, split="all")


def test_official_files_that_are_not_there_or_not_official(folder):
    (folder / LABELS).unlink()
    refused(f"has no {LABELS}", datasets.mnist, folder)
    refused("has no train.parquet", datasets.cifar10, folder)
    (folder / LABELS).write_bytes(idx(np.arange(4, dtype=np.uint8)))
    refused(r"inputs \(5, 1, 28, 28\) and labels \(4,\)", datasets.mnist, folder)
    (folder / f"{IMAGES}.gz").write_bytes(idx(pixels(5, (8, 8))))
    refused(r"not images of \(28, 28\)", datasets.mnist, folder)


@needs("mnist", "fashion-mnist")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_official_test_images_are_standard(name):
    load = {"mnist": datasets.mnist, "fashion-mnist": datasets.fashion_mnist}[name]
    x, y = whole(load(DATA, split="test"))
    assert x.shape == (10_000, 1, 28, 28) and sorted(set(y.tolist())) == list(range(10))
    assert abs(float(x.mean())) < 0.02 and abs(float(x.std()) - 1) < 0.02
    by_path = data_files.read(DATA / name / "t10k-images-idx3-ubyte.gz").take(7)
    mean, deviation = datasets.STATISTICS[name]
    torch.testing.assert_close((by_path.example(7) - mean[0]) / deviation[0], x[:7])


@needs("cifar10")
def test_official_photographs_are_standard(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is in the data extra")
    pytest.importorskip("PIL", reason="Pillow is in the data extra")
    rows = parquet.read_table(DATA / "cifar10" / "test.parquet").slice(0, 1000)
    parquet.write_table(rows, tmp_path / "test.parquet")
    x, y = whole(datasets.cifar10(tmp_path, split="test"))
    assert x.shape == (1000, 3, 32, 32) and y.tolist() == rows["label"].to_pylist()
    assert float(x.mean((0, 2, 3)).abs().max()) < 0.1 and float((x.std((0, 2, 3)) - 1).abs().max()) < 0.1


# idx


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("code", TYPES)
def test_idx_files_of_every_type(tmp_path, code, pack):
    dtype = TYPES[code]
    array = np.arange(-6, 6).reshape(2, 3, 2).astype(dtype)
    (tmp_path / "a-images-idx3-x").write_bytes(pack(idx(array, code)))
    (tmp_path / "a-labels-idx1-x.gz").write_bytes(gzip.compress(idx(np.arange(2, dtype=np.uint8))))
    x, y = whole(data_files.read(tmp_path / "a-images-idx3-x"))
    expected = array[:, None] / np.float32(255) if code == 0x08 else array[:, None]
    assert np.allclose(x.numpy(), expected) and y.tolist() == [0, 1]
    assert x.dtype == (torch.float32 if code == 0x08 else torch.from_numpy(array.astype(dtype[1:])).dtype)


def broken_idx():
    good = idx(pixels(2, (2, 2)))
    huge = idx(pixels(0), sizes=(2**32 - 1, 2**32 - 1, 2**32 - 1))
    bomb = gzip.compress(idx(np.zeros((4, 1000, 1000), np.uint8), sizes=(2, 2, 2)))
    return {
        "empty": (b"", "is empty"),
        "cut in the magic": (good[:3], "not an idx file|not of a known kind"),
        "cut in the header": (good[:9], "cut short in its header"),
        "cut in the body": (good[:-1], "claims 8 bytes .* in|too many"),
        "cut gzip": (gzip.compress(good)[:-9], "broken or cut short"),
        "gzip cut in its header": (gzip.compress(good)[:5], "broken or cut short"),
        "corrupt gzip": (gzip.compress(good)[:10] + b"\xff" * 30, "broken or cut short"),
        "gzip with less than it claims": (gzip.compress(good[:-1] + b""), "claims 8 bytes.*holds 7"),
        "too long": (good + b"x", "holds more"),
        "wrong type": (b"\0\0\x07" + good[3:], "begins with 00000703"),
        "wrong rank": (b"\0\0\x08\0" + good[4:], "begins with 00000800"),
        "another gzip": (gzip.compress(b"hello"), "begins with 68656c6c"),
        "huge": (huge, "claims .* too many"),
        "huge, packed": (gzip.compress(huge), "claims .* too many"),
        "bomb": (bomb, "holds more"),
        "no images": (idx(pixels(0, (2, 2))), r"inputs \(0, 1, 2, 2\)"),
    }


@pytest.mark.parametrize("name", broken_idx())
def test_idx_files_that_are_broken(tmp_path, name):
    body, message = broken_idx()[name]
    (tmp_path / IMAGES).write_bytes(body)
    (tmp_path / LABELS).write_bytes(idx(np.arange(2, dtype=np.uint8)))
    refused(message, data_files.read, tmp_path / IMAGES)


def test_idx_labels_are_beside_or_there_are_none(tmp_path):
    (tmp_path / IMAGES).write_bytes(idx(pixels()))
    bare = data_files.read(tmp_path / IMAGES)
    assert len(bare) == 5 and next(bare.batches())[1] is None and "without labels" in bare.notes[0]
    (tmp_path / LABELS).write_bytes(idx(np.arange(5, dtype=np.uint8)))
    refused("not named as images", data_files.read, tmp_path / LABELS)
    assert data_files.read(tmp_path / IMAGES).labels().tolist() == list(range(5))


# npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("x", "y"), ("inputs", "labels"), ("x_train", "y_train"), ("b", "c")])
def test_npz_files(tmp_path, names, save):
    x, y = np.random.RandomState(0).randn(6, 3), np.arange(6, dtype=np.int32)
    others = {"x_test": x[:2], "y_test": y[:2]} if names[0] == "x_train" else {}
    arrays = {**others, **dict(zip(names, (x, y), strict=True)), "a": np.zeros(1)}
    save(tmp_path / "d.npz", **arrays)
    found, labels = whole(data_files.read(tmp_path / "d.npz", batch=4))
    assert np.array_equal(found, x) and found.dtype == torch.float64 and labels.tolist() == list(range(6))
    if others:
        assert len(data_files.read(tmp_path / "d.npz", split="test")) == 2


TEXT = {"input_ids", "attention_mask"}
IDS = np.arange(42).reshape(6, 7)
MASK = IDS % 2
ROLES = {
    "labels by their name": (
        {"input_ids": IDS, "attention_mask": MASK, "labels": IDS},
        {"input_ids", "attention_mask"},
    ),
    "in any order": ({"labels": IDS, "attention_mask": MASK, "input_ids": IDS}, TEXT),
    "a mask of another name": ({"x": IDS, "padding_mask": IDS > 3, "y": IDS}, {"x", "padding_mask"}),
    "types": ({"input_ids": IDS, "token_type_ids": IDS, "targets": IDS}, {"input_ids", "token_type_ids"}),
    "inputs of no usual name": ({"label": IDS, "pixels": IDS}, None),
    "capitals": ({"X": IDS, "Y": IDS}, None),
}


@pytest.mark.parametrize("name", ROLES)
def test_arrays_are_taken_for_what_they_are_called(tmp_path, name):
    arrays, inputs = ROLES[name]
    np.savez(tmp_path / "d.npz", **arrays)
    task = data_files.read(tmp_path / "d.npz")
    assert torch.equal(task.labels(), torch.from_numpy(IDS))
    batch = next(iter(task.batches()))[0]
    assert isinstance(batch, torch.Tensor) if inputs is None else {*batch} == inputs
    assert not task.notes


def test_inputs_and_a_mask_alone_have_no_labels(tmp_path):
    np.savez(tmp_path / "d.npz", input_ids=IDS, attention_mask=MASK)
    assert next(iter(data_files.read(tmp_path / "d.npz").batches()))[1] is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("x", "y", "labels"), "holds x, y, labels"),
        (("a", "b", "c"), "which are the labels"),
        (("a", "b", "y"), "which are the inputs"),
        (("x", "mask", "z"), "which are the labels"),
        (("mask", "y"), "holds mask, y"),
    ],
)
def test_arrays_that_could_be_either_are_refused(tmp_path, names, words):
    np.savez(tmp_path / "d.npz", **dict.fromkeys(names, IDS))
    refused(words, data_files.read, tmp_path / "d.npz")


def test_what_is_guessed_or_left_out_is_noted(tmp_path):
    np.savez(tmp_path / "d.npz", first=IDS, second=IDS[:, 0], names=np.zeros(2))
    guessed, left = data_files.read(tmp_path / "d.npz").notes
    assert "'first' for the inputs and 'second' for the labels" in guessed and "left out 'names'" in left
    found = data_files.read(table(tmp_path / "d.parquet", a=[0.5, 1.0], coarse_label=[5, 6], fine_label=[1, 2]))
    assert found.example(2).tolist() == [[0.5], [1.0]] and found.labels().tolist() == [1, 2]
    assert "left out 'coarse_label'" in found.notes[0]
    refused("images in the columns a, b", data_files.read, table(tmp_path / "e.parquet", a=[b"x"], b=[b"x"], y=[1]))


@pytest.mark.parametrize("kind", ["npz", "idx", "parquet", "images"])
def test_what_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, kind):
    """By default, too much is more than 4 times the file and 256 MiB; a user can raise it."""
    path, zeros = tmp_path / (IMAGES + ".gz" if kind == "idx" else "d.npz"), np.zeros((40, 1000), np.uint8)
    if kind == "npz":
        np.savez_compressed(path, x=zeros, y=np.arange(40))
    elif kind == "idx":
        path.write_bytes(gzip.compress(idx(zeros.reshape(40, 25, 40))))
        (tmp_path / LABELS).write_bytes(idx(np.arange(40, dtype=np.uint8)))
    elif kind == "parquet":
        table(path, **{f"c{k}": zeros[0] for k in range(40)}, label=zeros[0])
    else:
        pytest.importorskip("PIL")
        table(path, image=[encode(np.zeros((25, 40, 3), np.uint8))] * 40, label=list(range(40)))
    assert len(data_files.read(path)) in (40, 1000)
    monkeypatch.setenv("WEIGHTSPACE_UNPACKED", "30000")
    refused("unpacks from .* set WEIGHTSPACE_UNPACKED=", data_files.read, path)
    monkeypatch.setenv("WEIGHTSPACE_UNPACKED", "1000000")
    assert len(data_files.read(path)) in (40, 1000)
    monkeypatch.delenv("WEIGHTSPACE_UNPACKED")
    if kind in ("npz", "idx"):
        monkeypatch.setattr(formats, "_UNPACKED", 30_000)
        refused("unpacks from .* set WEIGHTSPACE_UNPACKED=", data_files.read, path)


def test_a_pointer_or_a_page_in_place_of_data_is_named(tmp_path):
    for text, words in (("version https://git-lfs.github.com/spec/v1", "git-lfs pointer"), ("<html>", "web page")):
        (tmp_path / "d.npz").write_text(text)
        refused(words, data_files.read, tmp_path / "d.npz")


def test_memory_that_is_full_is_not_called_damage(tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", x=IDS, y=IDS[:, 0])

    def full(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(formats.npy, "read_array", full)
    refused("does not fit into the free memory", data_files.read, tmp_path / "d.npz")


def test_npz_bytes_are_scaled_and_a_regression_stays_one(tmp_path):
    np.savez(tmp_path / "d.npz", x=pixels(4, (2, 2)), y=np.linspace(0, 1, 4))
    task = data_files.read(str(tmp_path / "d.npz"))
    assert np.allclose(task.example(4), pixels(4, (2, 2)) / 255) and task.metric == "squared"


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Bomb.mark),)


def npz(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(f"{name}.npy", body)
    return file.getvalue()


def npy(array, shape=None):
    file = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def broken_npz():
    x, y = npy(np.ones((3, 2))), npy(np.arange(3))
    good, short = npz(x=x, y=y), npy(np.ones((3, 2)))[:-8]
    liar = bytearray(npz(x=x, y=y))
    spot = liar.rindex(b"PK\x01\x02", 0, liar.rindex(b"PK\x01\x02")) + 24
    liar[spot : spot + 4] = struct.pack("<I", 2**31)
    return {
        "one array": (npz(y=y), "holds y; save it"),
        "no array": (npz(), "holds no array"),
        "cut": (good[: len(good) // 2], "broken or cut short"),
        "no zip": (b"PK\x03\x04" + b"junk" * 9, "broken or cut short"),
        "not arrays": (npz(x=b"hello", y=b"world"), "broken or cut short"),
        "huge header": (npz(x=npy(np.ones(2), shape=(2**40, 2**10)), y=y), "claims .* and holds"),
        "negative header": (npz(x=npy(np.ones(2), shape=(-1, -2)), y=y), "broken or cut short|claims"),
        "cut array": (npz(x=short, y=y), "claims 176 bytes .* holds 168"),
        "huge directory": (bytes(liar), r"claims 2,147,483,648 bytes in a file of"),
        "lengths": (npz(x=x, y=npy(np.arange(4))), r"d.npz: inputs \(3, 2\) and labels \(4,\)"),
        "NaN": (npz(x=npy(np.full((3, 2), np.nan)), y=y), "d.npz: NaN in the inputs of 3 of 3"),
        "words": (npz(x=npy(np.array(["a", "b", "c"])), y=y), "not numbers"),
    }


@pytest.mark.parametrize("name", broken_npz())
def test_npz_files_that_are_broken(tmp_path, name):
    body, message = broken_npz()[name]
    (tmp_path / "d.npz").write_bytes(body)
    refused(message, data_files.read, tmp_path / "d.npz")


def test_objects_in_npz_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Bomb, "mark", tmp_path / "ran", raising=False)
    np.savez(tmp_path / "d.npz", x=np.array([Bomb(), Bomb()], dtype=object), y=np.arange(2))
    refused("holds Python objects", data_files.read, tmp_path / "d.npz")
    (tmp_path / "d.pkl").write_bytes(pickle.dumps(Bomb()))
    refused("not of a known kind", data_files.read, tmp_path / "d.pkl")
    assert not Bomb.mark.exists()


def test_what_is_no_data_file(tmp_path):
    refused("does not exist", data_files.read, tmp_path / "none.npz")
    (tmp_path / "empty").touch()
    refused("is empty", data_files.read, tmp_path / "empty")
    (tmp_path / "table.csv").write_text("x,y\n1,2\n")
    refused("not of a known kind", data_files.read, tmp_path / "table.csv")


# parquet


def table(path, **columns):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is in the data extra")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), path)
    return path


def encode(array, form="PNG"):
    image = pytest.importorskip("PIL.Image", reason="Pillow is in the data extra")
    file = io.BytesIO()
    image.fromarray(array).save(file, form, **({"lossless": True} if form == "WEBP" else {}))
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("label", ["label", "fine_label", "target"])
def test_parquet_of_images(tmp_path, form, label):
    colour = pixels(4, (6, 5, 3))
    images = [{"bytes": encode(picture, form), "path": None} for picture in colour]
    columns = {"image": images, label: [3, 1, 0, 2], "exact": [True] * 4}
    x, y = whole(data_files.read(table(tmp_path / "d.parquet", **columns)))
    assert np.allclose(x, colour.transpose(0, 3, 1, 2) / 255) and y.tolist() == [3, 1, 0, 2]


def test_parquet_of_grey_images_as_plain_bytes(tmp_path):
    grey = pixels(3, (4, 7))
    x, _ = whole(data_files.read(table(tmp_path / "d", img=[encode(g) for g in grey], label=[0, 1, 2])))
    assert np.allclose(x[:, 0], grey / 255)


def test_parquet_of_numbers(tmp_path):
    task = data_files.read(table(tmp_path / "d", b=[1, 2, 3], score=[0.5, 0.25, 1.0], a=[True, False, True]))
    x, y = whole(task)
    assert x.tolist() == [[1, 1], [2, 0], [3, 1]] and x.dtype == torch.float32
    assert y.tolist() == [0.5, 0.25, 1.0] and task.metric == "squared"


def test_cifar10_is_standardised(tmp_path):
    colour = pixels(4, (32, 32, 3))
    images = [{"bytes": encode(picture), "path": None} for picture in colour]
    (tmp_path / "cifar10").mkdir()
    table(tmp_path / "cifar10" / "train.parquet", image=images, label=[3, 1, 0, 2])
    x, _ = whole(datasets.cifar10(tmp_path))
    mean, deviation = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    assert np.allclose(x.permute(0, 2, 3, 1), (colour / 255 - mean) / deviation, atol=1e-5)
    assert torch.equal(whole(data_files.read(tmp_path / "cifar10"))[0], x)
    table(tmp_path / "cifar10" / "test.parquet", image=[encode(pixels(1, (8, 8))[0])], label=[0])
    refused(r"not images of \(3, 32, 32\)", datasets.cifar10, tmp_path, split="test")


def claims(width, height):
    """A PNG whose header claims a size that it does not hold."""
    good = bytearray(encode(pixels(1, (2, 2))[0]))
    good[16:24] = struct.pack(">II", width, height)
    good[29:33] = struct.pack(">I", zlib.crc32(good[12:29]))
    return bytes(good)


def dot(height=6, width=5):
    return encode(pixels(1, (height, width))[0])


BROKEN_PARQUET = {
    "no label": (lambda: {"a": [1], "b": [2]}, "columns a, b, no label"),
    "only labels": (lambda: {"label": [1]}, "only the column label"),
    "text": (lambda: {"text": ["a"], "label": [1]}, "column text holds string.*tokenize"),
    "text labels": (lambda: {"a": [1], "label": ["cat"]}, "column label holds string"),
    "holes": (lambda: {"a": [1, None], "label": [0, 1]}, "column a has empty places"),
    "no rows": (lambda: {"a": np.zeros(0), "label": np.zeros(0)}, "claims 0 rows"),
    "not an image": (lambda: {"image": [dot(), b"hello"], "label": [0, 1]}, "row 1 is not an encoded image"),
    "no image": (lambda: {"image": [dot(), None], "label": [0, 1]}, "row 1 is not an encoded image"),
    "cut image": (lambda: {"image": [dot(40, 40)[:900]], "label": [0]}, "row 0 .* cut short"),
    "sizes": (
        lambda: {"image": [dot(), dot(40, 40)], "label": [0, 1]},
        r"row 1 is 40 x 40 L, unlike \(6, 5, 1\)",
    ),
    "huge image": (lambda: {"image": [claims(6000, 6000)], "label": [0]}, "row 0 claims 6000 x 6000 pixels"),
    "giant image": (lambda: {"image": [claims(60000, 60000)], "label": [0]}, "row 0 is not an encoded image"),
    "16 bits": (
        lambda: {"image": [encode(np.ones((2, 2), np.uint16))], "label": [0]},
        "unlike 8-bit RGB or L",
    ),
}


@pytest.mark.parametrize("name", BROKEN_PARQUET)
def test_parquet_files_that_are_broken(tmp_path, name):
    columns, message = BROKEN_PARQUET[name]
    refused(message, data_files.read, table(tmp_path / "d.parquet", **columns()))


def test_parquet_files_that_are_cut_or_lie(tmp_path):
    path = table(tmp_path / "d.parquet", a=np.arange(1000), label=np.arange(1000))
    body = path.read_bytes()
    for broken in (body[:-20], body[: len(body) // 2], body[:4], b"PAR1" + b"\xff" * 40 + b"PAR1"):
        path.write_bytes(broken)
        refused("broken or cut short", data_files.read, path)
    few = table(tmp_path / "few.parquet", a=np.zeros(1_000_000), label=np.zeros(1_000_000))
    refused("claims 1,000,000 rows in", data_files.read, few)


def test_parquet_without_the_extra_says_how_to_install(tmp_path, monkeypatch):
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    for name in ("pyarrow", "PIL"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            refused(r"pip install 'weightspace\[data\]'", data_files.read, tmp_path / "d.parquet")
