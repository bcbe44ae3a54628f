"""``python -m target`` is ``aoe-target``."""

import sys

if __name__ == "__main__":
    # Python has put the working directory first in sys.path, or for a file that of the
    # file. A select.py there must not replace the standard library's, nor a user's
    # target.py on PYTHONPATH our package: both packages come from where this file is.
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.path.insert(0, __file__.rsplit("/", 2)[0])
    import aoe  # noqa: F401
    import target  # noqa: F401

    del sys.path[0]

    from target.cli.main import main

    main()
