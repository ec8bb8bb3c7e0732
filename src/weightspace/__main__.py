"""`python -m weightspace` is the command `weightspace`."""

from __future__ import annotations

import gc
import sys

__all__ = []


# torch and what it loads are a million objects that stay: searching them for cycles, while they are made and once more
# when the process ends, would take a third of a short command
gc.set_threshold(50_000, 20, 100)
try:
    from weightspace import cli
except KeyboardInterrupt:  # as it is while a command runs: one line
    print("weightspace: stopped", file=sys.stderr)
    sys.exit(130)


def main() -> int:
    """Run the command line as a process, which ends after it, and return the exit code."""
    try:
        return cli.main()
    finally:
        gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
