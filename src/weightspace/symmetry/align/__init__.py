"""One network brought next to another, and their average."""
