"""Mutants of our target: each check of the conformance suite detects its deviation."""

from __future__ import annotations

from functools import cache

import pytest

from initiator.check.model import Needs, Verdict
from initiator.check.suite import CHECKS
from tests import mutants as m
from tests.checking import check
from tests.mutants import Mutant

MUTANTS: dict[str, Mutant] = {
    # The header.
    "wrong tag": Mutant("header.answered header.tags", m.flip(23)),
    "wrong destination MAC": Mutant("header.answered", m.flip(5)),
    "broadcast source MAC": Mutant(
        "header.answered header.broadcast_mac", m.put_bytes(6, *b"\xff" * 6)
    ),
    "address of the request": Mutant(
        "header.broadcast_addresses header.broadcast_mac",
        m.only(lambda _, __: True, m.echo_address),
    ),
    "responds to every address": Mutant(
        "header.other_addresses writes.write_broadcast", rewrite=m.own_address
    ),
    "responds to responses": Mutant(
        "header.response_flag", rewrite=m.and_byte(14, 0xF7)
    ),
    "reserved flags echoed": Mutant(
        "header.reserved_flags", m.only(lambda _, __: True, m.echo(14, 3))
    ),
    "reserved ATA flags echoed": Mutant(
        "header.reserved_aflags", m.only(m.command(0), m.echo(24, 0xAC))
    ),
    "E echoed": Mutant(
        "header.errors_in_requests", m.only(lambda _, __: True, m.echo(14, 4))
    ),
    "Error echoed": Mutant(
        "header.errors_in_requests header.error_codes_in_requests",
        m.only(lambda _, __: True, m.echo(15, 0xFF)),
    ),
    "every version accepted": Mutant("header.versions", rewrite=m.version_1),
    "error 2 for unknown commands": Mutant(
        "header.unknown_commands header.error_echoes_request",
        m.only(lambda _, response: response[15] == 1, m.put_bytes(15, 2)),
    ),
    "errors without a body": Mutant(
        "header.error_echoes_request",
        m.only(m.refused, lambda _, r: r[:24] + bytes(36)),
    ),
    "no command 2": Mutant("header.newer_commands", m.only(m.command(2), m.silent)),
    "no command 3": Mutant("header.newer_commands", m.only(m.command(3), m.silent)),
    # Lengths.
    "unpadded": Mutant(
        "framing.padded writes.write_response", m.only(lambda _, __: True, m.unpadded)
    ),
    "stale bytes in the padding": Mutant(
        "framing.zero_padding writes.write_response",
        m.only(lambda _, __: True, m.stale),
    ),
    "responds to truncated frames": Mutant("framing.too_short", m.respond_anyway),
    "requires padding": Mutant(
        "framing.unpadded_requests reserves.padding",
        m.only(lambda request, _: len(request) < 60, m.silent),
    ),
    "rejects trailing bytes": Mutant(
        "framing.trailing_bytes framing.mtu_probe_padding config.read_ignores_string "
        "config.string_tail config.any_bytes reserves.padding",
        m.only(m.is_longer(60), m.silent),
    ),
    "one byte too long": Mutant(
        "framing.exact_length", m.only(m.succeeded, m.trailing)
    ),
    "one sector per frame": Mutant(
        "framing.advertised_sectors reads.several_sectors writes.write_full",
        m.only(
            lambda r, _: r[26:29] == b"\2\x24\0" or r[26:37:10] == b"\2\xff",
            m.put_bytes(25, 4, 2, 0x41),
        ),
    ),
    # IDENTIFY and what it claims.
    "no broadcast": Mutant(
        "identify.identify",
        m.only(lambda r, _: r[16] == 0xFF, m.silent),
    ),
    "IDENTIFY of any count": Mutant(
        "identify.identify_counts",
        rewrite=m.only_requests(m.is_opcode(0xEC), m.set_byte(26, 1)),
    ),
    "not an ATA disk": Mutant(
        "identify.ata_disk identify.checksum", m.only(m.opcode(0xEC), m.flip(37))
    ),
    "wrong size in words 60 and 61": Mutant(
        "identify.size", m.only(m.opcode(0xEC), m.flip(36 + 121))
    ),
    "one sector too many": Mutant(
        "identify.size reads.read", m.only(m.opcode(0xEC), m.more_sectors)
    ),
    "NUL in strings": Mutant(
        "identify.strings identify.checksum", m.only(m.opcode(0xEC), m.nul_padded)
    ),
    "no DMA": Mutant(
        "identify.dma writes.dma",
        rewrite=m.only_requests(
            m.is_opcode(0xC8, 0x25, 0xCA, 0x35), m.replace_opcode(2)
        ),
    ),
    "no SMART": Mutant(
        "identify.smart",
        rewrite=m.only_requests(m.is_opcode(0xB0), m.replace_opcode(2)),
    ),
    "FLUSH as in ggaoed": Mutant(
        "identify.flush identify.flush_registers writes.flush",
        m.only(m.opcode(0xE7), m.put_bytes(27, 0xE7)),
    ),
    "FLUSH as in vblade": Mutant(
        "identify.flush_registers", m.only(m.opcode(0xE7), m.put_bytes(27, 0))
    ),
    "no FLUSH EXT": Mutant(
        "identify.flush_ext identify.flush_ext_claimed",
        rewrite=m.only_requests(m.is_opcode(0xEA), m.replace_opcode(2)),
    ),
    "CHECK POWER with count 0 only": Mutant(
        "identify.check_power",
        m.only(lambda r, _: m.is_opcode(0xE5)(r) and r[26] > 0, m.silent),
    ),
    "SET FEATURES without effect": Mutant(
        "identify.write_cache",
        rewrite=m.only_requests(m.is_opcode(0xEF), m.replace_opcode(0xE1)),
    ),
    # READ.
    "intermittently wrong byte": Mutant(
        "reads.read reads.read28 reads.read48 reads.several_sectors",
        m.only(lambda r, _: m.is_read(r) and r[23] % 2 > 0, m.flip(40)),
    ),
    "device bits are address bits": Mutant(
        "reads.read28 reads.read48 writes.write28",
        rewrite=m.only_requests(m.is_opcode(0x20, 0x30), m.or_byte(24, 0x40)),
    ),
    "E flag alone decides": Mutant(
        "reads.opcode_decides",
        rewrite=m.only_requests(
            lambda r: m.is_read(r) and not r[24] & 0x40, m.replace_opcode(0x20)
        ),
    ),
    "opcode alone decides": Mutant(
        "reads.flag_decides",
        rewrite=m.only_requests(m.is_opcode(0x20), m.and_byte(24, 0xBF)),
    ),
    "count echoed": Mutant(
        "reads.registers writes.write_registers",
        m.only(m.succeeded, m.echo(26, 0xFF)),
    ),
    "ABRT for IDNF": Mutant(
        "reads.beyond_end reads.across_end reads.lba48_wraparound "
        "reads.failed_registers writes.write_beyond writes.write_across identify.size",
        m.only(lambda a, r: m.failed(a, r) and r[25] == 0x10, m.put_bytes(25, 4)),
    ),
    "wraps around at the end": Mutant(
        "reads.beyond_end writes.write_beyond",
        rewrite=m.only_requests(m.is_opcode(0x24, 0x34), m.wrap_around),
    ),
    "truncates at the end": Mutant(
        "reads.across_end writes.write_across",
        rewrite=m.only_requests(m.is_opcode(0x24, 0x34), m.truncate_at_end),
    ),
    "status 0x01": Mutant(
        "reads.failed_registers", m.only(m.failed, m.put_bytes(27, 1))
    ),
    "count 0 succeeds": Mutant(
        "reads.zero_count reads.counts_aborted "
        "writes.write_zero_count writes.write_zero_count_aborted",
        m.only(
            lambda r, _: (m.is_read(r) or m.is_write(r)) and not r[26],
            m.put_bytes(25, 0, 0, 0x40),
        ),
    ),
    "silent for large counts": Mutant(
        "reads.too_many writes.write_too_many",
        m.only(lambda r, _: r[19] == 0 and r[26] == 255, m.silent),
    ),
    "error 2 for ABRT": Mutant(
        "reads.counts_aborted reads.unknown_opcodes reads.read_with_w_aborted "
        "identify.identify_counts writes.write_without_w writes.write_broadcast "
        "writes.write_zero_count_aborted writes.write_short_aborted",
        m.only(lambda a, r: m.failed(a, r) and r[25] == 4, m.error_two),
    ),
    "READ with W without data": Mutant(
        "reads.read_with_w reads.read_with_w_aborted",
        m.only(
            lambda r, _: m.is_read(r) and r[24] & 1 > 0,
            lambda _, r: r[:25] + b"\0\0\x40" + r[28:60],
        ),
    ),
    "READ with W accepted": Mutant(
        "reads.read_with_w_aborted",
        rewrite=m.only_requests(m.is_read, m.and_byte(24, 0xFE)),
    ),
    "no response with the A flag": Mutant(
        "reads.async_flag writes.write_async",
        m.only(lambda r, _: r[19] == 0 and r[24] & 2 > 0, m.silent),
    ),
    # WRITE.
    "WRITE without effect": Mutant(
        "writes.write writes.write28 writes.write_twice writes.write_full "
        "writes.write_trailing_bytes writes.write_async writes.flush writes.dma",
        rewrite=m.only_requests(m.is_opcode(0x30, 0x34, 0x35), m.replace_opcode(0xE1)),
    ),
    "WRITE of trailing data": Mutant(
        "writes.write_trailing_bytes",
        rewrite=m.only_requests(
            lambda r: m.is_write(r) and len(r) > 600, m.set_byte(26, 2)
        ),
    ),
    "WRITE without W accepted": Mutant(
        "writes.write_without_w", rewrite=m.only_requests(m.is_write, m.or_byte(24, 1))
    ),
    "WRITE of missing data": Mutant(
        "writes.write_short writes.write_short_aborted",
        rewrite=m.only_requests(m.is_write, m.pad_data),
    ),
    "WRITE of available data only": Mutant(
        "writes.write_too_many",
        rewrite=m.only_requests(
            lambda r: m.is_write(r) and r[26] == 255, m.set_byte(26, 1)
        ),
    ),
    "TRIM without effect": Mutant(
        "writes.trim",
        rewrite=m.only_requests(m.is_opcode(0x06), m.replace_opcode(0xE1)),
    ),
    "WRITE UNCORRECTABLE without effect": Mutant(
        "writes.write_uncorrectable",
        rewrite=m.only_requests(m.is_opcode(0x45), m.replace_opcode(0xE1)),
    ),
    # Query config.
    "no version": Mutant(
        "config.read", m.only(m.command(1), lambda _, r: m.and_byte(29, 0x0F)(r))
    ),
    "no ccmd": Mutant(
        "config.test config.prefix config.force",
        m.only(m.command(1), lambda _, r: m.and_byte(29, 0xF0)(r)),
    ),
    "one buffer": Mutant("config.buffers", m.only(m.command(1), m.put_bytes(24, 0, 1))),
    "numbers echoed": Mutant(
        "config.numbers_ignored", m.only(m.command(1), m.echo_numbers)
    ),
    "read checks the length": Mutant(
        "config.read_ignores_string",
        m.only(
            lambda r, _: m.ccmd(0)(r, b"") and any(r[30:32]), m.put_bytes(14, 0x1C, 2)
        ),
    ),
    "test and prefix always match": Mutant(
        "config.test config.prefix config.test_and_prefix",
        lambda a, r: m.respond_anyway(a, r) if m.ccmd(1, 2)(a, r) else r,
    ),
    "error 1 for bad arguments": Mutant(
        "config.unknown config.overlong_error reserves.unknown masks.unknown",
        m.only(lambda _, r: r[14] & 4 > 0 and r[15] == 2, m.put_bytes(15, 1)),
    ),
    "set acts as force": Mutant(
        "config.set_second config.set_error_has_owner",
        m.only(m.ccmd(3), m.put_bytes(29, 0x13)),
        m.only_requests(lambda r: m.ccmd(3)(r, b""), m.set_byte(29, 4)),
    ),
    "set always fails": Mutant(
        "config.set_first", m.only(m.ccmd(3), m.put_bytes(14, 0x1C, 4))
    ),
    "set error without owner": Mutant(
        "config.set_error_has_owner",
        m.only(lambda _, r: r[19] == 1 and r[15] == 4, m.put_bytes(30, 0, 0)),
    ),
    "force response without string": Mutant(
        "config.force config.any_bytes config.string_tail",
        m.only(m.ccmd(4), m.put_bytes(30, 0, 0)),
    ),
    "string length limited to the frame": Mutant(
        "config.overlong config.overlong_error config.over_1024_bytes",
        rewrite=m.only_requests(lambda r: m.ccmd(4)(r, b""), m.limit_length),
    ),
    "string ends at NUL": Mutant(
        "config.any_bytes",
        rewrite=m.only_requests(lambda r: m.ccmd(4)(r, b""), m.cut_at_nul),
    ),
    "string extends to the end of the frame": Mutant(
        "config.string_tail",
        rewrite=m.only_requests(
            lambda r: m.ccmd(4)(r, b"") and len(r) > 60, m.length_of_frame
        ),
    ),
    # Reserve/release.
    "intermittently wrong holder": Mutant(
        "reserves.read reserves.padding",
        m.only(lambda r, _: m.is_reserve(0)(r) and r[23] % 2 > 0, m.put_bytes(25, 1)),
    ),
    "unknown RCmd reads": Mutant(
        "reserves.unknown reserves.error_has_holders",
        rewrite=m.only_requests(lambda r: r[19] == 3 and r[24] > 2, m.set_byte(24, 0)),
    ),
    "set acts as force for all": Mutant(
        "reserves.set_non_holder reserves.error_has_holders",
        m.only(lambda r, _: m.is_reserve(1)(r), m.put_bytes(24, 1)),
        m.only_requests(m.is_reserve(1), m.set_byte(24, 2)),
    ),
    "set by new holders only": Mutant(
        "reserves.set_free reserves.set_others",
        rewrite=m.only_requests(m.is_set_by_non_holder, m.set_byte(24, 9)),
    ),
    "errors without holders": Mutant(
        "reserves.error_has_holders",
        m.only(lambda _, r: r[19] == 3 and r[14] & 4 > 0, m.put_bytes(25, 0)),
    ),
    "force acts as set": Mutant(
        "reserves.force",
        m.only(lambda r, _: m.is_reserve(2)(r), m.put_bytes(24, 2)),
        m.only_requests(lambda r: m.is_reserve(2)(r) and r[25] > 0, m.set_byte(24, 1)),
    ),
    "no reservation check": Mutant(
        "reserves.non_holder_read reserves.non_holder_write "
        "reserves.non_holder_commands",
        m.to_requester,
        m.only_requests(lambda r: r[19] == 0, m.from_third),
    ),
    "reservation checked for READ and WRITE only": Mutant(
        "reserves.non_holder_commands",
        m.to_requester,
        m.only_requests(m.is_opcode(0xE5, 0xE7, 0xEA, 2), m.from_third),
    ),
    "reservation checked for queries": Mutant(
        "reserves.non_holder_queries",
        m.WhileSet(3, 25, m.command(1), m.put_bytes(14, 0x1C, 6)),
    ),
    "reservation checked for holders": Mutant(
        "reserves.holders_read reserves.holder_order",
        m.WhileSet(3, 25, m.command(0), m.put_bytes(14, 0x1C, 6)),
    ),
    "sorts holders": Mutant(
        "reserves.holder_order",
        rewrite=m.only_requests(m.is_reserve(1, 2), m.sorted_macs),
    ),
    "accepts missing addresses": Mutant(
        "reserves.missing_addresses reserves.missing_addresses_error",
        rewrite=m.only_requests(m.is_reserve(2), m.count_present),
    ),
    # The MAC mask list.
    "read echoes the count": Mutant(
        "masks.read",
        m.only(lambda r, _: r[19] == 2 and not r[25], m.echo(27, 0xFF)),
    ),
    "wrong count after an edit": Mutant(
        "masks.edit_nothing masks.in_order",
        m.only(lambda a, r: m.is_edit(a) and not r[26], m.put_bytes(27, 9)),
    ),
    "unknown MCmd reads": Mutant(
        "masks.unknown",
        rewrite=m.only_requests(lambda r: r[19] == 2 and r[25] > 1, m.set_byte(25, 0)),
    ),
    "list not enforced": Mutant(
        "masks.unlisted_client masks.self_exclusion", m.to_requester, m.from_client
    ),
    "list excludes every client": Mutant(
        "masks.listed_client", m.WhileSet(2, 27, m.command(0), m.silent)
    ),
    "E set for a bad directive": Mutant(
        "masks.bad_directive masks.full_list",
        m.only(m.merror, m.put_bytes(14, 0x1C, 2)),
    ),
    "edit is atomic": Mutant(
        "masks.bad_directive masks.bad_directive_partial_edit",
        rewrite=m.only_requests(m.is_edit, m.drop_before_bad),
    ),
    "response without directives": Mutant(
        "masks.bad_directive_body", m.only(m.merror, lambda _, r: r[:28] + bytes(32))
    ),
    "no error for a full list": Mutant(
        "masks.full_list",
        m.only(lambda a, r: m.merror(a, r) and r[26] == 3, m.put_bytes(26, 0)),
    ),
    "directives read beyond the frame": Mutant(
        "masks.missing_directives masks.missing_directives_error",
        rewrite=m.only_requests(m.is_edit, m.read_beyond_frame),
    ),
}


@cache
def failed_checks(name: str) -> frozenset[str]:
    """Return the checks in which a mutant deviates."""
    results = check(MUTANTS[name])
    return frozenset(r.check.name for r in results if r.verdict is Verdict.DEVIATES)


@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_fails_its_checks(name: str) -> None:
    assert frozenset(MUTANTS[name].checks.split()) - failed_checks(name) == set()


@pytest.mark.parametrize(
    "name", ["FLUSH as in vblade", "status 0x01", "every version accepted"]
)
def test_a_mutant_that_ignores_advice_has_no_other_deviation(name: str) -> None:
    assert failed_checks(name) == frozenset(MUTANTS[name].checks.split())


def test_every_check_can_fail() -> None:
    """The check of a read-only disk has a test of its own."""
    can_fail = {rule for mutant in MUTANTS.values() for rule in mutant.checks.split()}
    assert {check.name for check in CHECKS} - can_fail == {"writes.read_only"}


def test_p40_a_write_to_a_read_only_disk_with_the_wrong_status_deviates() -> None:
    wrong = MUTANTS["status 0x01"]
    results = {r.check.name: r for r in check(wrong, read_only=True)}
    assert results["writes.read_only"].verdict is Verdict.DEVIATES
    assert results["writes.write"].verdict is Verdict.SKIPPED


def test_checks_without_options_send_nothing_that_changes_the_target() -> None:
    """A check that sends a changing request without permission would deviate."""
    assert {r.verdict for r in check(allowed=Needs.NOTHING)} == {
        Verdict.PASSED,
        Verdict.SKIPPED,
    }
