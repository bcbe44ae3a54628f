"""The startup file of scapy in ``aoe scapy``, which scapy executes by itself.

It is the last that scapy executes before the shell starts, and the only one that can be
given. ``scapy_session`` is a builtin of scapy: the names of the session.
"""

from initiator.session.console import START

scapy_session.pop(START)()  # type: ignore[name-defined]  # noqa: F821 - see above
del START
