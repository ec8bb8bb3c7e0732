"""Adapters of `Recorder`: callbacks for other training loops, and loggers for other tools.

Each imports its library only when called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from weightspace.net.public import public
from weightspace.training.recorder import Recorder
from weightspace.training.recording import Record

__all__ = ["lightning_callback", "mlflow", "scalars", "tensorboard", "trainer_callback", "wandb"]


@public
def trainer_callback(**options: Any) -> Any:
    """A Hugging Face `TrainerCallback` that records a run; `callback.watch` is its `Recorder`.

    `options`: those of `Recorder`.

    >>> import weightspace as ws
    >>> callback = ws.training.trainer_callback(every=50, file="run.rec")            # doctest: +SKIP
    >>> Trainer(model, args, train_dataset=data, callbacks=[callback]).train()       # doctest: +SKIP
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        watch: Recorder

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.watch = Recorder(model, **options)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            last = state.log_history[-1] if state.log_history else {}
            self.watch.step(**({"loss": last["loss"]} if "loss" in last else {}))

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.watch.close()

    return Watch()


@public
def lightning_callback(**options: Any) -> Any:
    """A Lightning `Callback` that records a run; `callback.watch` is its `Recorder`.

    `options`: those of `Recorder`.

    >>> import weightspace as ws
    >>> callback = ws.training.lightning_callback(every=50, file="run.rec")          # doctest: +SKIP
    >>> Trainer(callbacks=[callback]).fit(module, loader)                            # doctest: +SKIP
    """
    from lightning.pytorch import Callback

    class Watch(Callback):
        watch: Recorder

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            held, pl_module._trainer = pl_module._trainer, None  # a trainer cannot be copied with its module
            try:
                self.watch = Recorder(pl_module, **options)
            finally:
                pl_module._trainer = held

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            self.watch.step(**({} if loss is None else {"loss": float(loss)}))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.watch.close()

    return Watch()


@public
def scalars(record: Record) -> dict[str, float]:
    """The finite numbers of a record, by dotted name.

    >>> import weightspace as ws
    >>> record = ws.training.Record(step=3, seconds=0.5, values={"loss": 1.5, "fisher": {"trace": 2.0}}, failed={})
    >>> ws.training.scalars(record)
    {'loss': 1.5, 'fisher.trace': 2.0}
    """
    found: dict[str, float] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            for key, part in value.items():
                walk(part, f"{name}.{key}")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            found[name] = float(value)

    for name, value in record.values.items():
        walk(value, name)
    return found


@public
def tensorboard(writer: Any) -> Callable[[Record], None]:
    """A function for `Recorder(on_record=[...])` that writes numbers to a `torch.utils.tensorboard.SummaryWriter`.

    >>> from unittest.mock import Mock                                     # in place of SummaryWriter("runs")
    >>> import weightspace as ws
    >>> record = ws.training.Record(step=3, seconds=0.5, values={"loss": 1.5, "fisher": {"trace": 2.0}}, failed={})
    >>> writer = Mock()
    >>> ws.training.tensorboard(writer)(record)
    >>> writer.add_scalar.call_args.args
    ('fisher.trace', 2.0, 3)
    """

    def write(record: Record) -> None:
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record.step)

    return write


@public
def mlflow(client: Any) -> Callable[[Record], None]:
    """A function for `Recorder(on_record=[...])` that logs numbers to `mlflow`, or an object with its `log_metrics`.

    >>> from unittest.mock import Mock                                     # in place of `import mlflow`
    >>> import weightspace as ws
    >>> record = ws.training.Record(step=3, seconds=0.5, values={"loss": 1.5, "fisher": {"trace": 2.0}}, failed={})
    >>> client = Mock()
    >>> _ = ws.training.mlflow(client)(record)
    >>> client.log_metrics.call_args
    call({'loss': 1.5, 'fisher.trace': 2.0}, step=3)
    """
    return lambda record: client.log_metrics(scalars(record), step=record.step)


@public
def wandb(run: Any) -> Callable[[Record], None]:
    """A function for `Recorder(on_record=[...])` that logs numbers to a `wandb` run, or an object with its `log`.

    >>> from unittest.mock import Mock                                     # in place of wandb.init()
    >>> import weightspace as ws
    >>> record = ws.training.Record(step=3, seconds=0.5, values={"loss": 1.5, "fisher": {"trace": 2.0}}, failed={})
    >>> run = Mock()
    >>> _ = ws.training.wandb(run)(record)
    >>> run.log.call_args
    call({'loss': 1.5, 'fisher.trace': 2.0}, step=3)
    """
    return lambda record: run.log(scalars(record), step=record.step)
