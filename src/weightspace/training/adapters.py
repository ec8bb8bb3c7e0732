"""A `Recorder` inside of other people's training loops, and its numbers in other people's logs. Each imports late."""

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
    """A `transformers.TrainerCallback` that records with `options`, those of `Recorder`; `callback.watch` is it."""
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
    """A `lightning.pytorch.Callback` that records with `options`, those of `Recorder`; `callback.watch` is it."""
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
    """The finite numbers of a record by dotted name."""
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
    """For `on_record`: numbers to a `torch.utils.tensorboard.SummaryWriter`."""

    def write(record: Record) -> None:
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record.step)

    return write


@public
def mlflow(client: Any) -> Callable[[Record], None]:
    """For `on_record`: numbers to the module `mlflow`, or what has its `log_metrics`."""
    return lambda record: client.log_metrics(scalars(record), step=record.step)


@public
def wandb(run: Any) -> Callable[[Record], None]:
    """For `on_record`: numbers to a run of `wandb`, or what has its `log`."""
    return lambda record: run.log(scalars(record), step=record.step)
