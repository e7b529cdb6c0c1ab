"""`python -m quatrain` is the command line."""

from __future__ import annotations

from quatrain.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
