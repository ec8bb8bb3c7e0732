"""A run that is watched: nothing of it changes, nothing that was seen is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weightspace.inside.path_overlap import self_path
from weightspace.inside.units import Gates, gates
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.task.classification import accuracy
from weightspace.task.datasets import digits
from weightspace.training import adapters
from weightspace.training.recorder import Recorder
from weightspace.training.recording import Record, Recording, RecordingError, Writer
from weightspace.trust.relative import relative_trust

TRAIN, PROBE = digits("train", flat=True), digits("test", flat=True).take(40)
X, Y = TRAIN.example(200), TRAIN.take(200).labels()


SOURCE = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 10))


def train(model: nn.Module, watch: Recorder | None, steps: int = 12, seed: int = 1) -> None:
    torch.manual_seed(seed)
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        some = torch.randint(len(X), (32,))
        optimiser.zero_grad()
        loss = F.cross_entropy(model(X[some]), Y[some])
        loss.backward()
        optimiser.step()
        if watch is not None:
            watch.step(loss=loss)


def watching(model: nn.Module, **options) -> Recorder:
    return Recorder(model, **{"every": 3, "tell": None, "gates": gates(PROBE)} | options)


def test_the_run_is_the_one_that_it_would_have_been(tmp_path):
    """Bit by bit, with observables that draw random numbers."""
    free, watched = module(), module()
    train(free, None)
    watch = watching(watched, file=tmp_path / "run.rec", noise=lambda net: torch.randn(3), points=6)
    train(watched, watch)
    assert all(
        torch.equal(a, b) for a, b in zip(free.state_dict().values(), watched.state_dict().values(), strict=True)
    )
    watch.close()
    assert watched.training and all(p.grad is not None for p in watched.parameters())


def test_what_was_seen_is_what_is_there(tmp_path):
    model = module()
    start = Net.of(model)
    with watching(
        model, file=tmp_path / "run.rec", right=accuracy(PROBE), parts=lambda net: net.weights.norms()
    ) as watch:
        train(model, watch)
        end = Net.of(model)
    seen = Recording(tmp_path / "run.rec")
    assert [record.step for record in seen] == [0, 3, 6, 9, 12] and seen[0].values["from_start"] == 0
    last = seen[-1].values
    found = gates(PROBE)(end)
    assert isinstance(last["gates"], Gates) and (last["gates"].bits == found.bits).all()
    assert last["gates"].layers == found.layers and last["right"] == accuracy(PROBE)(end)
    assert last["from_start"] == pytest.approx(relative_trust(start, end)) and last["parts"] == end.weights.norms()
    steps, losses = seen.series("loss")
    assert steps == [3, 6, 9, 12] and all(isinstance(loss, float) for loss in losses)
    assert float(self_path(*seen.series("gates")[1][-2:]).mean()) > 0.5
    assert all(torch.equal(seen.start[name], start.weights[name]) for name in start.weights)
    with pytest.raises(RecordingError, match="no record of 'los'; there are from_last, .*loss"):
        seen.series("los")
    assert "5 records" in repr(seen)


def test_without_a_file_records_stay_in_memory():
    model = module()
    watch = watching(model, points=4)
    train(model, watch)
    assert [record.step for record in watch.records] == [0, 3, 6, 9, 12]
    path = watch.path()
    assert len(path) == 4 and float((path[-1] - Net.of(model)).norm()) == 0
    with pytest.raises(WeightspaceError, match="has no file"):
        watch.recording()
    with pytest.raises(WeightspaceError, match="fewer than two networks"):
        watching(module()).path()


def test_points_are_a_path(tmp_path):
    model = module()
    watch = watching(model, file=tmp_path / "run.rec", points=4)
    train(model, watch)
    path = watch.path()
    watch.close()
    assert len(path) == 4 and (tmp_path / "run.rec.points" / "index.json").exists()
    assert torch.equal(path[-1].weights["0.weight"], model.state_dict()["0.weight"])


def test_a_run_is_taken_up_in_the_same_file(tmp_path):
    model, file = module(), tmp_path / "run.rec"
    with watching(model, file=file, points=6) as watch:
        train(model, watch, 6)
    with watching(model, file=file, points=6) as again:
        assert again.steps == 6
        train(model, again, 6)
    seen = Recording(file)
    assert [record.step for record in seen] == [0, 3, 6, 9, 12]
    assert seen[-1].values["from_start"] > seen[1].values["from_start"] > 0 and len(again.path()) == 3
    assert [record.seconds for record in seen] == sorted(record.seconds for record in seen)
    with pytest.raises(RecordingError, match="records another architecture"):
        watching(nn.Sequential(nn.Linear(64, 3), nn.ReLU()), file=file)


def test_a_second_writer_is_refused(tmp_path):
    file = tmp_path / "run.rec"
    with watching(module(), file=file), pytest.raises(RecordingError, match="is being written by another recorder"):
        watching(module(), file=file)
    watching(module(), file=file).close()


def test_a_file_that_is_cut_is_read_to_its_last_whole_record(tmp_path):
    """At every byte of the last record, and then taken up again."""
    file, cut = tmp_path / "run.rec", tmp_path / "cut.rec"
    model = module()
    with watching(model, file=file, gates=lambda net: 1.0, distances=False) as watch:
        train(model, watch, 6)
    data = file.read_bytes()
    whole = Recording(file)
    start = whole._places[-1][0] - 12
    for size in range(start + 1, len(data)):
        cut.write_bytes(data[:size])
        with pytest.warns(UserWarning, match="cut off after 2 records"):
            assert [record.step for record in Recording(cut)] == [0, 3]
    damaged = bytearray(data)
    damaged[-3] ^= 1
    cut.write_bytes(damaged)
    with pytest.warns(UserWarning, match="cut off after 2 records"):
        assert len(Recording(cut)) == 2
    with pytest.warns(UserWarning, match="cut off"), watching(model, file=cut, gates=lambda net: 1.0) as again:
        train(model, again, 3)
    assert [record.step for record in Recording(cut)] == [0, 3, 6]


def test_files_that_hold_no_recording(tmp_path):
    file = tmp_path / "run.rec"
    with pytest.raises(RecordingError, match="cannot be read"):
        Recording(file)
    file.write_bytes(b"not a recording at all")
    with pytest.raises(RecordingError, match="not a recording of this version"):
        Recording(file)
    with pytest.raises(RecordingError, match="not a recording of this version"):
        watching(module(), file=file)
    assert file.read_bytes() == b"not a recording at all"
    with pytest.raises(RecordingError, match="cannot be written"):
        watching(module(), file=tmp_path / "missing" / "run.rec")
    with watching(module(), file=tmp_path / "whole.rec") as watch:
        watch.record()
    data = bytearray((tmp_path / "whole.rec").read_bytes())
    place = Recording(tmp_path / "whole.rec")._places[1]
    data[place[0] + place[1] // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(RecordingError, match="damaged at byte"):
        Recording(file)[0]


def test_an_observable_that_raises_is_recorded_once_and_the_run_goes_on(tmp_path):
    model = module()

    def broken(net: Net) -> float:
        raise RuntimeError("no luck")

    with pytest.warns(UserWarning, match=r"bad is not recorded at step 0 \(RuntimeError: no luck\)"):
        watch = watching(model, file=tmp_path / "run.rec", bad=broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, watch)
    watch.close()
    seen = Recording(tmp_path / "run.rec")
    assert [record.failed for record in seen] == [{"bad": "RuntimeError: no luck"}, {}, {}, {}, {}]
    assert len(seen.series("gates")[0]) == 5
    with pytest.warns(UserWarning, match="a module cannot be recorded"):
        watching(model, odd=lambda net: sys)
    with pytest.warns(UserWarning, match="NaN in the units of layer 2"):
        broken_model = module()
        nn.init.constant_(broken_model[0].bias, float("nan"))
        watching(broken_model)


def test_settings_that_cannot_be():
    for options, message in (
        ({"every": 0}, "every is 0"),
        ({"points": 0}, "points is 0"),
        ({"right": 3}, "right is a int, not a function"),
    ):
        with pytest.raises(WeightspaceError, match=message):
            watching(module(), **options)


def test_the_cost_is_told():
    told = []
    model = module()
    with Recorder(model, 3, tell=told.append, gates=gates(PROBE)) as watch:
        train(model, watch, 3)
    assert len(told) == 1 and "% of the rest of the run" in told[0] and watch.overhead > 0 and "3 steps" in repr(watch)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_run_that_is_killed_keeps_what_it_saw(tmp_path):
    script = """
        import os, signal, torch
        from torch import nn
        import weightspace as ws
        model = nn.Linear(4, 2)
        watch = ws.Recorder(model, file="run.rec", tell=None)
        for k in range(5):
            watch.step(loss=k)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, env=SOURCE)
    assert done.returncode == -signal.SIGKILL
    assert Recording(tmp_path / "run.rec").series("loss") == ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4])


# ------------------------------------------------------------------ other people's loops and logs


def test_numbers_go_to_other_logs():
    class Log:
        def __init__(self):
            self.seen = []

        def add_scalar(self, name, value, step):
            self.seen.append((name, value, step))

        def log_metrics(self, values, step):
            self.seen.append((values, step))

        log = log_metrics

    board, flow, run = Log(), Log(), Log()
    to = [adapters.tensorboard(board), adapters.mlflow(flow), adapters.wandb(run)]
    model = nn.Linear(3, 2)
    watch = Recorder(model, tell=None, on_record=to, distances=False, nested=lambda net: {"a": 1.0, "b": float("nan")})
    watch.step(loss=0.5)
    assert board.seen == [("nested.a", 1.0, 0), ("loss", 0.5, 1), ("nested.a", 1.0, 1)]
    assert flow.seen == run.seen == [({"nested.a": 1.0}, 0), ({"loss": 0.5, "nested.a": 1.0}, 1)]


def test_inside_the_trainer_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")  # which its Trainer needs
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, num_labels=2
    )
    model = transformers.BertForSequenceClassification(config)
    data = [{"input_ids": torch.randint(0, 20, (6,)), "labels": torch.tensor(k % 2)} for k in range(16)]
    probe = gates(_task(data))
    callback = adapters.trainer_callback(every=2, file=tmp_path / "run.rec", tell=None, gates=probe)
    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=4, report_to=[], use_cpu=True, save_strategy="no",
        logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.Trainer(model, settings, train_dataset=data, callbacks=[callback]).train()
    seen = Recording(tmp_path / "run.rec")
    assert [record.step for record in seen] == [0, 2, 4] and seen[-1].values["from_start"] > 0
    assert seen[0].values["gates"].inexact and len(seen.series("loss")[1]) >= 1


def _task(data):
    from weightspace.task.task import Task

    return Task({"input_ids": torch.stack([row["input_ids"] for row in data])})


def test_inside_of_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = module()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = adapters.lightning_callback(every=2, file=tmp_path / "run.rec", tell=None, gates=gates(PROBE))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[callback],
        ).fit(Module(), loader)  # fmt: skip
    seen = Recording(tmp_path / "run.rec")
    assert [record.step for record in seen] == [0, 2, 4] and seen.series("loss")[0] == [2, 4]
    assert list(seen[0].values["gates"].layers) == ["net.2"]


def test_tensors_that_share_memory_are_recorded_each_as_it_is(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    seen = {"whole": whole, "again": whole, "row": whole[1], "turned": whole.T, "some": whole[:, ::2], "list": [whole]}
    with contextlib.closing(Writer(tmp_path / "run.rec", {"observables": ["seen"]}, {})) as writer:
        writer.append(Record(0, 0.0, {"seen": seen}, {}))
    found = Recording(tmp_path / "run.rec")[0].values["seen"]
    assert found.pop("list")[0].equal(seen.pop("list")[0]) and found.keys() == seen.keys()
    assert all(torch.equal(found[name], seen[name]) for name in seen)
