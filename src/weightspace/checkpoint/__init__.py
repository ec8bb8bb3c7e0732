"""A checkpoint is a map from name to tensor that lies in a file, read without running it."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "reader": ["Checkpoint", "finite", "read"],
        "refusal": ["CheckpointError"],
        "writer": ["save"],
    },
)
