from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from aoe.errors import UsageError
from target.cli.main import cli
from target.netboot import FILES

if TYPE_CHECKING:
    from pathlib import Path

CLIENT = ("--client", "52:54:00:AE:00:02")
SERVER = ("--server-ip", "192.0.2.1")
ROOT = ("--root", "UUID=8b4e")
choices = pytest.mark.parametrize(
    "words", [(), CLIENT, SERVER, (*CLIENT, *SERVER, *ROOT)], ids=len
)
# What administrators run is not on everybody's PATH.
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def netboot(*words: str) -> str:
    done = CliRunner().invoke(cli, ["netboot", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def settings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def run(package: str, program: str, *words: object) -> None:
    """Run a program that judges a file, and show what it says if it finds fault."""
    if not (path := shutil.which(program, path=PATH)):
        pytest.skip(f"apt install {package}")
    command = [path, *map(str, words)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        # Whatever the place has set for a shell that is being installed from.
        env={"PATH": PATH},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@choices
@pytest.mark.parametrize("form", FILES)
def test_nothing_is_left_to_fill_in(form: str, words: tuple[str, ...]) -> None:
    text = netboot("e7.3", "-f", form, *words)
    assert "@" not in text.replace('"$@"', "")
    assert "e7.3" in text or form == "cmdline"
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


@pytest.mark.parametrize("form", FILES)
def test_a_file_that_is_redirected_is_what_is_shown(form: str) -> None:
    assert netboot("e7.3", "-f", form) in netboot("e7.3", *ROOT) + netboot("e7.3")


def test_all_names_the_command_for_each_file() -> None:
    text = netboot("aoe:e7.3")
    for form in FILES:
        assert f"aoe-target netboot e7.3 -f {form} " in text


@choices
def test_dnsmasq_takes_its_file(tmp_path: Path, words: tuple[str, ...]) -> None:
    conf = tmp_path / "aoe.conf"
    conf.write_text(netboot("e7.3", "-f", "dnsmasq", *words))
    run("dnsmasq-base", "dnsmasq", "--test", f"--conf-file={conf}")


@choices
def test_dhcpd_takes_its_file(tmp_path: Path, words: tuple[str, ...]) -> None:
    conf, leases = tmp_path / "dhcpd.conf", tmp_path / "leases"
    leases.touch()
    conf.write_text(netboot("e7.3", "-f", "dhcpd", *words))
    run("isc-dhcp-server", "dhcpd", "-t", "-cf", conf, "-lf", leases)


def test_a_server_takes_the_files_for_two_clients(tmp_path: Path) -> None:
    for form, suffix in (("dnsmasq", "dns"), ("dhcpd", "dhcp")):
        for slot in "23":
            mac = f"52:54:00:ae:00:0{slot}"
            text = netboot(f"e7.{slot}", "-f", form, "--client", mac)
            (tmp_path / f"{slot}.{suffix}").write_text(text)
    (tmp_path / "dnsmasq.conf").write_text(f"conf-dir={tmp_path},*.dns\n")
    run("dnsmasq-base", "dnsmasq", "--test", f"--conf-file={tmp_path}/dnsmasq.conf")
    both = "".join(path.read_text() for path in sorted(tmp_path.glob("*.dhcp")))
    (tmp_path / "dhcpd.conf").write_text(both)
    (tmp_path / "leases").touch()
    words = ("-cf", tmp_path / "dhcpd.conf", "-lf", tmp_path / "leases")
    run("isc-dhcp-server", "dhcpd", "-t", *words)


def test_dnsmasq_gives_the_disk_to_ipxe_and_ipxe_to_firmware() -> None:
    assert settings(netboot("e7.3", "-f", "dnsmasq", *CLIENT, *SERVER)) == [
        "dhcp-mac=set:aoe-e7.3,52:54:00:ae:00:02",
        "dhcp-match=set:ipxe,175",
        "dhcp-match=set:efi,option:client-arch,7",
        "dhcp-match=set:efi,option:client-arch,9",
        "dhcp-boot=tag:aoe-e7.3,tag:!ipxe,tag:!efi,undionly.kpxe,,192.0.2.1",
        "dhcp-boot=tag:aoe-e7.3,tag:!ipxe,tag:efi,ipxe.efi,,192.0.2.1",
        'dhcp-option=tag:aoe-e7.3,tag:ipxe,option:root-path,"aoe:e7.3"',
    ]


def test_one_disk_for_everybody_comes_with_a_warning() -> None:
    for form in ("dnsmasq", "dhcpd"):
        assert "ruin it" in netboot("e7.3", "-f", form)
        assert "ruin it" not in netboot("e7.3", "-f", form, *CLIENT)


def test_ipxe_gets_a_script_that_knows_where_it_goes() -> None:
    text = netboot("e7.3", "-f", "ipxe", *SERVER)
    assert text.startswith("#!ipxe\n")
    lines = settings(text)
    assert "sanboot --drive 0x80 aoe:e7.3 || goto failed" in lines
    assert "sanhook --drive 0x80 aoe:e7.3 || goto failed" in lines
    assert (
        "initrd --name initrd.img tftp://192.0.2.1/initrd.img || goto failed" in lines
    )
    labels = {line[1:] for line in lines if line.startswith(":")}
    gone = {line.split("goto ")[1] for line in lines if "goto " in line}
    assert gone - {"${how}"} == {"failed"}
    assert labels == {"disk", "kernel", "install", "failed"}
    assert "set how disk" in lines


def test_the_kernel_is_told_where_its_root_is() -> None:
    text = netboot("e7.3", "-f", "cmdline")
    assert text == "root=/dev/etherd/e7.3p1 rootwait ro aoe.aoe_deadsecs=0\n"
    assert (
        netboot("e7.3", "-f", "cmdline", *ROOT)
        == "root=UUID=8b4e rootwait ro aoe.aoe_deadsecs=0\n"
    )


@pytest.mark.parametrize(
    ("form", "written"),
    [
        (
            "initramfs-tools",
            {
                "etc/initramfs-tools/hooks/aoe",
                "etc/initramfs-tools/scripts/local-top/aoe",
            },
        ),
        (
            "dracut",
            {
                "usr/lib/dracut/modules.d/95aoe/module-setup.sh",
                "usr/lib/dracut/modules.d/95aoe/aoe-look.sh",
            },
        ),
    ],
)
def test_a_script_installs_scripts_without_a_fault(
    tmp_path: Path, form: str, written: set[str]
) -> None:
    script = tmp_path / "install.sh"
    script.write_text(netboot("e7.3", "-f", form))
    place = tmp_path / "root"
    env = {"PATH": PATH, "DESTDIR": str(place)}
    subprocess.run(["sh", script], env=env, check=True, timeout=30)
    files = {
        str(each.relative_to(place)) for each in place.rglob("*") if each.is_file()
    }
    assert files == written
    for each in files:
        assert os.access(place / each, os.X_OK)
        run("dash", "sh", "-n", place / each)
    run("shellcheck", "shellcheck", script, *(place / each for each in files))


@pytest.fixture
def initramfs(tmp_path: Path) -> Path:
    """Return the script that waits, in a world in which it takes no time.

    The disk is there when somebody has asked for it for the third time.
    """
    text = netboot("e7.3", "-f", "initramfs-tools")
    _, _, rest = text.partition("scripts/local-top/aoe\" <<'END'\n")
    script, _, _ = rest.partition("END\n")
    for path in ("/dev/etherd", "/sys/class/net", "/scripts/functions"):
        script = script.replace(path, f"{tmp_path}{path}")
    # A test may make no device; a file does as well.
    script = script.replace("[ -b ", "[ -e ").replace("[ ! -c ", "[ ! -e ")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/functions").write_text(
        'log_begin_msg() { echo "begin $*"; }\nlog_end_msg() { echo end; }\n'
        'log_failure_msg() { echo "failure $*"; }\n'
    )
    for name, kind in (("eth0", 1), ("lo", 772)):
        (tmp_path / "sys/class/net" / name).mkdir(parents=True)
        (tmp_path / "sys/class/net" / name / "type").write_text(f"{kind}\n")
    (tmp_path / "dev/etherd").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    etherd = tmp_path / "dev/etherd"
    sleep = f"echo slept; echo . >>{tmp_path}/n\n"
    sleep += f"[ $(wc -l <{tmp_path}/n) != 3 ] || >{etherd}/${{APPEARS:-e7.3}}\n"
    for name, body in (
        ("ip", 'echo ip "$@"'),
        ("modprobe", f'echo modprobe "$@"; >{etherd}/discover'),
        ("sleep", sleep),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "aoe").write_text(script)
    return tmp_path


def wait(initramfs: Path, **environment: str) -> list[str]:
    done = subprocess.run(
        ["sh", initramfs / "aoe"],
        env={"PATH": f"{initramfs}/bin:{PATH}", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_an_initramfs_waits_until_the_disk_is_there(initramfs: Path) -> None:
    said = wait(initramfs)
    assert said[:2] == ["ip link set eth0 up", "modprobe aoe"]
    assert said.count("slept") == 3
    assert said[-1] == "end"


def test_an_initramfs_waits_for_the_disk_that_root_names(initramfs: Path) -> None:
    root = f"{initramfs}/dev/etherd/e10.11p2"
    said = wait(initramfs, ROOT=root, APPEARS="e10.11")
    assert "begin Waiting for the AoE disk e10.11" in said
    assert said[-1] == "end"


def test_an_initramfs_gives_up_and_says_so(initramfs: Path) -> None:
    said = wait(initramfs, ROOTDELAY="2")
    assert said.count("slept") == 2
    assert said[-1].startswith("failure e7.3 does not answer: is it served")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("e7",), "e7: not an AoE address"),
        (("e7.3", "--client", "x"), "x: not a MAC address"),
        (("e7.3", "--server-ip", "server"), "server: not an IPv4 address"),
        (("e7.3", "--root", "/dev/x y"), "--root /dev/x y: cannot stand on a kernel's"),
        (("e7.3", "--root", "$(reboot)"), "Write it as /dev/etherd/e7.3p1 or UUID="),
        (("e7.3", "--format", "grub"), "'grub' is not one of 'all', 'ipxe'"),
    ],
)
def test_wrong_usage_is_told(words: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(cli, ["netboot", *words])
    problem = done.exception
    told = str(problem) if isinstance(problem, UsageError) else done.output
    assert message in told
    assert getattr(problem, "exit_code", getattr(problem, "code", None)) == 2


def test_help_begins_with_something_to_copy() -> None:
    command = [sys.executable, "-m", "target", "netboot", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "aoe-target netboot e0.0 | less" in done.stdout
