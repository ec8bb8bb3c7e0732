"""Merging: many networks of one architecture made into one, by recipes that are streamed tensor by tensor."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "methods": ["METHODS"],
        "spectral": ["knots"],
        "plan": ["Plan", "Row"],
        "recipe": ["Recipe"],
        "networks": ["merged_net"],
        "weighing": ["fisher_mean", "importances", "inner_products", "regmean"],
        "tuning": ["Adapted", "adamerging", "adamerging_cost", "tune", "tune_cost", "Tuned"],
    },
)
