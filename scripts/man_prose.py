"""What the manual says that no command knows of itself, as ``Page.prose`` has it."""

from __future__ import annotations

from typing import Final

from aoe.errors import AccessError, BusyError, NotFoundError, UsageError
from aoe.header import ErrorCode
from scripts.roff import Page, bold

_SECURITY: Final = """
SECURITY

AoE has no passwords and no encryption. Whoever is on the Ethernet reads and writes. The
MAC mask list and the reservation keep honest clients apart, not dishonest ones out.
Give disks a network, or a VLAN, of their own.
"""

_TARGET: Final = """
WHEN IS A WRITE SAFE?

By default a write is answered when it is in the page cache: it survives the end of
aoe-target, not a power failure. With --sync it is on stable storage. With --direct the
drive has it, perhaps in a volatile cache of its own. When a FLUSH was answered,
everything that was answered before is on stable storage, always.

Linux's own driver never sends a FLUSH: serve with --sync what it mounts. A write or a
flush that fails is answered as a failure.

RIGHTS

Raw sockets take root or CAP_NET_RAW, disks the right to their files. Once all is open,
root gives up what serving does not need; with --user it becomes somebody else, who must
be able to write what clients set. Root, and the user that a target runs as, may ask it
for its status and the like.

SIGNALS

TERM, INT
    Answer what has been received, and end with 0. The second one ends the process at
    once.

HUP
    Read the configuration file again, as aoe-target reload does, and look at the sizes
    of the disks.

USR1
    Log statistics.

ENVIRONMENT

AOE_NBD_CLIENT
    The client for NBD: `libnbd`, or `own` for the one that is built in. By default it
    is libnbd where its Python binding can be imported.

NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID
    Where a service manager is told of being ready, of reloads and of the end, and how
    often it wants a sign of life; see sd_notify(3).

STATE_DIRECTORY
    Stands in for /var/lib/aoe-target.

JOURNAL_STREAM
    Where standard error is this, messages are marked with their priority.

FILES

What clients set is kept as JSON. Whoever removes the file while nothing is served
begins anew.

PATH.aoe.json
    For a regular image.

PATH@OFFSET.aoe.json
    For a window of one that begins at this byte.

/var/lib/aoe-target/ADDRESS.aoe.json
    For anything else. With --state-dir another directory has that, of images too.

/etc/aoe-target.toml
    What the unit aoe-target.service of systemd serves, and `aoe-target@NAME.service`
    what is in /etc/aoe-target/NAME.toml; see aoe-target.toml(5).
"""

_INITIATOR: Final = """
WHEN IS A WRITE SAFE?

aoe write and aoe copy end with a FLUSH, and fail if it does; that a disk knows no FLUSH
is a warning. If the target's host crashes before that, what it has answered may be
lost: copy again. AoE has no order between frames: a write that was sent twice may land
twice, the second time after a newer one to the same place.

RIGHTS

Raw sockets take root or CAP_NET_RAW. In aoe lab only run opens any: with -i, or with
--wire, for which user namespaces will do.

ENVIRONMENT

AOE_INTERFACE
    Interfaces to look on where there is no --interface.
"""

_PROTOCOL: Final = """
DESCRIPTION

ATA over Ethernet carries the commands of an ATA disk in Ethernet frames, with the
EtherType 88A2. A target serves disks, an initiator uses them. There is no IP, so that
frames go no further than one Ethernet, and no connection: each request is one frame,
and so is its reply. Either may be lost. The initiator sends again what is not answered
in time, so that any request may be carried out twice.

ADDRESSES

A disk has the address of a shelf, 0 to 65534, and a slot, 0 to 254, written `e7.3`. It
is found by broadcasting: the highest number of either stands for all, and every disk
that is meant answers with its own. So nobody configures MAC addresses, and a disk can
be reached through several interfaces. Two disks with one address on one Ethernet are a
mistake that nothing in the protocol notices.

FRAMES

Behind the Ethernet header are ten bytes that all commands have; numbers are big-endian:

    version and flags  1   version 1; flags reply (8) and error (4)
    error              1   in replies with the flag: what was wrong
    shelf              2   FFFF means all
    slot               1   FF means all
    command            1   0 to 3, below
    tag                4   chosen by the initiator, repeated in the reply

One ATA command moves as many sectors of 512 bytes as one frame holds, behind 36 bytes
of headers: 2 with an MTU of 1500, 17 with 9000. In its reply to a query the target says
how many it takes, and how many requests it keeps waiting; what is more may be dropped.

COMMANDS

0 ATA
    An ATA command: the registers, and with a write the data. The reply has the
    registers as they are afterwards, and with a read the data. What an ATA disk would
    refuse is refused in the registers.

1 query config
    Who is there, and what it can do. Each disk also keeps a string of up to 1024 bytes,
    with which clients claim it: it can be read, compared, set if it is empty, and set
    in any case.

2 MAC mask list
    The clients that a disk is served to, by MAC address, up to 255; others are not
    answered. An empty list is everybody.

3 reserve and release
    An advisory lock that names its holders by MAC address. Others get error 6 for reads
    and writes until it is released, or taken by force.
"""

_DURABILITY: Final = """
Errors of the disk itself are no errors of AoE: they are in the ATA registers.

DURABILITY

That a write is answered says that the target has it, not that it is on stable storage:
that is what the ATA command FLUSH CACHE is for, and not every initiator sends it, nor
does every target do what it says. There is no order between requests: what must come
after something is sent when that was answered.
"""

_EXIT_STATUS: Final = """
An error is one line on standard error: the program, what it happened to, why, and
mostly what to do about it.
"""


def add_target_sections(page: Page) -> None:
    """Add what is to be known of ``aoe-target`` as a process."""
    page.prose(_TARGET)
    _add_exit_status(page)
    page.prose(
        "With --run, serve exits as the command did: with 128 and the number of a "
        "signal where one ended it."
    )
    page.prose(_SECURITY)


def add_initiator_sections(page: Page) -> None:
    """Add what is to be known of ``aoe`` beyond its commands."""
    page.prose(_INITIATOR)
    _add_exit_status(page)
    page.prose(_SECURITY)


def _add_exit_status(page: Page) -> None:
    page.heading("EXIT STATUS")
    page.tagged(bold("0"), "Done.")
    page.tagged(bold("1"), "Failed for any other reason.")
    for kind in (UsageError, NotFoundError, AccessError, BusyError):
        said, _, _ = str(kind.__doc__).partition(" Exit code")
        page.tagged(bold(str(kind.exit_code)), said)
    page.tagged(bold("130"), "Interrupted with Ctrl-C.")
    page.prose(_EXIT_STATUS)


def protocol_page() -> Page:
    """Make the page about the protocol itself."""
    page = Page("aoe", 7, "ATA over Ethernet, a protocol for disks on a network")
    page.prose(_PROTOCOL)
    page.heading("ERRORS")
    page.text("A reply with the flag for errors has one of these codes:")
    for code in ErrorCode:
        page.tagged(bold(str(int(code))), f"{code.text.capitalize()}.")
    page.prose(_DURABILITY)
    page.prose(_SECURITY)
    page.heading("SEE ALSO")
    page.text("aoe(1), aoe-target(8), aoe-target.toml(5)")
    return page
