"""Man pages of the protocol and of the systemd units."""

from __future__ import annotations

from aoe.header import ErrorCode
from scripts.man_prose import add_section, read_prose
from scripts.roff import Page, bold


def protocol_page() -> Page:
    """Return the page of the protocol; error codes come from ``aoe.header``."""
    page = Page("aoe", 7, "ATA over Ethernet, a protocol for disks on a network")
    prose = read_prose(page.file_name)
    for heading in prose.headings():
        add_section(page, prose, heading)
        if heading == "ERRORS":
            _add_error_codes(page)
    return page


def _add_error_codes(page: Page) -> None:
    for code in ErrorCode:
        page.tagged(bold(str(int(code))), f"{code.text.capitalize()}.")


def service_page() -> Page:
    """Return the page of the systemd units."""
    page = Page("aoe-target.service", 8, "serve AoE disks under systemd")
    prose = read_prose(page.file_name)
    for heading in prose.headings():
        add_section(page, prose, heading)
    return page
