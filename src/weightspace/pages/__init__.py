"""The page of each command: key numbers, figures and tables, in one file that works offline."""
