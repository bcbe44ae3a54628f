"""``python -m target`` is ``aoe-target``."""

from target.cli import main

if __name__ == "__main__":
    main()
