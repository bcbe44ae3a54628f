"""The reference target: equal to the others, and open to changes by a subclass."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.l2 import Ether

from aoe.address import Address, format_mac
from aoe.errors import AoEError, NotFoundError, UsageError
from aoe.layers import AoE, AoEATA, AoEConfig
from target.disks.memory import MemoryDisk
from target.protocol.exports import Export
from target.reference.engine import ScapyEngine
from target.reference.loading import load_engine
from target.reference.machine import AoETarget
from tests.asking import CLIENT, TARGET, ask, ata, ata_response, config
from tests.engines import StrictScapyEngine
from tests.fuzz_frames import Mutator
from tests.fuzz_port import run_all
from tests.links import MemoryRingLink
from tests.sides import Side, SlowRingLink, request_mix

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scapy.packet import Packet

    MakeEngineFile = Callable[[str], Path]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    batches=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    mtu=st.sampled_from((548, 1500, 9000)),
)
def test_all_implementations_give_the_same_responses_disks_and_counters(
    seed: int, batches: list[int], mtu: int
) -> None:
    with ExitStack() as stack:
        fast = Side(MemoryRingLink(mtu), stack)
        slow = Side(SlowRingLink(mtu), stack)
        reference = Side(MemoryRingLink(mtu), stack, StrictScapyEngine)
        frames = request_mix(seed)
        for number, size in enumerate(batches):
            requests, now = list(islice(frames, size)), number * 10.0
            responses = reference.serve(*requests, now=now)
            assert slow.serve(*requests, now=now) == responses
            assert fast.serve(*requests, now=now) == responses
            assert reference.counted() == slow.counted() == fast.counted()
        assert reference.disks() == slow.disks() == fast.disks()


@pytest.mark.parametrize("mtu", [576, 9000])
def test_no_frame_breaks_a_rule(tmp_path: Path, mtu: int) -> None:
    frames = islice(Mutator(mtu), 2000)
    port = run_all(tmp_path / "port", mtu, frames, StrictScapyEngine)
    assert port.executed > 500


def make_machine(**options: object) -> AoETarget:
    export = Export(Address(7, 3), MemoryDisk(bytes(range(256)) * 4))
    return AoETarget(export=export, mac=format_mac(TARGET), mtu=1500, **options)


def test_it_is_used_as_any_answering_machine(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sent: list[Packet] = []
    machine = make_machine()
    for request in (ata(0xEC), config(0), b"\xff" * 60):
        machine.reply(Ether(request), send_function=sent.append)
    assert [AoEATA in sent[0], AoEConfig in sent[1], len(sent)] == [True, True, 2]
    assert sent[0].answers(Ether(ata(0xEC)))
    assert "IDENTIFY" in capsys.readouterr().out
    assert machine.counts["requests"] == 2
    assert machine.dropped == {"foreign_ethertype": 1}


def test_announcement_is_a_config_response_to_all() -> None:
    announcement = Ether(bytes(make_machine().announcement()))
    assert announcement.dst == "ff:ff:ff:ff:ff:ff"
    assert (announcement[AoE].tag, announcement[AoEConfig].sector_count) == (0, 2)
    assert len(announcement) == 60


BROKEN = """
from target import AoETarget


class Broken(AoETarget):
    def identify(self, ata, response):
        response.data = bytes(self.size)

    def config(self, req):
        raise OSError(28, "no space")
"""


@pytest.fixture
def write_engine(tmp_path: Path) -> MakeEngineFile:
    def write(text: str) -> Path:
        path = tmp_path / "engine.py"
        path.write_text(text)
        return path

    return write


def load(path: object, mtu: int = 1500) -> ScapyEngine:
    export = Export(Address(7, 3), MemoryDisk(bytes(1024)))
    engine = load_engine(str(path))(export, TARGET, mtu)
    assert isinstance(engine, ScapyEngine)
    return engine


def test_an_error_in_a_subclass_drops_the_request_and_is_logged_once(
    write_engine: MakeEngineFile, caplog: pytest.LogCaptureFixture
) -> None:
    engine = load(write_engine(BROKEN))
    with caplog.at_level(logging.ERROR):
        assert [ask(engine, ata(0xEC)) for _ in range(3)] == [b""] * 3
        assert ask(engine, config(0)) == b""
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "e7.3: Broken: AttributeError: size",
        "e7.3: Broken: OSError: [Errno 28] no space",
    ]
    places = [message.rpartition("/")[2] for message in caplog.messages]
    assert places == ["engine.py:7)", "engine.py:10)"]
    assert ask(engine, ata(0xE5, count=0)) == ata_response(0x40, count=0xFF)
    assert engine.statistics().dropped == {"engine_failed": 4}


def test_a_response_that_exceeds_the_mtu_is_not_sent(
    write_engine: MakeEngineFile, caplog: pytest.LogCaptureFixture
) -> None:
    large = BROKEN.replace("bytes(self.size)", "bytes(1536)")
    assert ask(load(write_engine(large)), ata(0xEC)) == b""
    assert "a response of 1572 bytes, more than 1514" in caplog.text
    assert len(ask(load(write_engine(large), mtu=9000), ata(0xEC))) == 1572


def test_a_class_is_chosen_by_name(write_engine: MakeEngineFile) -> None:
    path = write_engine(BROKEN + "\n\nclass Other(Broken):\n    pass\n")
    assert type(load(f"{path}:Other").machine).__name__ == "Other"
    with pytest.raises(UsageError, match=r"several engines: Broken, Other\. Choose"):
        load(path)
    with pytest.raises(NotFoundError, match=r"no subclass Missing \(have: Broken, Oth"):
        load(f"{path}:Missing")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("x = 1 / 0", "ZeroDivisionError: division by zero"),
        ("class", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("from target import AoETarget", "no subclass of AoETarget"),
    ],
)
def test_a_file_without_a_usable_engine_is_an_error(
    write_engine: MakeEngineFile, text: str, error: str
) -> None:
    path = write_engine(text)
    with pytest.raises((UsageError, NotFoundError)) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}: {error}")
    assert raised.value.fix


def test_an_error_in_the_constructor_is_an_error_of_the_program(
    write_engine: MakeEngineFile,
) -> None:
    text = "class Mine(AoETarget):\n    def reconfigure(self, mac, mtu):\n        1 / 0"
    path = write_engine(f"from target import AoETarget\n{text}\n")
    with pytest.raises(AoEError, match="engine Mine: ZeroDivisionError: division"):
        load(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.py: no such file"):
        load(tmp_path / "none.py")


def test_requests_of_one_client_only_are_answered_p61() -> None:
    machine = make_machine()
    machine.export.state = type(machine.export.state)(mask=(CLIENT,))
    assert machine.is_request(Ether(ata(0xEC)))
    stranger = Ether(ata(0xEC))
    stranger.src = "52:54:00:00:00:09"
    assert not machine.is_request(stranger)
    assert machine.dropped == {"not_in_mask": 1}
