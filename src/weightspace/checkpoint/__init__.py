"""Checkpoints: named tensors in a file, read without running code from it, and written whole or not at all."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "reader": ["Checkpoint", "finite", "read"],
        "refusal": ["CheckpointError"],
        "writer": ["save"],
    },
)
