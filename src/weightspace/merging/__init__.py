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
        "plan": ["Plan", "Row"],
        "recipe": ["Recipe"],
    },
)
