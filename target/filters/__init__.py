"""Filters: fault injection and logging between the wire and the disk.

::

    wire <--> first, second ... <--> Target <--> first, second ... <--> disk
              wire filters                       disk filters

``settings.py`` defines the filters and their keys; ``stack.py`` builds the filters of
an export.
"""
