"""Hugging Face folders of merged networks: vocabularies, configurations, cards, and recipe files of mergekit."""
