"""Many networks kept together: catalogued, told apart from their relatives, and asked with new data."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "atlas": ["Atlas"],
        "holdings": ["ChangedError"],
        "records": ["Measure", "Pair"],
        "halving": ["halve", "Halving", "Losses", "Paired", "paired", "Standing"],
        "asked": ["Answer", "rank", "rank_starts"],
        "by_distance": ["rank_by_codes", "rank_by_task2vec", "rank_by_weights"],
        "nearest_start": ["cost", "nearest"],
        "nearby": ["between", "Nearby", "Neighbour", "neighbours", "Way"],
        "greedy_averages": ["Soup", "soup"],
        "averages": ["Average"],
        "families": ["Families", "Map", "scaled"],
        "gram": ["against", "Distances", "pairwise", "Row"],
        "independence": ["Independence", "renumbering", "Renumbering"],
        "lineage": ["Edge", "Lineage"],
        "relatives": ["relation", "Relation"],
        "sketches": ["sketch", "Sketch"],
    },
)
