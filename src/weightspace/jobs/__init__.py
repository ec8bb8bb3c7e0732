"""Jobs: pure functions of content keys, run here, in processes or on a cluster."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {"calls": ["JobError", "Pool"], "engine": ["completed", "Engine", "opened", "run"]},
)
