"""``python -m initiator`` is ``aoe``."""

from initiator.cli.main import main

if __name__ == "__main__":
    main()
