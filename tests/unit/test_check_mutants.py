"""Each check of the conformance suite can fail, for the reason that it is there for."""

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
    "another tag": Mutant("header.answered header.tags", m.flip(23)),
    "another client's reply": Mutant("header.answered", m.flip(5)),
    "the broadcast source": Mutant(
        "header.answered header.broadcast_mac", m.put(6, *b"\xff" * 6)
    ),
    "the address that was asked": Mutant(
        "header.broadcast_addresses header.broadcast_mac",
        m.only(lambda _, __: True, m.address_back),
    ),
    "every address": Mutant(
        "header.other_addresses writes.write_broadcast", rewrite=m.own_address
    ),
    "answers answers": Mutant("header.response_flag", rewrite=m.and_byte(14, 0xF7)),
    "reserved flags back": Mutant(
        "header.reserved_flags", m.only(lambda _, __: True, m.echo(14, 3))
    ),
    "reserved ATA flags back": Mutant(
        "header.reserved_aflags", m.only(m.command(0), m.echo(24, 0xAC))
    ),
    "E back": Mutant(
        "header.errors_in_requests", m.only(lambda _, __: True, m.echo(14, 4))
    ),
    "Error back": Mutant(
        "header.errors_in_requests header.error_codes_in_requests",
        m.only(lambda _, __: True, m.echo(15, 0xFF)),
    ),
    "every version": Mutant("header.versions", rewrite=m.our_version),
    "error 2 for unknown commands": Mutant(
        "header.unknown_commands header.error_echoes_request",
        m.only(lambda _, response: response[15] == 1, m.put(15, 2)),
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
    "stale bytes": Mutant(
        "framing.zero_padding writes.write_response",
        m.only(lambda _, __: True, m.stale),
    ),
    "answers half a frame": Mutant("framing.too_short", m.answer_anyway),
    "wants padding": Mutant(
        "framing.unpadded_requests reserves.padding",
        m.only(lambda request, _: len(request) < 60, m.silent),
    ),
    "wants no more than it takes": Mutant(
        "framing.trailing_bytes framing.mtu_probe_padding config.read_ignores_string "
        "config.string_tail config.any_bytes reserves.padding",
        m.only(m.is_longer(60), m.silent),
    ),
    "a byte more": Mutant("framing.exact_length", m.only(m.succeeded, m.trailing)),
    "one sector at a time": Mutant(
        "framing.advertised_sectors reads.several_sectors writes.write_full",
        m.only(
            lambda r, _: r[26:29] == b"\2\x24\0" or r[26:37:10] == b"\2\xff",
            m.put(25, 4, 2, 0x41),
        ),
    ),
    # IDENTIFY and what it claims.
    "no broadcast": Mutant(
        "identify.identify",
        m.only(lambda r, _: r[16] == 0xFF, m.silent),
    ),
    "IDENTIFY of any count": Mutant(
        "identify.identify_counts",
        rewrite=m.asked(m.is_opcode(0xEC), m.set_byte(26, 1)),
    ),
    "no ATA disk": Mutant(
        "identify.ata_disk identify.checksum", m.only(m.opcode(0xEC), m.flip(37))
    ),
    "another size in words 60 and 61": Mutant(
        "identify.size", m.only(m.opcode(0xEC), m.flip(36 + 121))
    ),
    "a sector too many": Mutant(
        "identify.size reads.read", m.only(m.opcode(0xEC), m.more_sectors)
    ),
    "zeroes in strings": Mutant(
        "identify.strings identify.checksum", m.only(m.opcode(0xEC), m.no_spaces)
    ),
    "no DMA": Mutant(
        "identify.dma writes.dma",
        rewrite=m.asked(m.is_opcode(0xC8, 0x25, 0xCA, 0x35), m.becomes(2)),
    ),
    "no SMART": Mutant(
        "identify.smart", rewrite=m.asked(m.is_opcode(0xB0), m.becomes(2))
    ),
    "FLUSH as ggaoed": Mutant(
        "identify.flush identify.flush_registers writes.flush",
        m.only(m.opcode(0xE7), m.put(27, 0xE7)),
    ),
    "FLUSH as vblade": Mutant(
        "identify.flush_registers", m.only(m.opcode(0xE7), m.put(27, 0))
    ),
    "no FLUSH EXT": Mutant(
        "identify.flush_ext identify.flush_ext_claimed",
        rewrite=m.asked(m.is_opcode(0xEA), m.becomes(2)),
    ),
    "CHECK POWER with no count": Mutant(
        "identify.check_power",
        m.only(lambda r, _: m.is_opcode(0xE5)(r) and r[26] > 0, m.silent),
    ),
    "SET FEATURES in vain": Mutant(
        "identify.write_cache", rewrite=m.asked(m.is_opcode(0xEF), m.becomes(0xE1))
    ),
    # READ.
    "a wrong byte now and then": Mutant(
        "reads.read reads.read28 reads.read48 reads.several_sectors",
        m.only(lambda r, _: m.is_read(r) and r[23] % 2 > 0, m.flip(40)),
    ),
    "device bits are address bits": Mutant(
        "reads.read28 reads.read48 writes.write28",
        rewrite=m.asked(m.is_opcode(0x20, 0x30), m.or_byte(24, 0x40)),
    ),
    "the flag alone decides": Mutant(
        "reads.opcode_decides",
        rewrite=m.asked(lambda r: m.is_read(r) and not r[24] & 0x40, m.becomes(0x20)),
    ),
    "the opcode alone decides": Mutant(
        "reads.flag_decides",
        rewrite=m.asked(m.is_opcode(0x20), m.and_byte(24, 0xBF)),
    ),
    "the count unchanged": Mutant(
        "reads.registers writes.write_registers",
        m.only(m.succeeded, m.echo(26, 0xFF)),
    ),
    "ABRT for IDNF": Mutant(
        "reads.beyond_end reads.across_end reads.lba48_wraparound "
        "reads.failed_registers writes.write_beyond writes.write_across identify.size",
        m.only(lambda a, r: m.failed(a, r) and r[25] == 0x10, m.put(25, 4)),
    ),
    "around the end": Mutant(
        "reads.beyond_end writes.write_beyond",
        rewrite=m.asked(m.is_opcode(0x24, 0x34), m.without_range_check),
    ),
    "up to the end": Mutant(
        "reads.across_end writes.write_across",
        rewrite=m.asked(m.is_opcode(0x24, 0x34), m.cut_at_end),
    ),
    "status 0x01": Mutant("reads.failed_registers", m.only(m.failed, m.put(27, 1))),
    "no sectors are a success": Mutant(
        "reads.zero_count reads.counts_aborted "
        "writes.write_zero_count writes.write_zero_count_aborted",
        m.only(
            lambda r, _: (m.is_read(r) or m.is_write(r)) and not r[26],
            m.put(25, 0, 0, 0x40),
        ),
    ),
    "silent where it is too much": Mutant(
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
    "READ with W": Mutant(
        "reads.read_with_w_aborted", rewrite=m.asked(m.is_read, m.and_byte(24, 0xFE))
    ),
    "A is for no answer": Mutant(
        "reads.async_flag writes.write_async",
        m.only(lambda r, _: r[19] == 0 and r[24] & 2 > 0, m.silent),
    ),
    # WRITE.
    "WRITE in vain": Mutant(
        "writes.write writes.write28 writes.write_twice writes.write_full "
        "writes.write_trailing_bytes writes.write_async writes.flush writes.dma",
        rewrite=m.asked(m.is_opcode(0x30, 0x34, 0x35), m.becomes(0xE1)),
    ),
    "all that is there": Mutant(
        "writes.write_trailing_bytes",
        rewrite=m.asked(lambda r: m.is_write(r) and len(r) > 600, m.set_byte(26, 2)),
    ),
    "WRITE without W": Mutant(
        "writes.write_without_w", rewrite=m.asked(m.is_write, m.or_byte(24, 1))
    ),
    "WRITE of what is not there": Mutant(
        "writes.write_short writes.write_short_aborted",
        rewrite=m.asked(m.is_write, m.filled_up),
    ),
    "WRITE of what there is": Mutant(
        "writes.write_too_many",
        rewrite=m.asked(lambda r: m.is_write(r) and r[26] == 255, m.set_byte(26, 1)),
    ),
    "TRIM in vain": Mutant(
        "writes.trim", rewrite=m.asked(m.is_opcode(0x06), m.becomes(0xE1))
    ),
    "WRITE UNCORRECTABLE in vain": Mutant(
        "writes.write_uncorrectable",
        rewrite=m.asked(m.is_opcode(0x45), m.becomes(0xE1)),
    ),
    # Query config.
    "no version": Mutant(
        "config.read", m.only(m.command(1), lambda _, r: m.and_byte(29, 0x0F)(r))
    ),
    "no ccmd": Mutant(
        "config.test config.prefix config.force",
        m.only(m.command(1), lambda _, r: m.and_byte(29, 0xF0)(r)),
    ),
    "one buffer": Mutant("config.buffers", m.only(m.command(1), m.put(24, 0, 1))),
    "numbers back": Mutant(
        "config.numbers_ignored", m.only(m.command(1), m.numbers_back)
    ),
    "read minds the length": Mutant(
        "config.read_ignores_string",
        m.only(lambda r, _: m.ccmd(0)(r, b"") and any(r[30:32]), m.put(14, 0x1C, 2)),
    ),
    "test and prefix always": Mutant(
        "config.test config.prefix config.test_and_prefix",
        lambda a, r: m.answer_anyway(a, r) if m.ccmd(1, 2)(a, r) else r,
    ),
    "error 1 for arguments": Mutant(
        "config.unknown config.overlong_error reserves.unknown masks.unknown",
        m.only(lambda _, r: r[14] & 4 > 0 and r[15] == 2, m.put(15, 1)),
    ),
    "set is force": Mutant(
        "config.set_second config.set_error_has_owner",
        m.only(m.ccmd(3), m.put(29, 0x13)),
        m.asked(lambda r: m.ccmd(3)(r, b""), m.set_byte(29, 4)),
    ),
    "set never": Mutant("config.set_first", m.only(m.ccmd(3), m.put(14, 0x1C, 4))),
    "set does not tell whose": Mutant(
        "config.set_error_has_owner",
        m.only(lambda _, r: r[19] == 1 and r[15] == 4, m.put(30, 0, 0)),
    ),
    "force tells nothing": Mutant(
        "config.force config.any_bytes config.string_tail",
        m.only(m.ccmd(4), m.put(30, 0, 0)),
    ),
    "lengths are cut": Mutant(
        "config.overlong config.overlong_error config.over_1024_bytes",
        rewrite=m.asked(lambda r: m.ccmd(4)(r, b""), m.length_as_it_is),
    ),
    "a string of C": Mutant(
        "config.any_bytes", rewrite=m.asked(lambda r: m.ccmd(4)(r, b""), m.cut_at_zero)
    ),
    "the frame's end": Mutant(
        "config.string_tail",
        rewrite=m.asked(lambda r: m.ccmd(4)(r, b"") and len(r) > 60, m.all_of_it),
    ),
    # Reserve/release.
    "a holder who is none, now and then": Mutant(
        "reserves.read reserves.padding",
        m.only(lambda r, _: m.is_reserve(0)(r) and r[23] % 2 > 0, m.put(25, 1)),
    ),
    "unknown RCmd reads": Mutant(
        "reserves.unknown reserves.error_has_holders",
        rewrite=m.asked(lambda r: r[19] == 3 and r[24] > 2, m.set_byte(24, 0)),
    ),
    "set reserves for all": Mutant(
        "reserves.set_non_holder reserves.error_has_holders",
        m.only(lambda r, _: m.is_reserve(1)(r), m.put(24, 1)),
        m.asked(m.is_reserve(1), m.set_byte(24, 2)),
    ),
    "set by those in the new list": Mutant(
        "reserves.set_free reserves.set_others",
        rewrite=m.asked(m.is_for_strangers, m.set_byte(24, 9)),
    ),
    "errors without holders": Mutant(
        "reserves.error_has_holders",
        m.only(lambda _, r: r[19] == 3 and r[14] & 4 > 0, m.put(25, 0)),
    ),
    "force is set": Mutant(
        "reserves.force",
        m.only(lambda r, _: m.is_reserve(2)(r), m.put(24, 2)),
        m.asked(lambda r: m.is_reserve(2)(r) and r[25] > 0, m.set_byte(24, 1)),
    ),
    "nobody is a stranger": Mutant(
        "reserves.non_holder_read reserves.non_holder_write "
        "reserves.non_holder_commands",
        m.to_asker,
        m.asked(lambda r: r[19] == 0, m.from_third),
    ),
    "fences only READ and WRITE": Mutant(
        "reserves.non_holder_commands",
        m.to_asker,
        m.asked(m.is_opcode(0xE5, 0xE7, 0xEA, 2), m.from_third),
    ),
    "fences queries": Mutant(
        "reserves.non_holder_queries",
        m.WhileSet(3, 25, m.command(1), m.put(14, 0x1C, 6)),
    ),
    "fences holders": Mutant(
        "reserves.holders_read reserves.holder_order",
        m.WhileSet(3, 25, m.command(0), m.put(14, 0x1C, 6)),
    ),
    "sorts holders": Mutant(
        "reserves.holder_order", rewrite=m.asked(m.is_reserve(1, 2), m.sorted_macs)
    ),
    "as many holders as there are": Mutant(
        "reserves.missing_addresses reserves.missing_addresses_error",
        rewrite=m.asked(m.is_reserve(2), m.held_macs),
    ),
    # The MAC mask list.
    "counts what is asked": Mutant(
        "masks.read",
        m.only(lambda r, _: r[19] == 2 and not r[25], m.echo(27, 0xFF)),
    ),
    "an edit counts wrong": Mutant(
        "masks.edit_nothing masks.in_order",
        m.only(lambda a, r: m.is_edit(a) and not r[26], m.put(27, 9)),
    ),
    "unknown MCmd reads": Mutant(
        "masks.unknown",
        rewrite=m.asked(lambda r: r[19] == 2 and r[25] > 1, m.set_byte(25, 0)),
    ),
    "the list is for nothing": Mutant(
        "masks.unlisted_client masks.self_exclusion", m.to_asker, m.from_client
    ),
    "the list shuts all out": Mutant(
        "masks.listed_client", m.WhileSet(2, 27, m.command(0), m.silent)
    ),
    "E for a bad directive": Mutant(
        "masks.bad_directive masks.full_list", m.only(m.merror, m.put(14, 0x1C, 2))
    ),
    "all or nothing": Mutant(
        "masks.bad_directive masks.bad_directive_partial_edit",
        rewrite=m.asked(m.is_edit, m.bad_one_alone),
    ),
    "no directives back": Mutant(
        "masks.bad_directive_body", m.only(m.merror, lambda _, r: r[:28] + bytes(32))
    ),
    "no word of a full list": Mutant(
        "masks.full_list",
        m.only(lambda a, r: m.merror(a, r) and r[26] == 3, m.put(26, 0)),
    ),
    "directives from memory": Mutant(
        "masks.missing_directives masks.missing_directives_error",
        rewrite=m.asked(m.is_edit, m.from_memory),
    ),
}


@cache
def noticed(name: str) -> frozenset[str]:
    """Return the checks that a mutant does not pass."""
    results = check(MUTANTS[name])
    return frozenset(r.check.name for r in results if r.verdict is Verdict.DEVIATES)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_target_that_is_wrong_is_found_out(name: str) -> None:
    assert frozenset(MUTANTS[name].rules.split()) - noticed(name) == set()


@pytest.mark.parametrize("name", ["FLUSH as vblade", "status 0x01", "every version"])
def test_who_only_ignores_advice_has_no_other_deviation(name: str) -> None:
    assert noticed(name) == frozenset(MUTANTS[name].rules.split())


def test_every_check_can_fail() -> None:
    """But for that of a read-only disk, which has a test of its own."""
    can_fail = {rule for mutant in MUTANTS.values() for rule in mutant.rules.split()}
    assert {check.name for check in CHECKS} - can_fail == {"writes.read_only"}


def test_p40_a_read_only_disk_that_fails_otherwise() -> None:
    wrong = MUTANTS["status 0x01"]
    results = {r.check.name: r for r in check(wrong, read_only=True)}
    assert results["writes.read_only"].verdict is Verdict.DEVIATES
    assert results["writes.write"].verdict is Verdict.SKIPPED


def test_no_check_needs_more_than_it_says() -> None:
    """With nothing allowed, nothing that changes anything is sent."""
    assert {r.verdict for r in check(allowed=Needs.NOTHING)} == {
        Verdict.HOLDS,
        Verdict.SKIPPED,
    }
