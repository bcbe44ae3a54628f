"""``aoe config``: the string that clients claim a target with."""

from __future__ import annotations

import sys
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from aoe.address import BROADCAST, Address, format_mac
from aoe.common.commandline import Parsed, json_option, print_json
from aoe.config import STRING_LIMIT, Config, ConfigCommand
from aoe.errors import AoEError, UsageError, from_os_error
from initiator.cli.common import Connection, VerbGroup, connects
from initiator.cli.complete import complete_address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aoe.net.link import Link
    from initiator.client.discover import QueryResponse

    Command = Callable[..., None]

_TRIES: Final = 3


def _parse_whom(text: str) -> Address:
    return BROADCAST if text == "all" else Address.parse(text)


def _parse_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text.replace(":", " "))
    except ValueError as error:
        raise UsageError(text, "not hexadecimal", "Write two digits a byte") from error


_whom = click.argument(
    "address",
    type=Parsed("address", _parse_whom),
    metavar="ADDRESS|all",
    shell_complete=complete_address,
)


def _takes_string(command: Command) -> Command:
    """Give a command the bytes of a config string, however they were written."""

    @wraps(command)
    def run(
        *, string: str | None, as_hex: bytes | None, file: Path | None, **others: object
    ) -> None:
        command(content=_string(string, as_hex, file), **others)

    for option in (
        click.argument("string", required=False),
        click.option(
            "--hex",
            "as_hex",
            type=Parsed("hexadecimal", _parse_hex),
            help="The string's bytes, two digits each.",
        ),
        click.option(
            "--file",
            type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
            help="Take the string from a file as it is; - is standard input.",
        ),
    ):
        option(run)
    return run


@click.group(cls=VerbGroup)
def config() -> None:
    """Read, test and set the string that a target is claimed with.

    \b
    Try:  aoe config read all -i eth0
          aoe config set e0.0 "mine since May" -i eth0

    The string is what a target keeps for its clients: up to 1024 bytes, any. Nothing
    but good manners keeps others from a target that is claimed.
    """


@config.command()
@_whom
@click.option(
    "--raw", is_flag=True, help="Write the string as it is, and nothing else."
)
@connects(1.0)
@json_option
def read(*, address: Address, connection: Connection, raw: bool, as_json: bool) -> None:
    """Show the config string of a target, or of all.

    \b
    Try:  aoe config read e0.0 -i eth0
          aoe config read all -i eth0
    """
    if raw and address == BROADCAST:
        raise UsageError("--raw", "is for one target", "Name it, as e0.0")
    with connection.links() as links:
        answers = _ask(links, address, Config(), connection.timeout)
        if not answers:
            raise _nobody(address, links, connection.timeout)
    if raw:
        sys.stdout.buffer.write(answers[0].config.string)
    else:
        _show("read", address, answers, as_json=as_json)


@config.command("test")
@_whom
@_takes_string
@connects(1.0)
@json_option
def test_command(
    *, address: Address, content: bytes, connection: Connection, as_json: bool
) -> None:
    """Ask whether a target's config string is STRING.

    \b
    Try:  aoe config test e0.0 "mine since May" -i eth0

    Exit codes: 0 it is, 1 it is another, 3 nobody answers.
    """
    wanted = Config(ConfigCommand.TEST, content)
    _test(address, wanted, connection, as_json=as_json)


@config.command()
@_whom
@_takes_string
@connects(1.0)
@json_option
def prefix(
    *, address: Address, content: bytes, connection: Connection, as_json: bool
) -> None:
    """Ask whether a target's config string begins with STRING.

    \b
    Try:  aoe config prefix e0.0 mine -i eth0
          aoe config prefix all mine -i eth0

    Exit codes: 0 it does, 1 it does not, 3 nobody answers.
    """
    wanted = Config(ConfigCommand.PREFIX, content)
    _test(address, wanted, connection, as_json=as_json)


@config.command("set")
@_whom
@_takes_string
@connects(1.0)
@json_option
def set_command(
    *, address: Address, content: bytes, connection: Connection, as_json: bool
) -> None:
    """Set a target's config string unless it has another.

    \b
    Try:  aoe config set e0.0 "mine since May" -i eth0

    Exit codes: 0 it is set, 5 somebody else has claimed it, who is named.
    """
    wanted = Config(ConfigCommand.SET, content)
    _set(address, wanted, connection, as_json=as_json)


@config.command()
@_whom
@_takes_string
@connects(1.0)
@json_option
def fset(
    *, address: Address, content: bytes, connection: Connection, as_json: bool
) -> None:
    """Set a target's config string whoever has claimed it.

    \b
    Try:  aoe config fset e0.0 mine -i eth0
          aoe config fset e0.0 "" -i eth0      (nobody's any more)
    """
    wanted = Config(ConfigCommand.FORCE, content)
    _set(address, wanted, connection, as_json=as_json)


def _string(string: str | None, as_hex: bytes | None, file: Path | None) -> bytes:
    given = [each for each in (string, as_hex, file) if each is not None]
    if len(given) != 1:
        fix = 'Write one of STRING ("" for none), --hex and --file'
        raise UsageError("STRING", "given twice" if given else "missing", fix)
    if as_hex is not None:
        content = as_hex
    elif file is not None:
        content = _read_file(file)
    else:
        content = (string or "").encode("utf-8", "surrogateescape")
    if len(content) > STRING_LIMIT:
        raise UsageError(
            "config string", f"{len(content)} bytes, of {STRING_LIMIT} at most"
        )
    return content


def _read_file(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read(STRING_LIMIT + 1)
    try:
        with path.open("rb") as file:
            return file.read(STRING_LIMIT + 1)
    except OSError as error:
        raise from_os_error(str(path), error) from error


def _ask(
    links: Sequence[Link], address: Address, wanted: Config, timeout: float
) -> list[QueryResponse]:
    """Ask three times within the timeout; each target's first answer, by address."""
    from initiator.client.discover import Query

    query = Query(links, address, wanted)
    found: dict[tuple[Address, bytes], QueryResponse] = {}
    for _ in range(_TRIES):
        query.send()
        for answer in query.responses(timeout / _TRIES):
            if answer.error is None:
                found.setdefault((answer.address, answer.mac), answer)
            if found and address != BROADCAST:
                return list(found.values())
    return [found[key] for key in sorted(found)]


def _test(
    address: Address, wanted: Config, connection: Connection, *, as_json: bool
) -> None:
    """Ask for those that match; silence may mean that nobody is there at all (P52)."""
    with connection.links() as links:
        answers = _ask(links, address, wanted, connection.timeout)
        others = [] if answers else _ask(links, address, Config(), connection.timeout)
        if not answers and not others:
            raise _nobody(address, links, connection.timeout)
    name = "test" if wanted.ccmd == ConfigCommand.TEST else "prefix"
    if answers or as_json:
        _show(name, address, answers, as_json=as_json)
    if not answers:
        verb = "is" if name == "test" else "begins with"
        if address == BROADCAST:
            raise AoEError("all", f'no config string {verb} "{wanted.text}"')
        has = others[0].config.text
        why = f'config string is "{has}", not "{wanted.text}"'
        if name == "prefix":
            why = f'config string is "{has}", and does not begin with "{wanted.text}"'
        raise AoEError(str(address), why)


def _set(
    address: Address, wanted: Config, connection: Connection, *, as_json: bool
) -> None:
    if address == BROADCAST:
        raise UsageError("all", "cannot be claimed together", "Name one, as e0.0")
    with connection.target(address) as target:
        current = Config(string=target.set_config(wanted.ccmd, wanted.string))
    name = "set" if wanted.ccmd == ConfigCommand.SET else "fset"
    if as_json:
        place = _place(address, target.mac, target.link.name)
        print_json(f"config {name}", targets=[{**place, **_strings(current)}])
    else:
        click.echo(current.text)


def _show(
    name: str, address: Address, answers: Sequence[QueryResponse], *, as_json: bool
) -> None:
    """Print as aoecfg does: the string, behind its address where all were asked."""
    if as_json:
        targets = [
            {**_place(each.address, each.mac, each.interface), **_strings(each.config)}
            for each in answers
        ]
        print_json(f"config {name}", targets=targets)
        return
    for answer in answers:
        head = f"{answer.address}\t" if address == BROADCAST else ""
        click.echo(f"{head}{answer.config.text}")


def _place(address: Address, mac: bytes, interface: str) -> dict[str, object]:
    return {
        "address": str(address),
        "mac": format_mac(mac),
        "interface": interface,
    }


def _strings(current: Config) -> dict[str, object]:
    return {
        "config_string": current.string.decode("utf-8", "backslashreplace"),
        "config_string_hex": current.string.hex(),
    }


def _nobody(address: Address, links: Sequence[Link], timeout: float) -> AoEError:
    from initiator.client.remote import not_found

    return not_found(address, [link.name for link in links], timeout)
