"""Run the session: at a terminal in the shell that scapy chooses, or a script."""

from __future__ import annotations

import builtins
import contextlib
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click
from scapy import main as scapy_main
from scapy.config import conf

from aoe.errors import AoEError
from initiator.session.helpers import HELPERS
from initiator.session.names import all_names, own_names

if TYPE_CHECKING:
    from types import TracebackType

    from initiator.session.helpers import Session

START: Final = "_aoe_start"
"""The name in the session of the function that ``startup.py`` calls."""
_STARTUP_FILE: Final = Path(__file__).with_name("startup.py")
_SHELLS: Final = ("IPython", "bpython", "ptpython")
"""The shells that scapy prefers to that of Python."""
_HINTS: Final = f"""\
Helpers: {", ".join(HELPERS)}; see help(ask)
Example: ask(AoE(shelf=0, slot=0) / AoEATA(cmd_status="IDENTIFY")).show()"""


def interact(session: Session, banner: str) -> None:
    """Open scapy's session, with scapy's configuration files and shell.

    Args:
        session: its first interface becomes that of scapy, after the user's startup
            file, which may have set another one.
        banner: the first line to print.
    """

    def start() -> None:
        _execute_startup_file()
        _choose_shell()
        conf.iface = session.interfaces[0]
        click.echo(f"{banner}\n{_HINTS}")
        _install_completer()

    arguments = ["aoe scapy", "-c", str(_STARTUP_FILE)]
    if not _exists(scapy_main.DEFAULT_PRESTART_FILE):
        # Otherwise scapy creates the file, which fails in a read-only home directory.
        arguments.append("-P")
    conf.fancy_banner = False
    sys.excepthook = _print_exception
    try:
        scapy_main.interact(mydict={**own_names(session), START: start}, argv=arguments)
    finally:
        sys.excepthook = sys.__excepthook__


class Script(NamedTuple):
    """A program to execute in a session.

    Args:
        source: its text.
        name: its file name, for tracebacks.
        arguments: ``sys.argv``.
        folder: where it imports modules from, before other places.
    """

    source: str | bytes
    name: str
    arguments: list[str]
    folder: str | None = None


def run_script(session: Session, script: Script) -> None:
    """Execute a program, without scapy's configuration files.

    Args:
        session: its first interface becomes that of scapy.
        script: the program. The traceback of an exception is printed.

    Raises:
        AoEError, BrokenPipeError, KeyboardInterrupt: the program raised it.
        SystemExit: the program raised it, or another exception: status 1.
    """
    conf.iface = session.interfaces[0]
    sys.argv = script.arguments
    if script.folder is not None:
        sys.path.insert(0, script.folder)
    names = {**all_names(session), "__name__": "__main__", "__file__": script.name}
    try:
        exec(compile(script.source, script.name, "exec"), names)  # noqa: S102 - on request
    except (AoEError, BrokenPipeError):
        raise
    except Exception as error:
        trace = error.__traceback__
        # Without the frame of this function.
        traceback.print_exception(error.with_traceback(trace and trace.tb_next))
        raise SystemExit(1) from error


def _exists(path: str | None) -> bool:
    return path is not None and Path(path).exists()


def _execute_startup_file() -> None:
    """Execute the user's startup file, in the place of which ours was executed."""
    path = scapy_main.DEFAULT_STARTUP_FILE
    if not _exists(path):
        return
    try:
        exec(compile(Path(path).read_bytes(), path, "exec"), _session_names())  # noqa: S102 - as scapy
    except Exception:  # noqa: BLE001 - the session starts nevertheless
        traceback.print_exc()


def _session_names() -> dict[str, object]:
    names: dict[str, object] = vars(builtins)["scapy_session"]
    return names


def _choose_shell() -> None:
    # Scapy would choose the same one, with a warning.
    if conf.interactive_shell == "auto" and not any(map(find_spec, _SHELLS)):
        conf.interactive_shell = "python"


def _install_completer() -> None:
    """Replace scapy's completer of the Python shell when readline is first used."""
    with contextlib.suppress(ImportError):
        import readline

        from initiator.session.completion import Completer

        def install() -> None:
            readline.set_startup_hook()
            if conf.interactive_shell == "python":
                readline.set_completer(Completer(_session_names()).complete)

        readline.set_startup_hook(install)


def _print_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an exception in the Python shell; our errors are one line each."""
    if isinstance(error, AoEError):
        click.echo(f"aoe: {error}", err=True)
    elif isinstance(error, KeyboardInterrupt):
        click.echo("KeyboardInterrupt", err=True)
    else:
        sys.__excepthook__(kind, error, trace)
