"""The computation graph of a network: exported, evaluated node by node, its axes followed from weights to outputs."""

from weightspace.graph.on_data import Fed as Fed
from weightspace.graph.on_data import derived_graph as derived_graph
from weightspace.graph.on_data import examples_at as examples_at
from weightspace.graph.on_data import feed as feed
from weightspace.graph.on_data import graph_of as graph_of
