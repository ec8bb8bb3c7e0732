"""Averaging and recording training runs without changing them, and measuring critical learning periods."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "averages": ["Average", "ema", "lawa", "swa"],
        "recorder": ["Recorder"],
        "recording": ["Record", "Recording", "RecordingError", "Writer"],
        "adapters": ["lightning_callback", "mlflow", "scalars", "tensorboard", "trainer_callback", "wandb"],
        "critical_periods": ["critical_period", "CriticalPeriod", "Row", "Training"],
        "deficits": ["blur", "DEFICITS", "label_permutation", "noise", "vertical_flip"],
    },
)
