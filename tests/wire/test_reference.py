"""The scapy engine on a real wire, as its README describes it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.asking import ata, config
from tests.consoles import is_like
from tests.programs import AOE_TARGET, SIGNALLED
from tests.requirements import program
from tests.serving import NO_PROBE, client, finish, ready_line, serving, start
from tests.tools import call

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

CHECKOUT = Path(__file__).parents[2]
README = (CHECKOUT / "target/reference/README.md").read_text()
EXAMPLE, STANDALONE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
STEPS = re.findall(r"^# (aoe.*)\n((?:[^#`].*\n)+)", README, re.MULTILINE)
SCAPY = ("--engine", "scapy")


def on_wire(text: str, wire: Wire) -> str:
    return text.replace("eth0", wire.interface)


def test_the_example_changes_the_protocol_in_ten_lines(
    wire: Wire, tmp_path: Path
) -> None:
    assert len([line for line in EXAMPLE.splitlines() if line]) <= 10
    (tmp_path / "wrong_checksum.py").write_text(EXAMPLE)
    (serve, ready), *steps = [
        (on_wire(command, wire).split(), on_wire(printed, wire))
        for command, printed in STEPS
    ]
    process = start(wire.target, *serve[1:], NO_PROBE, cwd=tmp_path)
    assert is_like(ready_line(process), ready)
    assert [words[1] for words, _ in steps] == ["identify", "check"]
    for words, printed in steps:
        assert is_like(call(wire.initiator, *words[1:]).stdout, printed)
    assert finish(process, 15) == ""


def test_the_program_without_the_server_answers(wire: Wire) -> None:
    script = on_wire(STANDALONE, wire)
    process = wire.target.popen(
        [*SIGNALLED, sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
    )
    done = call(wire.initiator, "identify", "e0.0", "-i", wire.interface, "-t", "20")
    assert "pyaoe" in done.stdout
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=30)[0]
    assert "IDENTIFY tag" in printed
    assert " ==> " in printed


def test_a_file_system_is_copied_to_it_and_back(
    make_wire: Callable[[int], Wire], tmp_path: Path
) -> None:
    wire = make_wire(9000)
    image, disk, back = (tmp_path / name for name in ("fs.img", "disk.img", "back"))
    with image.open("wb") as file:
        file.truncate(8 << 20)
    mkfs, fsck = map(program, ("mkfs.ext4", "fsck.ext4"))
    tree = str(CHECKOUT / "aoe")
    subprocess.run([mkfs, "-q", "-F", "-d", tree, str(image)], check=True)
    disk.write_bytes(bytes(8 << 20))
    with serving(wire, disk, NO_PROBE, "--no-state", *SCAPY):
        interface = ("-i", wire.interface)
        copied = call(wire.initiator, "copy", image, "e7.3", *interface, "--verify")
        assert copied.stdout.rstrip().endswith("verified")
        assert call(wire.initiator, "copy", "e7.3", back, *interface).returncode == 0
    assert back.read_bytes() == disk.read_bytes() == image.read_bytes()
    subprocess.run([fsck, "-fn", str(disk)], check=True, capture_output=True)


def test_a_reload_changes_the_engine(wire: Wire, tmp_path: Path) -> None:
    image, settings = tmp_path / "disk.img", tmp_path / "aoe.toml"
    image.write_bytes(bytes(4096))
    (tmp_path / "tag.py").write_text(
        "from aoe.layers import AoE\n"
        "from target import AoETarget\n"
        "class WrongTag(AoETarget):\n"
        "    def make_reply(self, req):\n"
        "        response = super().make_reply(req)\n"
        "        response[AoE].tag ^= 1\n"
        "        return response\n"
    )

    def configure(engine: str) -> None:
        settings.write_text(
            f'[[export]]\naddress = "e7.3"\npath = "disk.img"\nforce = true\n'
            f'interfaces = "{wire.interface}"\nengine = "{engine}"\n'
        )

    configure("scapy")
    process = start(wire.target, "serve", "--config", settings, NO_PROBE)
    assert "[engine scapy]" in ready_line(process)
    with client(wire) as asking:
        assert asking.ask(config(0))[20:24] == config(0)[20:24]
        assert asking.ask(ata(0xEC))[14] == 0x18
        configure("tag.py")
        command = [*AOE_TARGET, "reload"]
        wire.target.run(command, check=True, capture_output=True)
        assert asking.ask(ata(0xEC))[23] == ata(0xEC)[23] ^ 1
    command = [*AOE_TARGET, "status", "--json"]
    status = json.loads(wire.target.run(command, capture_output=True).stdout)
    (export,) = status["targets"][0]["exports"]
    assert export["engine"] == str(tmp_path / "tag.py")
    assert finish(process, 15).count("\n") == 1


@pytest.mark.parametrize(
    ("engine", "error"),
    [
        ("cobol", "--engine cobol: no such engine. Use struct, scapy, or a Python"),
        ("none.py", "none.py: no such file. Name a Python file"),
    ],
)
def test_an_unknown_engine_is_an_error(wire: Wire, engine: str, error: str) -> None:
    words = ("e7.3", wire.interface, "disk.img", "--create", "1M", "--engine", engine)
    process = start(wire.target, "serve", *words)
    assert finish(process).startswith(f"aoe-target: {error}")
    assert process.returncode in (2, 3)
