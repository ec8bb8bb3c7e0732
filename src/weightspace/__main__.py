"""`python -m weightspace` is the command `weightspace`."""

import sys

try:
    from weightspace.cli import main
except KeyboardInterrupt:  # as it is while a command runs: one line
    print("weightspace: stopped", file=sys.stderr)
    sys.exit(130)

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
