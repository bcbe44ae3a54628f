"""``python -m target`` is ``aoe-target``."""

from target.cli.main import main

if __name__ == "__main__":
    main()
