"""Filters: faults on purpose, and other things between the wire and the disk.

::

    wire <--> first, second ... <--> Target <--> first, second ... <--> disk
              filters of frames                  filters of disks

``settings.py`` says what there is, ``stack.py`` makes an export's filters of it.
"""
