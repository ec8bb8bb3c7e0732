"""Merging: many networks of one architecture made into one, by recipes that are streamed tensor by tensor."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "adapted": ["Adapted", "into_base"],
        "adapters": ["AdapterDistance", "adapter_distance", "merge_adapters"],
        "advice": ["Advice", "Interference", "advise", "interference"],
        "extracted": ["extract"],
        "lora_folder": ["LoRA", "NewAdapter", "lora"],
        "methods": ["METHODS"],
        "merging": ["merge"],
        "plan": ["Plan", "planned", "Row", "Rules", "Table"],
        "spectral": ["knots"],
        "recipe": ["Recipe"],
        "stream": ["write"],
        "networks": ["merged_net"],
        "weighing": ["fisher_mean", "importances", "inner_products", "regmean"],
        "tuning": ["Adapted", "adamerging", "adamerging_cost", "tune", "tune_cost", "Tuned"],
        "vocabulary": ["Numbering", "in_one_vocabulary", "renumbered"],
        "configuration": ["Changes"],
        "card": ["About"],
        "folder": ["carried"],
        "mergekit_file": ["recipe_of"],
        "mergekit_plan": ["plan_of"],
    },
)
