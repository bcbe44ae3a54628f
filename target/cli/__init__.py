"""The ``aoe-target`` command."""
