"""``aoe check``: check whether a target conforms to the protocol."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

import click

from aoe.address import Address, format_mac
from aoe.common.commandline import ADDRESS, Parsed, json_option, print_json
from aoe.common.process.signals import handling, not_ignored
from aoe.errors import AoEError, NotFoundError, UsageError
from aoe.header import sectors_per_frame
from initiator.check.model import OPTIONS, Level, Needs, Verdict
from initiator.check.runner import Session, drive
from initiator.check.subject import Subject, probe
from initiator.check.suite import choose, parse_rules
from initiator.check.wire import WireExchange
from initiator.cli.commands.claims import CLAIM_FIX, force_option
from initiator.cli.common import Connection, connection_options
from initiator.cli.complete import complete_address
from initiator.client.claims import claimed
from initiator.client.discover import QueryResponse, discover
from initiator.io.tags import claim_tag_base
from initiator.rules import load_all_rules, rule_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aoe.common.rules import Rule
    from aoe.net.link import Link
    from initiator.check.model import Check, Result

_COLOURS = {Verdict.PASSED: "green", Verdict.DEVIATES: "red", Verdict.SKIPPED: "yellow"}


_OTHERS = Needs.MASK | Needs.HAZARD
"""Checks that act as a second client, and so receive frames for another MAC address."""


@click.command()
@click.argument(
    "address", type=ADDRESS, required=False, shell_complete=complete_address
)
@click.option("--list", "is_list", is_flag=True, help="List the checks; send nothing.")
@click.option(
    "--only",
    type=Parsed("rules", parse_rules),
    default=frozenset[int](),
    metavar="RULES",
    help="Run only the checks of these rules: P38,P52 or P61-P70.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 also for advice deviations.")
@click.option(
    "--write", is_flag=True, help="Also write to some sectors, and restore them."
)
@click.option(
    "--lba",
    type=click.IntRange(min=0),
    help="The first of these sectors; default: the last sectors of the disk.",
)
@click.option(
    "--sectors",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Number of these sectors.",
)
@click.option(
    "--claim",
    is_flag=True,
    help="Also change config string, reservation and write cache, and restore them. "
    "Other clients may get errors in the meantime.",
)
@click.option(
    "--hazardous",
    is_flag=True,
    help="Also run checks that can do harm if the target is faulty: with --write, "
    "writes beyond the end of the disk and to broadcast addresses; with --claim, edits "
    "of the mask list, which crash vblade 25. Makes the interface promiscuous.",
)
@force_option
@connection_options(1.0)
@json_option
def check(
    *,
    address: Address | None,
    connection: Connection,
    is_list: bool,
    only: frozenset[int],
    strict: bool,
    lba: int | None,
    sectors: int,
    as_json: bool,
    **options: bool,
) -> None:
    """Check whether a target conforms to the protocol.

    \b
    Try:  aoe check e7.3 -i eth0
          aoe check e7.3 -i eth0 --write --lba 2048 --claim
          aoe check e7.3 -i eth0 --only P61-P70 --claim
          aoe check --list

    Without --write and --claim, nothing on the target is changed. What these options
    change is restored after each check, also on Ctrl-C, but not if the program is
    killed. A deviation is either a must, which violates the specification or endangers
    data, or advice, where the specification is silent and clients depend on the usual
    behaviour. aoe rule prints the text of a rule, such as aoe rule P38.

    Exit codes: 0 no must deviations, 1 at least one, 3 no target answers.
    """
    checks = choose(only)
    if is_list:
        _print_list(checks, as_json=as_json)
        return
    if address is None:
        raise UsageError("ADDRESS", "missing", "Give an address, as e7.3, or --list")
    allowed = Needs.NOTHING
    for name, needs in OPTIONS.items():
        if options[name.removeprefix("--")]:
            allowed |= needs
    with (
        connection.links(promiscuous=_OTHERS in allowed) as links,
        _subject(links, address, connection.timeout) as (t, exchange, response),
    ):
        t.scratch = _scratch(t, lba, sectors)
        with ExitStack() as stack:
            if Needs.DISK in allowed and not options["force"]:
                path = (response.interface, response.mac)
                stack.enter_context(claimed(address, t.identity, [path], CLAIM_FIX))
            if not as_json:
                click.echo(_introduction(t, response))
            results = _run(t, exchange, checks, allowed, quiet=as_json)
    if as_json:
        _print_json(t, response, results)
    else:
        click.echo(_summary(results))
    fatal_levels = Level if strict else (Level.MUST,)
    failed = any(_deviations(results, level) for level in fatal_levels)
    click.get_current_context().exit(int(failed))


@contextmanager
def _subject(
    links: Sequence[Link], address: Address, timeout: float
) -> Iterator[tuple[Subject, WireExchange, QueryResponse]]:
    """Find a target and probe what the checks need to know about it.

    Args:
        links: the interfaces.
        address: the target's address.
        timeout: seconds to wait for its first response.

    Yields:
        The target, the means to exchange frames with it, and its first response.

    Raises:
        NotFoundError: it does not respond.
        UsageError: the MTU of the interface is too small for a sector.
    """
    responses = discover(links, address, timeout, enough=bool)
    responses = [each for each in responses if each.error is None]
    if not responses:
        names = ",".join(link.name for link in links)
        why = f"no response on {names} within {timeout:g} s"
        raise NotFoundError(
            str(address), why, f"List the targets with: aoe discover -i {names}"
        )
    response = responses[0]
    link = next(link for link in links if link.name == response.interface)
    if not sectors_per_frame(link.mtu):
        why = f"an MTU of {link.mtu} is too small for a sector"
        raise UsageError(link.name, why, f"Raise it: ip link set {link.name} mtu 1500")
    with ExitStack() as stack:
        tag_base, holder = claim_tag_base()
        stack.callback(os.close, holder)
        config = response.config
        t = Subject(address, response.mac, link.mac, link.mtu, config, tag_base)
        exchange = WireExchange(link, t, timeout)
        drive(probe(t), t, exchange)
        yield t, exchange, response


def _scratch(t: Subject, lba: int | None, sectors: int) -> range:
    if t.identity is None:
        return range(0)
    size = t.identity.sectors
    first = max(0, size - sectors) if lba is None else lba
    end = first + sectors if lba is not None else size
    if end > size:
        raise UsageError(
            f"--lba {first} --sectors {sectors}",
            f"{t.address} has {size} sectors",
            "Choose a range within the disk",
        )
    return range(first, end)


def _run(
    t: Subject,
    exchange: WireExchange,
    checks: Sequence[Check],
    allowed: Needs,
    *,
    quiet: bool,
) -> list[Result]:
    """Run the checks, print their results, and restore what they change.

    Raises:
        AoEError: something could not be restored.
    """
    results = []
    with Interrupts() as interrupts:
        session = Session(t, exchange, allowed, interrupts.held)
        try:
            for result in session.run(checks):
                results.append(result)
                if not quiet:
                    _print(result)
        finally:
            for what, why in session.not_restored.items():
                click.echo(f"aoe: {t.address}: {what} not restored: {why}", err=True)
    if session.not_restored:
        raise AoEError(
            str(t.address), f"not restored: {', '.join(session.not_restored)}"
        )
    return results


class Interrupts:
    """Raise KeyboardInterrupt on SIGTERM, and on SIGINT and SIGHUP unless ignored.

    Deferred in ``held``.
    """

    def __init__(self) -> None:
        self._is_held = self._is_due = False
        numbers = (signal.SIGTERM, *not_ignored(signal.SIGINT, signal.SIGHUP))
        self._handling = handling(self._interrupt, numbers)

    def _interrupt(self, *_: object) -> None:
        self._is_due = True
        if not self._is_held:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Defer interrupts until the end of the block."""
        self._is_held, self._is_due = True, False
        try:
            yield
        finally:
            self._is_held = False
        if self._is_due:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        self._handling.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.__exit__(None, None, None)


def _introduction(t: Subject, response: QueryResponse) -> str:
    size = f"{t.identity.sectors} sectors" if t.identity else "size unknown"
    return (
        f"{t.address} at {format_mac(t.mac)} on {response.interface}: {size}, "
        f"{response.config.buffer_count} buffers, {t.advertised} sectors a frame"
    )


def _print(result: Result) -> None:
    check = result.check
    verdict = click.style(f"{result.verdict:<9}", fg=_COLOURS[result.verdict])
    level = check.level if result.verdict is Verdict.DEVIATES else ""
    line = f"{verdict} {level:<7}{' '.join(check.rule_names):<15} {check.title}"
    if result.verdict is Verdict.SKIPPED:
        line += f" ({' '.join(result.why)})"
    click.echo(line)
    if result.verdict is Verdict.DEVIATES:
        for rule in _rules_of([check]):
            click.echo(f"{'':17}{'rule':<9} {rule.number} {rule.title}")
        for why in result.why:
            kind, _, text = why.partition(" ")
            click.echo(f"{'':17}{kind:<9} {text}")


def _rules_of(checks: Iterable[Check]) -> list[Rule]:
    """Return the rules that checks are about, each once, in document order."""
    numbers = {name for check in checks for name in check.rule_names}
    return [rule for rule in load_all_rules().values() if rule.number in numbers]


def _summary(results: Sequence[Result]) -> str:
    must, advice = (len(_deviations(results, level)) for level in Level)
    line = (
        f"{len(results)} checks: {_count(results, Verdict.PASSED)} pass, "
        f"{must + advice} deviate ({must} must, {advice} advice), "
        f"{_count(results, Verdict.SKIPPED)} skipped"
    )
    missing_options = Counter(
        why.removeprefix("needs ")
        for result in results
        for why in result.why
        if why.startswith("needs --")
    )
    needs = ", ".join(f"{count} need {what}" for what, count in missing_options.items())
    return f"{line}: {needs}" if needs else line


def _print_json(t: Subject, response: QueryResponse, results: Sequence[Result]) -> None:
    print_json(
        "check",
        address=str(t.address),
        mac=format_mac(t.mac),
        interface=response.interface,
        checks=[
            {
                **_fields(result.check),
                "verdict": result.verdict,
                "why": result.why,
                "request": result.request.hex(),
                "expected": result.expected,
                "got": result.got.hex(),
            }
            for result in results
        ],
        passed=_count(results, Verdict.PASSED),
        skipped=_count(results, Verdict.SKIPPED),
        deviations={level.value: len(_deviations(results, level)) for level in Level},
        rules=_rule_records(result.check for result in results),
    )


def _rule_records(checks: Iterable[Check]) -> list[dict[str, str | None]]:
    return list(map(rule_record, _rules_of(checks)))


def _count(results: Sequence[Result], verdict: Verdict) -> int:
    return sum(result.verdict is verdict for result in results)


def _deviations(results: Sequence[Result], level: Level) -> list[Result]:
    return [
        result
        for result in results
        if result.verdict is Verdict.DEVIATES and result.check.level is level
    ]


def _fields(check: Check) -> dict[str, object]:
    return {
        "name": check.name,
        "rules": check.rule_names,
        "title": check.title,
        "level": check.level,
        "options": check.options,
    }


def _print_list(checks: Sequence[Check], *, as_json: bool) -> None:
    if as_json:
        print_json(
            "check",
            checks=[_fields(check) for check in checks],
            rules=_rule_records(checks),
        )
        return
    for check in checks:
        needs = " ".join(check.options)
        rules = " ".join(check.rule_names)
        click.echo(
            f"{rules:<15} {check.level:<7} {check.title}{needs and f'  {needs}'}"
        )
