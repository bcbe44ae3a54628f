"""``aoe scapy`` with a real target: scripts, and the session at a terminal."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aoe.capture.annotated import read_capture
from aoe.net.interfaces import VethEnd, create_veth, set_down
from scripts.man_prose import read_prose
from tests.programs import AOE
from tests.requirements import program
from tests.terminals import Terminal
from tests.tools import call

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

HEADER = "AoE(shelf=7, slot=3)"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home directory without settings."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def terminal(served: Wire, home: Path) -> Iterator[Terminal]:
    """Open a session with e7.3 on the wire, and wait for its prompt."""
    with session(served, home) as opened:
        opened.until(">>> ")
        yield opened


def session(wire: Wire, home: Path, *words: str) -> Terminal:
    environment = {"HOME": str(home), "XDG_CONFIG_HOME": f"{home}/.config"}
    return Terminal(
        wire.initiator,
        *("scapy", *(words or ("-i", wire.interface))),
        environment=environment,
    )


def scapy(wire: Wire, *words: object, **options: object) -> tuple[int, str, str]:
    """Run ``aoe scapy``; return exit code, standard output and standard error."""
    done = call(wire.initiator, "scapy", *words, **options)
    return done.returncode, done.stdout, done.stderr


# --- scripts --------------------------------------------------------------------------


def test_ask_returns_the_response_of_a_target(served: Wire, image: Path) -> None:
    code = f"""
identity = ask({HEADER} / AoEATA(cmd_status="IDENTIFY"), timeout=30)
read = ask({HEADER} / AoEATA(cmd_status="READ EXT", lba=3, count=2), timeout=30)
print(identity[AoEATA].data[20:40], read.src)
print(read[AoEATA].data.hex())
"""
    status, out, err = scapy(served, "-c", code)
    assert (status, err) == (0, "")
    first, data = out.splitlines()
    assert first.endswith("52:54:00:ae:00:01")
    assert bytes.fromhex(data) == image.read_bytes()[1536:2560]


def test_a_destination_can_be_given(served: Wire) -> None:
    other = f'ask(Ether(dst="02:00:00:00:00:01") / {HEADER} / AoEConfig(), timeout=1)'
    right = f'ask(Ether(dst="{served.target_mac.hex(":")}") / {HEADER} / AoEConfig())'
    out = scapy(served, "-t", "30", "-c", f"print({other}, {right}[AoE].slot)")[1]
    assert out == "None 3\n"


def test_sectors_are_written(served: Wire, image: Path) -> None:
    code = 'write_sectors("e7.3", 8, b"x" * 512); print(read_sectors("e7.3", 8)[:3])'
    assert scapy(served, "-t", "30", "-c", code) == (0, "b'xxx'\n", "")
    assert image.read_bytes()[4096:4608] == b"x" * 512


def test_discover_lists_the_targets(served: Wire) -> None:
    out = scapy(served, "-c", "discover(timeout=5)")[1]
    assert out == "e7.3       52:54:00:ae:00:01  aoe0\n"


def test_functions_of_scapy_use_the_interface_and_our_layers(served: Wire) -> None:
    code = (
        f"frame = Ether(dst='ff:ff:ff:ff:ff:ff') / {HEADER} / AoEConfig()\n"
        "print(conf.iface, srp1(frame, timeout=30, verbose=0)[AoEConfig].buffer_count)"
    )
    out = scapy(served, "-c", code)[1]
    assert re.fullmatch(r"aoe0 \d+\n", out)


def test_watch_prints_requests_and_responses(served: Wire) -> None:
    code = f"""
from threading import Timer
Timer(1, ask, [{HEADER} / AoEConfig()]).start()
print([packet[AoE].flags.response for packet in watch(2, timeout=60)])
"""
    request, response, flags = scapy(served, "-c", code)[1].splitlines()
    assert " 52:54:00:ae:00:02 > ff:ff:ff:ff:ff:ff query config e7.3" in request
    assert " 52:54:00:ae:00:01 > 52:54:00:ae:00:02 config e7.3" in response
    assert flags == "[False, True]"


def test_a_file_or_standard_input_is_executed(served: Wire, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nprint(sys.argv[1:], ask({HEADER} / AoEConfig()).src)\n"
        "if __file__ != '<stdin>':\n    import neighbour"
    )
    (tmp_path / "neighbour.py").write_text("")
    expected = "['-i', 'word'] 52:54:00:ae:00:01\n"
    common = ("-t", "30")
    assert scapy(served, *common, script, "-i", "word") == (0, expected, "")
    text = script.read_text()
    assert scapy(served, *common, "-", "-i", "word", input=text) == (0, expected, "")
    assert scapy(served, *common, input=text) == (
        0,
        expected.replace("'-i', 'word'", ""),
        "",
    )


def test_the_programs_of_the_man_page_run(served: Wire, home: Path) -> None:
    text = read_prose("aoe-scapy.1").text("EXAMPLES")
    blocks = re.findall(r"^(    (?!aoe ).*(?:\n    .*)*)", text, re.MULTILINE)
    assert len(blocks) == 2
    code = "\n".join(map(textwrap.dedent, blocks))
    status, _, err = scapy(
        served, "-t", "30", "-c", code, env={**os.environ, "HOME": str(home)}
    )
    assert (status, err) == (0, "")


def test_frames_of_the_session_are_captured(served: Wire, tmp_path: Path) -> None:
    pcap = tmp_path / "session.pcapng"
    code = f"for lba in (1, 2): ask({HEADER} / AoEATA(cmd_status='READ', lba=lba))"
    scapy(served, "-t", "30", "--pcap", pcap, "-c", code)
    found = [frame.comment.split()[0] for frame in read_capture(pcap)]
    assert found == ["READ", "response"] * 2


def test_errors_are_those_of_other_commands(wire: Wire, tmp_path: Path) -> None:
    status, _, err = scapy(wire, "-i", "eth9", "-c", "")
    assert (status, err.startswith("aoe: eth9: no such interface (have: ")) == (3, True)
    missing = tmp_path / "missing.py"
    status, _, err = scapy(wire, missing)
    assert (status, err) == (3, f"aoe: {missing}: no such file or directory\n")
    status, _, err = scapy(wire, "-c", "ask(IP())")
    assert (status, err.count("\n")) == (2, 1)
    assert "not an AoE frame" in err
    assert scapy(wire, "-c", "import sys; sys.exit(7)")[0] == 7
    with wire.initiator.enter():
        set_down("aoe0")
    status, _, err = scapy(wire, "-i", "aoe0", "-c", "")
    assert (status, err.startswith("aoe: aoe0: interface is down. ")) == (1, True)


def test_without_the_capability_there_is_no_session(wire: Wire) -> None:
    dropped = [
        program("setpriv"),
        "--bounding-set=-net_raw",
        "--inh-caps=-net_raw",
        "--",
    ]
    done = wire.initiator.run(
        [*dropped, *AOE, "scapy", "-c", "print(1)"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("aoe: aoe0: raw sockets need CAP_NET_RAW. ")


def test_all_interfaces_are_used_unless_one_is_chosen(served: Wire) -> None:
    pid = served.initiator.pid
    create_veth(VethEnd("eth5", netns=pid), VethEnd("eth6", netns=pid))
    code = "print(conf.iface); discover(timeout=3)"
    out = scapy(served, "-i", "eth5,aoe0", "-c", code)[1]
    assert out == "eth5\ne7.3       52:54:00:ae:00:01  aoe0\n"
    asked = f"print(ask({HEADER} / AoEConfig(), iface='aoe0', timeout=30)[AoE].slot)"
    assert scapy(served, "-i", "eth5", "-c", asked)[1] == "3\n"
    code = f"conf.iface = 'aoe0'; print(ask({HEADER} / AoEConfig())[AoE].slot)"
    env = {**os.environ, "AOE_INTERFACE": "eth5"}
    assert scapy(served, "-t", "30", "-c", code, env=env)[1] == "3\n"


def test_an_interface_that_was_removed_is_used_again(served: Wire) -> None:
    """Each call opens the interface, so that a session survives its removal."""
    pid = served.initiator.pid
    create_veth(VethEnd("eth5", netns=pid), VethEnd("eth6", netns=pid))
    code = """
import subprocess
query = AoE() / AoEConfig()
subprocess.run(["ip", "link", "del", "eth5"], check=True)
try:
    ask(query)
except Exception as error:
    print(error)
add = "ip link add eth5 type veth peer name eth6; ip link set eth5 up"
subprocess.run(add, shell=True, check=True)
print(ask(query, timeout=0.1))
"""
    status, out, _ = scapy(served, "-i", "eth5", "-c", code)
    gone, none = out.splitlines()
    assert gone.startswith("eth5: no such interface")
    assert (status, none) == (0, "None")


# --- at a terminal --------------------------------------------------------------------


def test_the_banner_has_interface_helpers_and_an_example(
    served: Wire, home: Path
) -> None:
    with session(served, home, "-t", "30") as terminal:
        banner = terminal.until(">>> ")
        assert "Interface aoe0 (52:54:00:ae:00:02, MTU 1500)\r\n" in banner
        (example,) = re.findall(r"^Example: (.*)\.show\(\)\r$", banner, re.MULTILINE)
        example = example.replace("shelf=0, slot=0", "shelf=7, slot=3")
        shown = terminal.run(f"{example}.show()")
        assert "###[ AoE ATA ]###" in shown
        assert "shelf     = 0x7" in shown
    assert list(home.rglob("*.py")) == []


def test_tab_completes_names_fields_and_values(terminal: Terminal) -> None:
    terminal.type("ask(AoE(shelf=7, slot=3) / AoEA\t")
    terminal.until("AoEATA(")
    terminal.type("cm\t")
    terminal.until("cmd_status=")
    terminal.type('"IDEN\t')
    terminal.until('"IDENTIFY"')
    terminal.type("), ti\t")
    terminal.until("timeout=")
    shown = terminal.run("30).summary()")
    assert "'Ether / AoE e7.3 ATA response lba 0 x1 tag 0x" in shown
    terminal.type("disc\t")
    terminal.until("discover(")


def test_ctrl_c_in_a_wait_returns_to_the_prompt(terminal: Terminal) -> None:
    terminal.type(
        "print('wai' + 'ting'); ask(AoE(slot=9) / AoEConfig(), timeout=600)\n"
    )
    terminal.until("waiting")
    terminal.type("\x03")
    assert "KeyboardInterrupt\r\n" in terminal.until(">>> ")
    terminal.type("print('wat' + 'ching'); len(watch())\n")
    terminal.until("watching")
    terminal.type("\x03")
    terminal.until(">>> ")
    assert "'Ether / AoE e7.3 config response" in terminal.run(
        "ask(AoE(shelf=7, slot=3) / AoEConfig(), timeout=30).summary()"
    )


def test_a_wrong_packet_does_not_end_the_session(terminal: Terminal) -> None:
    shown = terminal.run("ask(AoE() / AoEATA(data=bytes(9000)))")
    assert shown.endswith("exceeds the MTU of 1500. Send at most 1514 bytes\r\n")
    assert "Traceback" not in shown
    assert "ValueError" in terminal.run("ask(AoE(tag='x'))")
    assert "AttributeError" in terminal.run("ask(AoE(slot=9), timeout=0.1).show()")
    for _ in range(3):
        terminal.run("_ = ask(fuzz(AoE() / AoEATA()), timeout=0.01)")
    assert "###[ AoE query config ]###" in terminal.run(
        "ask(AoE(shelf=7, slot=3) / AoEConfig(), timeout=30).show()"
    )


def test_ctrl_d_and_exit_end_the_session(served: Wire, home: Path) -> None:
    for keys, code in (("\x04", 0), ("exit(3)\n", 3)):
        with session(served, home) as terminal:
            terminal.until(">>> ")
            terminal.type(keys)
            assert terminal.exit_code() == code


def test_a_read_only_home_directory_is_enough(served: Wire) -> None:
    # Even root cannot create files in /proc.
    with session(served, Path("/proc")) as terminal:
        shown = terminal.until(">>> ")
        assert "Traceback" not in shown
        assert "aoe0" in terminal.run("conf.iface")
        terminal.type("\x04")
        assert terminal.exit_code() == 0


def test_the_configuration_of_scapy_is_respected_except_for_the_interface(
    served: Wire, home: Path
) -> None:
    folder = home / ".config/scapy"
    folder.mkdir(parents=True)
    (folder / "prestart.py").write_text("conf.color_theme = BlackAndWhite()")
    (folder / "startup.py").write_text(
        "conf.iface, conf.verb = 'lo', 0\ndef mine():\n    return AoE(slot=5), 4711"
    )
    with session(served, home) as terminal:
        terminal.until(">>> ")
        assert "BlackAndWhite" in terminal.run("conf.color_theme")
        assert "('aoe0', 0)" in terminal.run("str(conf.iface), conf.verb")
        assert "4711)" in terminal.run("mine()")


def test_an_error_in_the_startup_file_is_shown(served: Wire, home: Path) -> None:
    folder = home / ".config/scapy"
    folder.mkdir(parents=True)
    (folder / "startup.py").write_text("1 / 0")
    with session(served, home) as terminal:
        shown = terminal.until(">>> ")
        assert f'File "{folder}/startup.py", line 1' in shown
        assert "ZeroDivisionError" in shown
        assert "<class" in terminal.run("AoE")
