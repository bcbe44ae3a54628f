"""The ``aoe`` command."""
