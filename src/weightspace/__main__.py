"""`python -m weightspace` is the command `weightspace`."""

import sys

from weightspace.cli import main

if __name__ == "__main__":
    sys.exit(main())
