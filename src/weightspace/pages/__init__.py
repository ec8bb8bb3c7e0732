"""One self-contained page for each answer: figures, captions, tables."""
