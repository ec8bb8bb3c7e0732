"""The computation graph of a network: exported, evaluated node by node, its axes followed from weights to outputs."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "on_data": ["derived_graph", "examples_at", "Fed", "feed", "graph_of"],
    },
)
