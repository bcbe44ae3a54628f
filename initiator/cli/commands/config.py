"""``aoe config``: read, test and set the config string of a target."""

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
from initiator.cli.common import Connection, VerbGroup, connection_options
from initiator.cli.complete import complete_address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aoe.net.link import Link
    from initiator.client.discover import QueryResponse

    Command = Callable[..., None]

_TRIES: Final = 3


def _parse_address(text: str) -> Address:
    return BROADCAST if text == "all" else Address.parse(text)


def _parse_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text.replace(":", " "))
    except ValueError as error:
        raise UsageError(
            text, "not hexadecimal", "Write two digits per byte"
        ) from error


_address = click.argument(
    "address",
    type=Parsed("address", _parse_address),
    metavar="ADDRESS|all",
    shell_complete=complete_address,
)


def _string_options(command: Command) -> Command:
    """Add STRING, --hex and --file to a command, and pass the bytes as ``content``."""

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
            help="The string in hexadecimal, two digits per byte.",
        ),
        click.option(
            "--file",
            type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
            help="Read the string from this file, unmodified; - is standard input.",
        ),
    ):
        option(run)
    return run


@click.group(cls=VerbGroup)
def config() -> None:
    """Read, test or set the config string of a target.

    \b
    Try:  aoe config read all -i eth0
          aoe config set e0.0 "backup host" -i eth0

    A target stores up to 1024 bytes for its clients, by convention the name of the host
    that has claimed it. The claim is advisory: the target serves other clients all the
    same. See aoe reserve and aoe mask for access control.
    """


@config.command()
@_address
@click.option(
    "--raw", is_flag=True, help="Write the bytes of the string and nothing else."
)
@connection_options(1.0)
@json_option
def read(*, address: Address, connection: Connection, raw: bool, as_json: bool) -> None:
    """Show the config string of a target, or of all targets.

    \b
    Try:  aoe config read e0.0 -i eth0
          aoe config read all -i eth0
    """
    if raw and address == BROADCAST:
        raise UsageError("--raw", "needs one target", "Give an address, as e0.0")
    with connection.links() as links:
        responses = _query(links, address, Config(), connection.timeout)
        if not responses:
            raise _no_response(address, links, connection.timeout)
    if raw:
        sys.stdout.buffer.write(responses[0].config.string)
    else:
        _show("read", address, responses, as_json=as_json)


@config.command("test")
@_address
@_string_options
@connection_options(1.0)
@json_option
def test_command(
    *, address: Address, content: bytes, connection: Connection, as_json: bool
) -> None:
    """Test whether the config string of a target equals STRING.

    \b
    Try:  aoe config test e0.0 "backup host" -i eth0

    Exit codes: 0 equal, 1 different, 3 no target answers.
    """
    wanted = Config(ConfigCommand.TEST, content)
    _test(address, wanted, connection, as_json=as_json)


@config.command()
@_address
@_string_options
@connection_options(1.0)
@json_option
def prefix(
    *, address: Address, content: bytes, connection: Connection, as_json: bool
) -> None:
    """Test whether the config string of a target begins with STRING.

    \b
    Try:  aoe config prefix e0.0 backup -i eth0
          aoe config prefix all backup -i eth0

    Exit codes: 0 it does, 1 it does not, 3 no target answers.
    """
    wanted = Config(ConfigCommand.PREFIX, content)
    _test(address, wanted, connection, as_json=as_json)


@config.command("set")
@_address
@_string_options
@connection_options(1.0)
@json_option
def set_command(
    *, address: Address, content: bytes, connection: Connection, as_json: bool
) -> None:
    """Set the config string of a target that has none.

    \b
    Try:  aoe config set e0.0 "backup host" -i eth0

    Setting the same string again succeeds.

    Exit codes: 0 set, 5 the target has another config string, which is printed.
    """
    wanted = Config(ConfigCommand.SET, content)
    _set(address, wanted, connection, as_json=as_json)


@config.command()
@_address
@_string_options
@connection_options(1.0)
@json_option
def fset(
    *, address: Address, content: bytes, connection: Connection, as_json: bool
) -> None:
    """Set the config string of a target, replacing another one.

    \b
    Try:  aoe config fset e0.0 "backup host" -i eth0
          aoe config fset e0.0 "" -i eth0      (give up the claim)
    """
    wanted = Config(ConfigCommand.FORCE, content)
    _set(address, wanted, connection, as_json=as_json)


def _string(string: str | None, as_hex: bytes | None, file: Path | None) -> bytes:
    given = [each for each in (string, as_hex, file) if each is not None]
    if len(given) != 1:
        fix = 'Give one of STRING ("" for empty), --hex and --file'
        raise UsageError("STRING", "given twice" if given else "missing", fix)
    if as_hex is not None:
        content = as_hex
    elif file is not None:
        content = _read_file(file)
    else:
        content = (string or "").encode("utf-8", "surrogateescape")
    if len(content) > STRING_LIMIT:
        raise UsageError(
            "config string", f"{len(content)} bytes, at most {STRING_LIMIT} are allowed"
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


def _query(
    links: Sequence[Link], address: Address, wanted: Config, timeout: float
) -> list[QueryResponse]:
    """Send a query three times, and return the first response of each target.

    Args:
        links: the interfaces.
        address: the target, or the broadcast address.
        wanted: the query.
        timeout: seconds in all.

    Returns:
        The responses, ordered by address; only one if the address is not broadcast.
    """
    from initiator.client.discover import Query

    query = Query(links, address, wanted)
    found: dict[tuple[Address, bytes], QueryResponse] = {}
    for _ in range(_TRIES):
        query.send()
        for response in query.responses(timeout / _TRIES):
            if response.error is None:
                found.setdefault((response.address, response.mac), response)
            if found and address != BROADCAST:
                return list(found.values())
    return [found[key] for key in sorted(found)]


def _test(
    address: Address, wanted: Config, connection: Connection, *, as_json: bool
) -> None:
    """Send a test query, and print the config strings that match.

    Targets do not respond if their string does not match (P52). A second query, which
    all targets answer, distinguishes this from a target that is absent.
    """
    with connection.links() as links:
        matches = _query(links, address, wanted, connection.timeout)
        others = [] if matches else _query(links, address, Config(), connection.timeout)
        if not matches and not others:
            raise _no_response(address, links, connection.timeout)
    name = "test" if wanted.ccmd == ConfigCommand.TEST else "prefix"
    if matches or as_json:
        _show(name, address, matches, as_json=as_json)
    if not matches:
        verb = "is" if name == "test" else "begins with"
        if address == BROADCAST:
            raise AoEError("all", f'no config string {verb} "{wanted.text}"')
        has = others[0].config.text
        why = f'config string is "{has}", not "{wanted.text}"'
        if name == "prefix":
            why = f'config string is "{has}", which does not begin with "{wanted.text}"'
        raise AoEError(str(address), why)


def _set(
    address: Address, wanted: Config, connection: Connection, *, as_json: bool
) -> None:
    if address == BROADCAST:
        raise UsageError("all", "needs one target", "Give an address, as e0.0")
    with connection.target(address) as target:
        current = Config(string=target.set_config(wanted.ccmd, wanted.string))
    name = "set" if wanted.ccmd == ConfigCommand.SET else "fset"
    if as_json:
        fields = _address_fields(address, target.mac, target.link.name)
        print_json(f"config {name}", targets=[{**fields, **_string_fields(current)}])
    else:
        click.echo(current.text)


def _show(
    name: str, address: Address, responses: Sequence[QueryResponse], *, as_json: bool
) -> None:
    """Print the config strings as aoecfg does, with addresses after a broadcast."""
    if as_json:
        targets = [
            {
                **_address_fields(each.address, each.mac, each.interface),
                **_string_fields(each.config),
            }
            for each in responses
        ]
        print_json(f"config {name}", targets=targets)
        return
    for response in responses:
        head = f"{response.address}\t" if address == BROADCAST else ""
        click.echo(f"{head}{response.config.text}")


def _address_fields(address: Address, mac: bytes, interface: str) -> dict[str, object]:
    return {
        "address": str(address),
        "mac": format_mac(mac),
        "interface": interface,
    }


def _string_fields(current: Config) -> dict[str, object]:
    return {
        "config_string": current.string.decode("utf-8", "backslashreplace"),
        "config_string_hex": current.string.hex(),
    }


def _no_response(address: Address, links: Sequence[Link], timeout: float) -> AoEError:
    from initiator.client.remote import not_found

    return not_found(address, [link.name for link in links], timeout)
