from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from aoe.errors import UsageError
from target.cli.main import cli
from target.netboot import FILES
from tests.programs import AOE_TARGET
from tests.requirements import SBIN, program

if TYPE_CHECKING:
    from pathlib import Path

CLIENT = ("--client", "52:54:00:AE:00:02")
SERVER = ("--server-ip", "192.0.2.1")
ROOT = ("--root", "UUID=8b4e")
choices = pytest.mark.parametrize(
    "words", [(), CLIENT, SERVER, (*CLIENT, *SERVER, *ROOT)], ids=len
)
PATH = f"{os.environ['PATH']}:{SBIN}"


def netboot(*words: str) -> str:
    done = CliRunner().invoke(cli, ["netboot", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def settings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def run(name: str, *words: object) -> None:
    """Run a program that checks a file, and show its output if it fails."""
    command = [program(name), *map(str, words)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        # Without the rest of the environment, such as SHELLCHECK_OPTS.
        env={"PATH": PATH},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@choices
@pytest.mark.parametrize("form", FILES)
def test_all_placeholders_are_replaced(form: str, words: tuple[str, ...]) -> None:
    text = netboot("e7.3", "-f", form, *words)
    assert "@" not in text.replace('"$@"', "")
    assert "e7.3" in text or form == "cmdline"
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


@pytest.mark.parametrize("form", FILES)
def test_one_format_prints_the_same_file_as_all(form: str) -> None:
    assert netboot("e7.3", "-f", form) in netboot("e7.3", *ROOT) + netboot("e7.3")


def test_all_shows_the_command_for_each_file() -> None:
    text = netboot("aoe:e7.3")
    for form in FILES:
        assert f"aoe-target netboot e7.3 -f {form} " in text


@choices
def test_dnsmasq_accepts_its_file(tmp_path: Path, words: tuple[str, ...]) -> None:
    conf = tmp_path / "aoe.conf"
    conf.write_text(netboot("e7.3", "-f", "dnsmasq", *words))
    run("dnsmasq", "--test", f"--conf-file={conf}")


@choices
def test_dhcpd_accepts_its_file(tmp_path: Path, words: tuple[str, ...]) -> None:
    conf, leases = tmp_path / "dhcpd.conf", tmp_path / "leases"
    leases.touch()
    conf.write_text(netboot("e7.3", "-f", "dhcpd", *words))
    run("dhcpd", "-t", "-cf", conf, "-lf", leases)


def test_servers_accept_the_files_of_two_clients(tmp_path: Path) -> None:
    for form, suffix in (("dnsmasq", "dns"), ("dhcpd", "dhcp")):
        for slot in "23":
            mac = f"52:54:00:ae:00:0{slot}"
            text = netboot(f"e7.{slot}", "-f", form, "--client", mac)
            (tmp_path / f"{slot}.{suffix}").write_text(text)
    (tmp_path / "dnsmasq.conf").write_text(f"conf-dir={tmp_path},*.dns\n")
    run("dnsmasq", "--test", f"--conf-file={tmp_path}/dnsmasq.conf")
    both = "".join(path.read_text() for path in sorted(tmp_path.glob("*.dhcp")))
    (tmp_path / "dhcpd.conf").write_text(both)
    (tmp_path / "leases").touch()
    words = ("-cf", tmp_path / "dhcpd.conf", "-lf", tmp_path / "leases")
    run("dhcpd", "-t", *words)


def test_dnsmasq_offers_ipxe_to_firmware_and_the_disk_to_ipxe() -> None:
    assert settings(netboot("e7.3", "-f", "dnsmasq", *CLIENT, *SERVER)) == [
        "dhcp-mac=set:aoe-e7.3,52:54:00:ae:00:02",
        "dhcp-match=set:ipxe,175",
        "dhcp-match=set:efi,option:client-arch,7",
        "dhcp-match=set:efi,option:client-arch,9",
        "dhcp-boot=tag:aoe-e7.3,tag:!ipxe,tag:!efi,undionly.kpxe,,192.0.2.1",
        "dhcp-boot=tag:aoe-e7.3,tag:!ipxe,tag:efi,ipxe.efi,,192.0.2.1",
        'dhcp-option=tag:aoe-e7.3,tag:ipxe,option:root-path,"aoe:e7.3"',
    ]


def test_one_disk_for_all_clients_comes_with_a_warning() -> None:
    for form in ("dnsmasq", "dhcpd"):
        assert "corrupt it" in netboot("e7.3", "-f", form)
        assert "corrupt it" not in netboot("e7.3", "-f", form, *CLIENT)


def test_the_ipxe_script_jumps_only_to_existing_labels() -> None:
    text = netboot("e7.3", "-f", "ipxe", *SERVER)
    assert text.startswith("#!ipxe\n")
    lines = settings(text)
    assert "sanboot --drive 0x80 aoe:e7.3 || goto failed" in lines
    assert "sanhook --drive 0x80 aoe:e7.3 || goto failed" in lines
    assert (
        "initrd --name initrd.img tftp://192.0.2.1/initrd.img || goto failed" in lines
    )
    labels = {line[1:] for line in lines if line.startswith(":")}
    targets = {line.split("goto ")[1] for line in lines if "goto " in line}
    assert targets - {"${how}"} == {"failed"}
    assert labels == {"disk", "kernel", "install", "failed"}
    assert "set how disk" in lines


def test_the_kernel_command_line_names_the_root_device() -> None:
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
                "usr/lib/dracut/modules.d/95aoe/aoe-discover.sh",
            },
        ),
    ],
)
def test_a_script_installs_executable_scripts_that_pass_shellcheck(
    tmp_path: Path, form: str, written: set[str]
) -> None:
    script = tmp_path / "install.sh"
    script.write_text(netboot("e7.3", "-f", form))
    root = tmp_path / "root"
    env = {"PATH": PATH, "DESTDIR": str(root)}
    subprocess.run(["sh", script], env=env, check=True, timeout=30)
    files = {str(each.relative_to(root)) for each in root.rglob("*") if each.is_file()}
    assert files == written
    for each in files:
        assert os.access(root / each, os.X_OK)
        run("sh", "-n", root / each)
    run("shellcheck", script, *(root / each for each in files))


@pytest.fixture
def initramfs(tmp_path: Path) -> Path:
    """Install the script that waits for the disk, with a sleep that returns at once.

    The disk appears after the third sleep.
    """
    text = netboot("e7.3", "-f", "initramfs-tools")
    _, _, rest = text.partition("scripts/local-top/aoe\" <<'END'\n")
    script, _, _ = rest.partition("END\n")
    for path in ("/dev/etherd", "/sys/class/net", "/scripts/functions"):
        script = script.replace(path, path[1:].replace("scripts", "./scripts"))
    # Regular files stand in for device nodes, which take root to create.
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
    sleep = "echo slept; echo . >>n\n"
    sleep += "[ $(wc -l <n) != 3 ] || >dev/etherd/${APPEARS:-e7.3}\n"
    for name, body in (
        ("ip", 'echo ip "$@"'),
        ("modprobe", 'echo modprobe "$@"; >dev/etherd/discover'),
        ("sleep", sleep),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "aoe").write_text(script)
    return tmp_path


def wait(initramfs: Path, **environment: str) -> list[str]:
    done = subprocess.run(
        ["sh", "aoe"],
        cwd=initramfs,
        env={"PATH": f"{initramfs}/bin:{PATH}", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_an_initramfs_waits_until_the_disk_appears(initramfs: Path) -> None:
    output = wait(initramfs)
    assert output[:2] == ["ip link set eth0 up", "modprobe aoe"]
    assert output.count("slept") == 3
    assert output[-1] == "end"


def test_an_initramfs_waits_for_the_disk_that_root_names(initramfs: Path) -> None:
    output = wait(initramfs, ROOT="dev/etherd/e10.11p2", APPEARS="e10.11")
    assert "begin Waiting for the AoE disk e10.11" in output
    assert output[-1] == "end"


def test_an_initramfs_logs_a_failure_after_the_timeout(initramfs: Path) -> None:
    output = wait(initramfs, ROOTDELAY="2")
    assert output.count("slept") == 2
    assert output[-1].startswith(
        "failure e7.3 does not answer. Check that it is served"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("e7",), "e7: not an AoE address"),
        (("e7.3", "--client", "x"), "x: not a MAC address"),
        (("e7.3", "--server-ip", "server"), "server: not an IPv4 address"),
        (
            ("e7.3", "--root", "/dev/x y"),
            "--root /dev/x y: not valid on a kernel command",
        ),
        (("e7.3", "--root", "$(reboot)"), "Write it as /dev/etherd/e7.3p1 or UUID="),
        (("e7.3", "--format", "grub"), "'grub' is not one of 'all', 'ipxe'"),
    ],
)
def test_wrong_usage_is_an_error_with_code_2(
    words: tuple[str, ...], message: str
) -> None:
    done = CliRunner().invoke(cli, ["netboot", *words])
    error = done.exception
    text = str(error) if isinstance(error, UsageError) else done.output
    assert message in text
    assert getattr(error, "exit_code", getattr(error, "code", None)) == 2


def test_help_begins_with_examples() -> None:
    command = [*AOE_TARGET, "netboot", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "aoe-target netboot e0.0 | less" in done.stdout
