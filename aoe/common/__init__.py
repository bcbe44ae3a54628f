"""Code shared by the two command-line programs, ``aoe`` and ``aoe-target``."""
