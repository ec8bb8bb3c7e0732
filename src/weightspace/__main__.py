"""`python -m weightspace` is the command `weightspace`."""

from __future__ import annotations

import sys

__all__ = []


try:
    from weightspace.cli import main
except KeyboardInterrupt:  # as it is while a command runs: one line
    print("weightspace: stopped", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
