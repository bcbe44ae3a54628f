"""Run cases of the lab in a real Linux kernel, and compare the outcomes.

Each case boots nothing: the guest's state after boot is restored. The module of
``kernel_lab.d`` submits one write bio to Linux's own aoe driver, holds back or loses
its frames as the event requires, and reports what happens to the page. The disk is an
``aoe-target`` at the other end of a tap interface.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from aoe.common.commandline import run
from aoe.errors import AccessError, AoEError, UsageError
from initiator.lab.cases import Case, run_case
from initiator.lab.kernel.journal import Fault
from scripts.kernel_lab_guest import install_packages, prepare_guest
from scripts.kernel_lab_journal import judge, missing_steps, modelled_kernel, why_not
from scripts.kernel_lab_rig import Rig

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scripts.kernel_lab_guest import Guest

DEFAULTS: Final = tuple(
    (submitter, event, nic)
    for event in ("clean", "devfail+free", "stale_clone+free_realloc")
    for submitter in ("pagecache", "xfs_kmalloc_subpage", "rawalloc_highorder_tail")
    for nic in ("SG", "NOSG")
)


_NOT_RUN: Final = ("not reproduced", "not run")
_UNLIKE: Final = ("ok", *_NOT_RUN)
"""Outcomes that are not faults."""


def check_machine() -> None:
    """Raise an error if the script cannot run here, with the first reason."""
    if os.geteuid() != 0:
        raise AccessError("kernel-lab", "not root", "Taps and apt need it: use sudo")
    if platform.machine() != "x86_64" or not shutil.which("apt-get"):
        raise AoEError("kernel-lab", "runs on Debian for x86-64 only")
    if not Path("/dev/net/tun").exists():
        raise AoEError("/dev/net/tun", "missing", "Load it with: modprobe tun")


def check_cases(cases: Sequence[Case], kernel: str) -> list[Case]:
    """Return the cases, or those of ``DEFAULTS`` if there are none.

    Args:
        cases: the cases.
        kernel: the lab's name for the kernel.

    Raises:
        UsageError: a case cannot be run in that kernel.
    """
    chosen = cases or [Case(f"none@{kernel}", *names) for names in DEFAULTS]
    for case in chosen:
        if why := why_not(case, kernel):
            raise UsageError(str(case), why)
    return list(chosen)


class Row:
    """A case, run in a real kernel and in the lab.

    Args:
        case: the case.
        rig: the guest.
    """

    def __init__(self, case: Case, rig: Rig) -> None:
        start = time.monotonic()
        result = run_case(case)
        journal, on_disk, self.log = rig.run(case)
        verdict = judge(journal, on_disk)
        self.case = case
        self.lab = result.outcome
        self.missing = missing_steps(case, journal)
        # A fault may make the rest of an event impossible: no reuse without a free.
        is_spoilt = self.missing and verdict.outcome in ("ok", Fault.WRONG_BYTES.value)
        self.real = "not reproduced" if is_spoilt else verdict.outcome
        self.facts = verdict.facts
        if self.missing:
            self.facts = (f"no {', no '.join(self.missing)}", *self.facts)
        self.seconds = time.monotonic() - start

    @property
    def sign(self) -> str:
        """``=`` if the outcomes are equal, ``~`` if both are faults, else ``≠``."""
        if self.real == self.lab:
            return "="
        return "≠" if {*_UNLIKE} & {self.real, self.lab} else "~"

    def text(self, width: int) -> str:
        """Return the row of the table."""
        line = f"{self.case!s:{width}}  {self.lab:14}  {self.sign} {self.real:14}"
        return f"{line}  {'; '.join(self.facts)}"

    def as_json(self) -> dict[str, object]:
        """Return the row for ``--json``."""
        return {
            "case": str(self.case),
            "lab": self.lab,
            "kernel": self.real,
            "sign": self.sign,
            "facts": list(self.facts),
            "seconds": round(self.seconds, 1),
        }


def run_cases(guest: Guest, cases: Sequence[Case], log: Path | None) -> list[Row]:
    """Run cases one after another, and print each."""
    width = max(len(str(case)) for case in cases)
    print(f"{'case':{width}}  {'lab':14}    {'Linux ' + guest.release}", flush=True)
    rows = []
    with (
        tempfile.TemporaryDirectory(dir=guest.initramfs.parent) as folder,
        Rig(guest, Path(folder)) as rig,
    ):
        for case in cases:
            row = Row(case, rig)
            rows.append(row)
            print(row.text(width), flush=True)
            if log is not None:
                name = str(case).replace("/", ",")
                (log / f"{name}.log").write_text("\n".join(row.log) + "\n")
    return rows


def summary(rows: Iterable[Row], seconds: float) -> str:
    """Return the last line of the report."""
    rows = list(rows)
    same, similar = (sum(row.sign == sign for row in rows) for sign in "=~")
    return (
        f"{len(rows)} cases in {seconds:.0f} s: {same} agree (=), {similar} with"
        f" another fault (~), {len(rows) - same - similar} differ (≠)"
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("cases", nargs=-1, metavar="[CASE]...")
@click.option(
    "--release",
    metavar="VERSION",
    help="Kernel, as in linux-image-VERSION. Default: that of linux-headers-amd64.",
)
@click.option(
    "--log",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the guest's log of each case to a file in this directory.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the rows to a file.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    hidden=True,
    help="Directory for kernel, module and snapshot.",
)
def main(
    cases: tuple[str, ...],
    release: str | None,
    log: Path | None,
    json_file: Path | None,
    cache: Path,
) -> None:
    """Run cases of the lab in a real Linux kernel, under QEMU.

    A CASE is policy/submitter/event/nic, as for aoe lab explain. The policy is none, as
    in a driver of today, a or c, with the version of the kernel: none@6.1. Without a
    case, eighteen are run: three submitters, three events, two NICs.

    \b
    Try:  scripts/kernel-lab none@6.1/pagecache/devfail+free/NOSG
    """
    check_machine()
    parsed = [Case.parse(text) for text in cases]
    if log is not None:
        log.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    release = install_packages(release)
    chosen = check_cases(parsed, modelled_kernel(release))
    guest = prepare_guest(cache / "kernel-lab", release)
    rows = run_cases(guest, chosen, log)
    print(summary(rows, time.monotonic() - start))
    if json_file is not None:
        json_file.write_text(
            json.dumps([row.as_json() for row in rows], indent=2) + "\n"
        )
    if any(row.real in _NOT_RUN for row in rows):
        sys.exit(1)


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    run(main, "kernel-lab")
