"""Low-rank adapters (LoRA): merged, compared, added to a base and extracted, in factors."""
