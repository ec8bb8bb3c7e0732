"""Merging: many networks of one architecture made into one, by recipes that are streamed tensor by tensor."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "methods": ["METHODS"],
        "plan": ["Plan", "Row"],
        "recipe": ["Recipe"],
        "vocabulary": ["Numbering", "in_one_vocabulary", "renumbered"],
        "configuration": ["Changes"],
        "card": ["About"],
        "folder": ["carried"],
        "mergekit_file": ["recipe_of"],
        "mergekit_plan": ["plan_of"],
    },
)
