"""``ask`` and the other helpers of ``aoe scapy``, with a target in memory."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
from scapy.config import conf
from scapy.error import log_scapy
from scapy.fields import RandByte
from scapy.layers.inet import IP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw, fuzz

from aoe import layers
from aoe.errors import DeviceError, NotFoundError, UsageError
from aoe.layers import AoE, AoEATA, AoEConfig, AoEReserve
from initiator.session.completion import complete_argument
from initiator.session.console import Script, run_script
from initiator.session.exchange import build_frames
from initiator.session.helpers import HELPERS, Session
from initiator.session.names import own_names
from tests.asking import CLIENT, TARGET, sector
from tests.links import TargetLink

if TYPE_CHECKING:
    from collections.abc import Callable

TAGS = range(100, 200)
OURS = CLIENT.hex(":")
SHORT = 0.05
"""Seconds to wait where no response is expected."""


def frames(packet: object) -> list[Ether]:
    """Return the frames that are sent for a packet, dissected."""
    tags = iter(TAGS)
    return [Ether(frame) for frame in build_frames(packet, CLIENT, lambda: next(tags))]


def response_to(session: Session, packet: Packet) -> Packet:
    response = session.ask(packet)
    assert response is not None
    return response


def session_on(link: TargetLink) -> Session:
    return Session(["lo"], lambda _: link, tag_base=5, timeout=SHORT)


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose an interface that every host has; restore what scripts change."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(conf, "iface", "lo")
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.fixture
def link() -> TargetLink:
    """Return a link to e7.3 whose responses arrive as they are."""
    return TargetLink(lambda _, response: [response])


@pytest.fixture
def session(link: TargetLink) -> Session:
    return session_on(link)


def arriving(change: Callable[[bytes], bytes]) -> Session:
    """Return a session in which a changed response arrives before the right one."""
    return session_on(TargetLink(lambda _, response: [change(response), response]))


# --- the frame ------------------------------------------------------------------------


def test_p19_what_is_not_set_is_completed() -> None:
    (frame,) = frames(AoE(shelf=7, slot=3) / AoEConfig())
    assert (frame.src, frame.dst, frame.type) == (OURS, "ff:ff:ff:ff:ff:ff", 0x88A2)
    assert (frame[AoE].tag, len(frame)) == (TAGS[0], 60)


def test_what_is_set_is_sent_unchanged() -> None:
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    packet = ether / AoE(tag=9, version=3, flags=8, cmd=77) / Raw(b"body")
    assert bytes(frames(packet)[0])[:28] == bytes(packet)


def test_the_packet_of_the_caller_is_not_modified() -> None:
    packet = Ether() / AoE() / AoEConfig()
    frames(packet)
    assert (packet.fields, packet[AoE].fields) == ({}, {})
    assert [frame[AoE].tag for frame in frames(packet)] == [TAGS[0]]


def test_a_captured_frame_is_sent_as_it_was() -> None:
    captured = frames(AoE(shelf=7, slot=3) / AoEATA())[0]
    assert bytes(frames(captured)[0]) == bytes(captured)


def test_a_vlan_tag_is_preserved() -> None:
    """P24."""
    (frame,) = frames(Ether() / Dot1Q(vlan=5) / AoE() / AoEConfig())
    assert (frame[Dot1Q].vlan, frame.dst, frame.src) == (5, "ff:ff:ff:ff:ff:ff", OURS)


def test_p10_each_of_several_packets_has_a_tag() -> None:
    sent = frames(AoE(shelf=7, slot=[1, 3, 5]) / AoEATA(lba=(0, 1)))
    assert [(each[AoE].slot, each[AoEATA].lba) for each in sent] == [
        *((1, 0), (1, 1), (3, 0), (3, 1), (5, 0), (5, 1))
    ]
    assert [each[AoE].tag for each in sent] == list(TAGS[:6])


def test_random_values_are_those_that_were_sent(link: TargetLink) -> None:
    session = session_on(link)
    for _ in range(50):
        session.ask(fuzz(AoE()) / AoEATA(err_feature=RandByte()), timeout=0)
    assert all(len(frame) >= 60 for frame in link.sent)
    assert len({frame[20:24] for frame in link.sent}) == 50


@pytest.mark.parametrize("packet", [IP(), AoEATA(), Raw(b"x"), Ether() / IP()])
def test_a_packet_that_is_not_aoe_is_an_error(session: Session, packet: object) -> None:
    with pytest.raises(UsageError, match="not an AoE frame"):
        session.ask(packet)


def test_a_frame_longer_than_the_mtu_is_an_error(
    link: TargetLink, session: Session
) -> None:
    with pytest.raises(UsageError, match="a frame of 1536 bytes exceeds the MTU"):
        session.ask(AoE() / AoEATA(data=bytes(1500)))
    assert link.sent == []


def test_a_frame_without_a_complete_header_is_sent(
    link: TargetLink, session: Session
) -> None:
    assert session.ask(Ether(type=0x88A2) / Raw(b"\x10"), timeout=SHORT) is None
    assert [len(frame) for frame in link.sent] == [60]


# --- the response ---------------------------------------------------------------------


def test_ask_returns_the_response(session: Session) -> None:
    response = response_to(
        session, AoE(shelf=7, slot=3) / AoEATA(cmd_status="READ", lba=5)
    )
    assert response[AoEATA].data == sector(5)
    assert (response.src, response.dst) == (TARGET.hex(":"), OURS)
    assert response.sniffed_on == "aoe0"


def test_an_error_is_a_response(session: Session) -> None:
    response = response_to(session, AoE(shelf=7, slot=3, cmd=99) / Raw(bytes(40)))
    assert response.sprintf("%AoE.flags% %AoE.error%") == (
        "error+response unrecognized command code"
    )


def test_none_is_returned_after_the_timeout(
    session: Session,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_scapy, "propagate", True)
    assert session.ask(AoE(shelf=7, slot=4) / AoEConfig()) is None
    assert "no response on" in caplog.text


@pytest.mark.parametrize("offset", [19, 20, 23], ids=["command", "tag", "tag"])
def test_p10_another_command_or_tag_is_no_response(offset: int) -> None:
    session = arriving(lambda r: r[:offset] + b"\x5a" + r[offset + 1 :])
    response = response_to(session, AoE(shelf=7, slot=3) / AoEATA())
    assert response[AoE].cmd == 0
    assert len(response[AoEATA].data) == 512


def test_p8_another_address_is_no_response() -> None:
    session = arriving(lambda r: r[:18] + b"\x04" + r[19:])
    response = response_to(session, AoE(shelf=7, slot=3) / AoEConfig())
    assert response[AoE].slot == 3


def test_p7_the_request_of_another_host_is_no_response() -> None:
    session = session_on(TargetLink(lambda request, response: [request, response]))
    response = response_to(session, AoE(shelf=7, slot=3) / AoEConfig())
    assert response.src == TARGET.hex(":")


def test_a_truncated_response_does_not_fail() -> None:
    session = arriving(lambda r: r[:16])
    assert session.ask(AoE(shelf=7, slot=3) / AoEConfig()) is not None


def test_p8_all_addresses_respond_to_a_broadcast() -> None:
    other = TargetLink(lambda _, r: [r, r[:18] + b"\x04" + r[19:]])
    session = session_on(other)
    query = AoE(shelf=0xFFFF, slot=0xFF) / AoEConfig()
    assert [each[AoE].slot for each in session.ask_all(query)] == [3, 4]


def test_ask_all_collects_the_responses_to_several_packets(session: Session) -> None:
    request = AoE(shelf=7, slot=3) / AoEATA(cmd_status="READ", lba=[4, 6])
    found = session.ask_all(request)
    assert [each[AoEATA].data for each in found] == [sector(4), sector(6)]


def test_discover_prints_and_returns_the_targets(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = session.discover()
    assert found[AoEConfig].buffer_count == 16
    assert capsys.readouterr().out == f"e7.3       {TARGET.hex(':')}  aoe0\n"


# --- sectors --------------------------------------------------------------------------


def test_sectors_are_written_and_read(session: Session) -> None:
    session.write_sectors("e7.3", 10, b"a" * 512 + b"b" * 512)
    assert session.read_sectors("e7.3", 9, 2) == sector(9) + b"a" * 512
    assert session.read_sectors("e7.3", 11) == b"b" * 512


def test_an_ata_error_of_a_transfer_is_raised(session: Session) -> None:
    with pytest.raises(DeviceError, match="sector not found"):
        session.read_sectors("e7.3", 1 << 40)


def test_an_aoe_error_of_a_transfer_is_raised(session: Session) -> None:
    reserve = AoE(shelf=7, slot=3) / AoEReserve(rcmd="SET", macs=["02:00:00:00:00:01"])
    session.ask(reserve)
    with pytest.raises(DeviceError, match="reserved"):
        session.read_sectors("e7.3", 0)


def test_p21_a_response_with_less_data_is_an_error() -> None:
    session = session_on(TargetLink(lambda _, r: [r[:-512]]))
    with pytest.raises(DeviceError, match="512 bytes in the response to a read of 2"):
        session.read_sectors("e7.3", 0, 2)


@pytest.mark.parametrize("data", [b"", b"x" * 511])
def test_only_whole_sectors_are_written(session: Session, data: bytes) -> None:
    with pytest.raises(UsageError, match="not a multiple of 512"):
        session.write_sectors("e7.3", 0, data)


def test_no_response_to_a_transfer_is_an_error(session: Session) -> None:
    with pytest.raises(NotFoundError, match="no response"):
        session.read_sectors("e7.4", 0)


# --- scripts --------------------------------------------------------------------------


def run(session: Session, source: str, *words: str) -> None:
    run_script(session, Script(source, "<string>", ["-c", *words]))


def test_a_script_has_the_names_of_scapy_and_ours(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        session,
        "import sys\n"
        "response = ask(AoE(shelf=7, slot=3) / AoEATA(cmd_status=Opcode.READ))\n"
        "print(__name__, sys.argv, Ether in response, srp1.__name__, conf.iface)",
        "word",
    )
    assert capsys.readouterr().out == "__main__ ['-c', 'word'] True srp1 lo\n"


def test_the_traceback_of_a_script_begins_in_the_script(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        run(session, "def fail():\n    raise OSError(5)\nfail()")
    assert raised.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == '  File "<string>", line 3, in <module>'
    assert lines[-1] == "OSError: 5"


def test_a_syntax_error_in_a_script_is_reported(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(session, "ask(")
    assert "SyntaxError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "kind"),
    [("raise SystemExit(7)", SystemExit), ("ask(IP())", UsageError)],
)
def test_a_script_exits_by_its_own_status_and_by_our_errors(
    session: Session, source: str, kind: type[BaseException]
) -> None:
    with pytest.raises(kind):
        run(session, source)


def test_no_name_of_scapy_is_hidden(session: Session) -> None:
    ours = own_names(session)
    assert {"AoE", "AoEDirective", "Opcode", "ask", "pad"} <= {*ours}
    assert {*ours} & {*vars(import_module("scapy.all"))} == set()


def test_every_helper_has_an_example_that_is_python(session: Session) -> None:
    for name in HELPERS:
        text = getattr(session, name).__doc__
        examples = re.findall(r"^ *>>> (.*)$", text, re.MULTILINE)
        assert examples, name
        for example in examples:
            compile(example, name, "single")


# --- completion -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("AoEATA(cm", ["cmd_status="]),
        ("ask(AoE(shelf=7, sl", ["slot="]),
        ("ask(AoE(shelf=7) / AoEATA(lba=(1 + 2), aflags='write', co", ["count="]),
        ("AoEReserve(rc", ["rcmd="]),
        ("ask(AoE() / AoEConfig(), ti", ["timeout="]),
        ("sorted([], ke", ["key="]),
        ("layers.AoE(sh", ["shelf="]),
        ('AoEATA(cmd_status="IDEN', ["IDENTIFY"]),
        ("AoEATA(lba=0, cmd_status = 'READ EX", ["EXT'"]),
        ('AoEATA(aflags="wr', ["write"]),
        ('AoEATA(aflags="write+ex', ['extended"']),
        ('AoEConfig(ccmd="', ["READ", "TEST", "PREFIX", "SET", "FORCE"]),
    ],
)
def test_fields_and_named_values_are_completed(line: str, expected: list[str]) -> None:
    assert completed(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        *("ask(AoEA", "AoEATA(lba=le", "AoEA", "print('AoEATA(cm"),
        *("unknown(cm", "AoEATA(lba=0)(cm", "AoEATA([cm", 'AoEATA(data="IDEN'),
        *('print("IDEN', 'AoEATA(cmd_status="NO', "ask(AoE()).sh", "('x", "3(sh"),
    ],
)
def test_elsewhere_completion_is_that_of_python(line: str) -> None:
    assert completed(line) == []


def completed(line: str) -> list[str]:
    # readline passes the word after the last delimiter.
    word = re.split(r"[^\w.]", line)[-1]
    names = {"layers": layers, "ask": Session.ask, "print": print, "sorted": sorted}
    return complete_argument(line, word, vars(layers) | names)
