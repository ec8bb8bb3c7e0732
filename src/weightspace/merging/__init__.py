"""Merging: many networks of one architecture made into one, by recipes that are streamed tensor by tensor."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "adapters.adapted": ["Adapted", "into_base"],
        "adapters.combined": ["AdapterDistance", "adapter_distance", "merge_adapters"],
        "advice": ["Advice", "Interference", "advise", "interference"],
        "adapters.extracted": ["extract"],
        "adapters.lora_folder": ["LoRA", "NewAdapter", "lora"],
        "methods": ["METHODS"],
        "merging": ["merge"],
        "plan": ["Plan", "planned", "Row", "Rules", "Table"],
        "spectral": ["knots"],
        "recipe": ["Recipe"],
        "stream": ["write"],
        "networks": ["merged_net"],
        "weighing": ["fisher_mean", "importances", "inner_products", "regmean"],
        "tuning": ["adamerging", "adamerging_cost", "Coefficients", "tune", "tune_cost", "Tuned"],
        "folders.vocabulary": ["Numbering", "in_one_vocabulary", "renumbered"],
        "folders.configuration": ["Changes"],
        "folders.card": ["About"],
        "folders.folder": ["carried"],
        "folders.mergekit_file": ["recipe_of"],
        "folders.mergekit_plan": ["plan_of"],
    },
)
