"""``aoe config``, ``mask`` and ``reserve`` with aoe-target and Debian's vblade."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.requirements import program
from tests.serving import finish, ready_line, start
from tests.tools import aoe, aoe_json, call

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

OURS = "52:54:00:ae:00:02"
OTHER, THIRD = "52:54:00:00:00:07", "52:54:00:00:00:08"


# --- config string --------------------------------------------------------------------


CLAIMS = [
    ("read", None),
    ("test", ""),
    ("set", "owner"),
    ("set", "owner"),
    ("read", None),
    ("test", "owner"),
    ("test", "own"),
    ("prefix", "own"),
    ("prefix", ""),
    ("prefix", "x"),
    ("fset", "another one"),
    ("read", None),
    ("fset", ""),
    ("read", None),
]


def test_config_prints_the_same_as_aoecfg(served: Wire) -> None:
    aoecfg = program("aoecfg")

    def theirs(verb: str, string: str | None) -> str:
        words = [] if string is None else ["-s", string]
        where = ["7", "3", served.interface]
        done = served.initiator.run(
            [aoecfg, "-t", "1", "-c", verb, *words, *where],
            capture_output=True,
            text=True,
            timeout=20,
        )
        return str(done.stdout)

    def ours(verb: str, string: str | None) -> str:
        words = [] if string is None else [string]
        about = ("-i", served.interface)
        return call(served.initiator, "config", verb, "e7.3", *words, *about).stdout

    assert [theirs(*each) for each in CLAIMS] == [ours(*each) for each in CLAIMS]
    # Each reads the string that the other has set.
    assert theirs("set", "theirs") == "theirs\n" == ours("read", None)
    assert ours("fset", "ours") == "ours\n" == theirs("read", None)


@pytest.mark.parametrize("server", ["served", "vblade"])
def test_p54_set_fails_with_the_string_of_a_claimed_target(
    server: str, request: pytest.FixtureRequest
) -> None:
    wire: Wire = request.getfixturevalue(server)
    assert aoe(wire, "config", "set", "e7.3", "the owner") == (0, "the owner\n")
    code, text = aoe(wire, "config", "set", "e7.3", "another owner")
    assert code == 5
    assert text.startswith('aoe: e7.3: claimed, its config string is "the owner". ')
    assert aoe(wire, "config", "fset", "e7.3", "") == (0, "\n")


@pytest.mark.parametrize(
    ("server", "verb"), [("served", "test"), ("served", "prefix"), ("vblade", "test")]
)
def test_p52_no_match_and_no_target_have_different_exit_codes(
    server: str, verb: str, request: pytest.FixtureRequest
) -> None:
    wire: Wire = request.getfixturevalue(server)
    aoe(wire, "config", "fset", "e7.3", "here")
    assert aoe(wire, "config", verb, "e7.3", "here") == (0, "here\n")
    code, text = aoe(wire, "config", verb, "e7.3", "there")
    assert code == 1
    assert text.startswith('aoe: e7.3: config string is "here", ')
    code, text = aoe(wire, "config", verb, "e9.9", "here", "-t", "0.3")
    assert code == 3
    assert text.startswith("aoe: e9.9: no response on aoe0 within 0.3 s. ")


def test_p58_a_config_string_may_have_any_bytes(served: Wire, tmp_path: Path) -> None:
    odd = bytes(range(256)) * 4
    (tmp_path / "string").write_bytes(odd)
    code, _ = aoe(served, "config", "set", "e7.3", "--file", tmp_path / "string")
    assert code == 0
    command = ("config", "read", "e7.3", "-i", "aoe0")
    raw: Any = call(served.initiator, *command, "--raw", text=False)
    assert raw.stdout == odd
    (found,) = aoe_json(served, "config", "read", "all", "-t", "0.5")["targets"]
    assert found["config_string_hex"] == odd.hex()
    assert aoe(served, "config", "test", "e7.3", "--hex", odd.hex())[0] == 0
    # Control characters are escaped for the terminal.
    shown = aoe(served, "config", "fset", "e7.3", "--hex", "1b5b324a")
    assert shown == (0, "\\x1b[2J\n")


def test_all_targets_are_listed_with_their_addresses(
    served: Wire, tmp_path: Path
) -> None:
    words = ("e7.4", "aoe0", tmp_path / "other", "--create", "1M", "--force")
    other = start(served.target, "serve", *words)
    ready_line(other)
    aoe(served, "config", "set", "e7.4", "mine")
    read = aoe(served, "config", "read", "all", "-t", "0.5")
    assert read == (0, "e7.3\t\ne7.4\tmine\n")
    assert aoe(served, "config", "prefix", "all", "mi", "-t", "0.5") == (
        0,
        "e7.4\tmine\n",
    )
    assert aoe(served, "config", "test", "all", "his", "-t", "0.5")[0] == 1
    finish(other, 15)


# --- mask list and reservation --------------------------------------------------------


@pytest.mark.parametrize("server", ["served", "vblade"])
def test_p70_masking_out_this_host_is_refused(
    server: str, request: pytest.FixtureRequest
) -> None:
    wire: Wire = request.getfixturevalue(server)
    assert aoe(wire, "mask", "read", "e7.3") == (0, "e7.3       all clients\n")
    code, text = aoe(wire, "mask", "add", "e7.3", OTHER)
    assert code == 2
    assert text == (
        "aoe: e7.3: would ignore this host on aoe0. "
        f"Keep {OURS} on its list, or use --force\n"
    )
    assert aoe(wire, "mask", "add", "e7.3", OTHER, OURS)[0] == 0
    listed = aoe_json(wire, "mask", "read", "e7.3")
    assert sorted(listed["macs"]) == sorted([OTHER, OURS])
    assert listed["own_macs"] == [OURS]


def test_p63_addresses_are_added_and_deleted(served: Wire) -> None:
    many = [f"02:00:00:00:00:{number:02x}" for number in range(150)]
    added = aoe_json(served, "mask", "add", "e7.3", *many, OURS)
    assert set(added["macs"]) == {*many, OURS}
    left = aoe_json(served, "mask", "del", "e7.3", *many)
    assert left["macs"] == [OURS]
    assert aoe(served, "mask", "del", "e7.3", OURS) == (0, "e7.3       all clients\n")


def test_p61_masking_out_this_host_is_allowed_with_force(served: Wire) -> None:
    assert aoe(served, "mask", "add", "e7.3", OTHER, "--force")[0] == 0
    assert aoe(served, "mask", "read", "e7.3", "-t", "0.3")[0] == 3


def test_p64_a_full_mask_list_is_an_error(served: Wire) -> None:
    many = [f"02:00:00:00:01:{number:02x}" for number in range(256)]
    code, text = aoe(served, "mask", "add", "e7.3", OURS, *many)
    assert code == 1
    # As many as fit into a response of 1514 bytes.
    held = len(aoe_json(served, "mask", "read", "e7.3")["macs"])
    assert held == (1514 - 28) // 8
    assert f"its mask list is full at {many[held - 1]}; the addresses before it" in text


def test_mask_del_is_refused_for_vblade_25_which_it_would_crash(vblade: Wire) -> None:
    aoe(vblade, "mask", "add", "e7.3", OURS, OTHER)
    code, text = aoe(vblade, "mask", "del", "e7.3", OTHER)
    assert code == 2
    assert "seems to be vblade 25" in text
    assert aoe(vblade, "mask", "read", "e7.3")[0] == 0


@pytest.mark.parametrize("server", ["served", "vblade"])
def test_p72_a_target_is_reserved_and_released(
    server: str, request: pytest.FixtureRequest
) -> None:
    wire: Wire = request.getfixturevalue(server)
    ours = (0, f"e7.3       {OURS}  aoe0\n")
    not_reserved = (0, "e7.3       not reserved\n")
    assert aoe(wire, "reserve", "read", "e7.3") == not_reserved
    assert aoe(wire, "reserve", "set", "e7.3") == ours
    both = aoe_json(wire, "reserve", "set", "e7.3", OTHER, THIRD)
    assert both["macs"] == [OTHER, THIRD]
    for words in (("set", "e7.3"), ("release", "e7.3")):
        code, text = aoe(wire, "reserve", *words)
        assert code == 5
        assert text.startswith(f"aoe: e7.3: reserved for {OTHER}, {THIRD}. ")
    assert aoe(wire, "reserve", "force", "e7.3") == ours
    assert aoe(wire, "reserve", "release", "e7.3") == not_reserved
    aoe(wire, "reserve", "force", "e7.3", OTHER)
    assert aoe(wire, "reserve", "release", "e7.3", "--force") == not_reserved
