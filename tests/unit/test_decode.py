from __future__ import annotations

import gzip
import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from aoe.capture.annotated import CaptureWriter, Direction
from tests.asking import CLIENT, TARGET, ask, ata, config, make_target
from tests.programs import AOE

if TYPE_CHECKING:
    from pathlib import Path

QUERY = config(0).ljust(60, b"\0")
READ = ata(0x24, lba=8, count=2)


def decode(
    *arguments: str, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    command = [*AOE, "decode", *arguments]
    return subprocess.run(command, check=False, capture_output=True, input=stdin)


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = tmp_path / "some.pcapng"
    with CaptureWriter(path) as writer:
        writer.write(QUERY, 1000.0, direction=Direction.OUT, comment="hello")
        writer.write(b"\1" * 60, 1000.1)
        response = ask(make_target(), READ)
        writer.write(response, 1000.25, direction=Direction.IN)
    return path


LINES = [
    (
        b"     1     0.000000 out 52:54:00:c1:1e:47 > 52:54:00:7a:26:e7  "
        b"query config e7.3 tag 0x11223344"
    ),
    (
        b"     3     0.250000 in  52:54:00:7a:26:e7 > 52:54:00:c1:1e:47  "
        b"response ok e7.3 lba 8 x0, 1024 bytes tag 0x11223344"
    ),
]


def test_each_frame_of_a_capture_is_described(capture: Path) -> None:
    done = decode(str(capture))
    assert done.stdout.splitlines() == LINES
    assert done.stderr == b"aoe: not AoE: 1 frame\n"
    assert done.returncode == 0


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_capture_is_read_from_a_pipe(capture: Path, compress: type[bytes]) -> None:
    done = decode("-", stdin=compress(capture.read_bytes()))
    assert done.stdout.splitlines() == LINES


def test_hexadecimal_frames_are_decoded(capture: Path) -> None:
    del capture
    for text in (READ.hex(), READ.hex(" "), READ.hex(":")):
        done = decode(text)
        assert done.stdout.endswith(b"READ EXT e7.3 lba 8 x2 tag 0x11223344\n")
    lines = f"{QUERY.hex()}\n\n{READ.hex(' ')}\n".encode()
    assert len(decode("-", stdin=lines).stdout.splitlines()) == 2


def test_json_has_the_same_content(capture: Path) -> None:
    document = json.loads(decode(str(capture), "--json").stdout)
    assert (document["schema_version"], document["command"]) == (1, "decode")
    assert document["others"] == 1
    assert document["frames"][0] == {
        "number": 1,
        "time": 1000.0,
        "direction": "out",
        "source": CLIENT.hex(":"),
        "destination": TARGET.hex(":"),
        "bytes": 60,
        "text": "query config e7.3 tag 0x11223344",
        "comment": "hello",
    }


def test_verbose_shows_all_fields() -> None:
    done = decode(READ.hex(), "--verbose")
    assert b"ATA over Ethernet" in done.stdout
    assert b"tag       = 0x11223344" in done.stdout


@pytest.mark.parametrize(
    ("word", "code", "message"),
    [
        ("none.pcap", 3, b"none.pcap: no such file, and not hexadecimal"),
        ("00" * 60, 1, b"not AoE: EtherType is 0x0000"),
        ("ab", 1, b"not AoE: needs 24 bytes"),
        ("abc", 3, b"not hexadecimal"),
    ],
)
def test_an_invalid_frame_is_an_error_of_one_line(
    word: str, code: int, message: bytes
) -> None:
    done = decode(word)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_an_invalid_capture_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("hello, world")
    for done in (decode(str(path)), decode("-", stdin=b"\xd4\xc3")):
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
        assert b"not a capture file" in done.stderr
    done = decode("-", stdin=b"abcd\nhello\n")
    assert done.returncode != 0
