"""What error messages and doctors advise exists: options, commands, subcommands."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.man_commands import options_of, walk
from tests.command_lines import CLIS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

CHECKOUT = Path(__file__).parents[2]
PROGRAMS = {"target": ("aoe-target",), "initiator": ("aoe",), "aoe": tuple(CLIS)}
"""The programs whose messages a package has."""
FIX_POSITIONS = {
    **dict.fromkeys(
        (
            *("AoEError", "UsageError", "NotFoundError", "AccessError", "BusyError"),
            *("DeviceError", "UnsupportedError", "from_os_error"),
        ),
        2,
    ),
    **dict.fromkeys(("fail", "warn"), 3),
    "Advice": 0,
}
"""The first argument that is a fix, by the function."""
OTHER_PROGRAMS = {
    "apt": {"install"},
    "blockdev": {"--setrw"},
    "ethtool": {"-A", "-G", "-S", "-s"},
    "groupadd": {"--system"},
    "install": {"-d", "-o"},
    "ip": {"-details", "-s"},
    "nbdinfo": {"--list"},
    "partx": {"--update"},
    "pip": {"install"},
    "sysctl": {"-w"},
    "truncate": {"-s"},
    "unshare": {"-Urn", "-Un", "--map-auto", "--map-root-user"},
    "useradd": {"--system"},
    "vblade": {"-b"},
}
"""Options that a fix may name, of programs that are not ours."""
UNSAFE = ("chown", "chmod -R", "chmod 777", "mkfs", "rm", "dd", "wipefs", "umount -l")
"""What no fix advises: it destroys data, or opens directories of the system."""

CONTEXTS = [ctx for program, cli in CLIS.items() for ctx in walk(cli, program)]


class Fix:
    """The text of a fix in the source, with an X for each value in it."""

    def __init__(self, path: Path, line: int, text: str) -> None:
        self.package = path.parts[0]
        self.where = f"{path}:{line}"
        self.text = text


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.IfExp):
        return f"{text_of(node.body)} {text_of(node.orelse)}"
    return "X"


def is_fix(name: str) -> bool:
    return bool(re.search(r"\bfix|_fix", name, re.IGNORECASE))


def fixes_in(path: Path) -> Iterator[Fix]:
    tree = ast.parse((CHECKOUT / path).read_text("utf-8"))
    for node in ast.walk(tree):
        values: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            values += node.args[FIX_POSITIONS[name] :] if name in FIX_POSITIONS else []
            values += [word.value for word in node.keywords if word.arg == "fix"]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            names = node.targets if isinstance(node, ast.Assign) else [node.target]
            values += [node.value] if is_fix(" ".join(map(ast.unparse, names))) else []
        for value in values:
            yield Fix(path, value.lineno, text_of(value))


FIXES = [
    fix
    for package in PROGRAMS
    for path in sorted((CHECKOUT / package).rglob("*.py"))
    for fix in fixes_in(path.relative_to(CHECKOUT))
]
every_fix = pytest.mark.parametrize("fix", FIXES, ids=[fix.where for fix in FIXES])


def options(contexts: list[click.Context]) -> set[str]:
    names = " ".join(names for ctx in contexts for names, _ in options_of(ctx))
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", names)) | {"--help"}


def test_fixes_are_found() -> None:
    texts = [fix.text for fix in FIXES]
    assert len(texts) > 200
    for part in ("install -d -o X DIR", "Omit --direct", "aoe mask read X", "--setrw"):
        assert any(part in text for text in texts), part


@every_fix
def test_options_in_a_fix_exist(fix: Fix) -> None:
    programs = PROGRAMS[fix.package]
    known = options([c for c in CONTEXTS if c.command_path.split()[0] in programs])
    others = [names for program, names in OTHER_PROGRAMS.items() if program in fix.text]
    named = set(re.findall(r"(?<![\w-])--?[A-Za-z][A-Za-z-]*", fix.text))
    assert named <= known.union(*others), fix.text


@every_fix
def test_commands_in_a_fix_exist(fix: Fix) -> None:
    paths = {ctx.command_path for ctx in CONTEXTS}
    for program, words in re.findall(
        r"(?<![\w/.'-])(aoe|aoe-target) ((?:[a-z][a-z-]* ?)+)", fix.text
    ):
        first, *rest = words.split()
        assert f"{program} {first}" in paths, fix.text
        group = f"{program} {first} "
        if rest and any(path.startswith(group) for path in paths):
            assert group + rest[0] in paths, fix.text


@every_fix
def test_no_fix_advises_what_destroys_data_or_opens_directories(fix: Fix) -> None:
    assert not re.search(rf"\b({'|'.join(UNSAFE)})\b", fix.text), fix.text
    if "--force" in fix.text and fix.package == "target":
        # It says what happens then, or when it is safe.
        assert re.search(r"With --force, |--force only if ", fix.text), fix.text
