from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("aoe", "target", "initiator")


class Rule(NamedTuple):
    """The imports that are allowed in a folder.

    Args:
        folders: other folders of the project, space-separated; including imports for
            type checking.
        system: modules of ``SYSTEM``, space-separated.
        parts: subfolders that may import the folder and be imported by it.
    """

    folders: str = ""
    system: str = ""
    parts: str = ""


SYSTEM = {
    "asyncio",
    "fcntl",
    "logging",
    "os",
    "pyroute2",
    "scapy",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
}
"""Modules for I/O, clocks and threads."""
CALLS = {"open", "print", "input"}
"""Functions that a folder without modules of ``SYSTEM`` may not call."""
FOLDERS = {
    # Shared by target and initiator.
    "aoe": Rule(system="scapy"),
    "aoe/net": Rule("aoe", system="fcntl os pyroute2 select socket subprocess time"),
    "aoe/capture": Rule("aoe aoe/net", system="scapy time"),
    "aoe/common": Rule(
        "aoe aoe/net", system="fcntl logging os select signal socket threading time"
    ),
    "aoe/common/process": Rule(system="os signal time"),
    "aoe/common/doctor": Rule("aoe aoe/common aoe/common/process aoe/net", system="os"),
    # The target.
    "target": Rule(
        "aoe aoe/common target/cli target/config target/disks target/protocol"
        " target/reference target/server"
    ),
    "target/protocol": Rule("aoe"),
    "target/filters": Rule("aoe target/protocol"),
    "target/disks": Rule(
        "aoe aoe/common target/protocol",
        system="fcntl logging os",
        parts="target/disks/nbd target/disks/overlay",
    ),
    "target/disks/nbd": Rule(
        "aoe aoe/common target/protocol", system="logging os socket time"
    ),
    "target/disks/overlay": Rule("aoe aoe/common target/protocol", system="os time"),
    "target/reference": Rule("aoe target/protocol", system="logging scapy"),
    "target/config": Rule("aoe aoe/common target/disks target/filters target/protocol"),
    "target/server": Rule(
        "aoe aoe/capture aoe/common aoe/common/process aoe/net"
        " target/config target/disks target/filters target/protocol target/reference",
        system="logging os select signal socket time",
    ),
    "target/admin": Rule(
        "aoe aoe/common aoe/common/process target/config target/protocol target/server",
        system="logging os select socket threading time",
    ),
    "target/doctor": Rule(
        "aoe aoe/common aoe/common/doctor aoe/net target/admin target/disks",
        system="os",
    ),
    "target/netboot": Rule("aoe"),
    "target/cli": Rule(
        "aoe aoe/common aoe/common/process target/admin target/config target/filters",
        system="os signal",
        parts="target/cli/commands",
    ),
    "target/cli/commands": Rule(
        "aoe aoe/common aoe/common/process aoe/common/doctor aoe/net target/admin"
        " target/config"
        " target/disks target/disks/overlay target/doctor target/filters"
        " target/netboot target/server",
        system="os time",
    ),
    # The initiator.
    "initiator": Rule(
        "aoe aoe/common aoe/common/process aoe/net"
        " initiator/cli initiator/disk initiator/driver initiator/io",
        system="os subprocess",
    ),
    "initiator/rules": Rule("aoe/common"),
    "initiator/driver": Rule(
        "aoe", parts="initiator/driver/flush initiator/driver/paths"
    ),
    "initiator/driver/flush": Rule("aoe initiator/driver"),
    "initiator/driver/paths": Rule("aoe initiator/driver"),
    "initiator/io": Rule(
        "aoe aoe/net initiator/driver", system="logging os select time"
    ),
    "initiator/client": Rule(
        "aoe aoe/common aoe/common/doctor aoe/net initiator/io", system="os time"
    ),
    "initiator/disk": Rule(
        "aoe aoe/common initiator/driver initiator/io",
        system="asyncio fcntl os time",
    ),
    "initiator/export": Rule(
        "aoe aoe/common aoe/common/process initiator/disk initiator/driver"
        " initiator/io",
        system="fcntl logging os signal subprocess threading time",
    ),
    "initiator/export/nbd": Rule(
        "aoe aoe/common initiator/disk initiator/export", system="os select socket"
    ),
    "initiator/lab": Rule(
        "aoe aoe/common/process aoe/net initiator/disk initiator/driver"
        " initiator/lab/drivers initiator/lab/kernel",
        system="subprocess time",
    ),
    "initiator/lab/drivers": Rule("aoe initiator/driver initiator/lab/kernel"),
    "initiator/lab/kernel": Rule("aoe initiator/driver"),
    "initiator/lab/explorer": Rule(
        "aoe initiator/driver initiator/lab initiator/lab/kernel", system="time"
    ),
    "initiator/lab/reports": Rule(
        "aoe aoe/common initiator/lab initiator/lab/drivers initiator/lab/explorer"
        " initiator/lab/kernel"
        " initiator/rules"
    ),
    "initiator/lab/traces": Rule(
        "aoe aoe/common initiator/lab/kernel initiator/lab/reports initiator/rules"
    ),
    "initiator/check": Rule(
        "aoe aoe/net initiator/client", system="time", parts="initiator/check/rules"
    ),
    "initiator/check/rules": Rule("aoe"),
    "initiator/session": Rule("aoe aoe/net", system="scapy time"),
    "initiator/doctor": Rule(
        "aoe aoe/common aoe/common/doctor aoe/net initiator/client"
    ),
    "initiator/cli": Rule(
        "aoe aoe/capture aoe/common aoe/net initiator/client initiator/driver"
        " initiator/io initiator/lab/reports initiator/rules",
        parts="initiator/cli/commands initiator/cli/commands/lab",
    ),
    "initiator/cli/commands": Rule(
        "aoe aoe/capture aoe/common aoe/common/process aoe/common/doctor aoe/net"
        " initiator/check"
        " initiator/client initiator/disk initiator/doctor initiator/driver"
        " initiator/export initiator/export/nbd initiator/io initiator/rules"
        " initiator/session",
        system="os select signal time",
    ),
    "initiator/cli/commands/lab": Rule(
        "aoe aoe/common aoe/net initiator/client initiator/lab initiator/lab/explorer"
        " initiator/lab/kernel initiator/lab/reports initiator/lab/traces"
        " initiator/rules"
    ),
}
# Libraries that are imported on use, because the import is slow.
LAZY = ("prometheus_client", "pyroute2", "rich", "scapy")


def sources(*folders: str) -> list[str]:
    """Return the Python files below the folders, as paths in the checkout."""
    found = [path for folder in folders for path in (CHECKOUT / folder).rglob("*.py")]
    return sorted(str(path.relative_to(CHECKOUT)) for path in found)


MODULES = sources(*PACKAGES)
ALL_FILES = sources(*PACKAGES, "tests", "scripts")
MODULE_SET = frozenset(MODULES)
every_module = pytest.mark.parametrize("path", MODULES)
every_file = pytest.mark.parametrize("path", ALL_FILES)


@cache
def parse(path: str) -> ast.Module:
    return ast.parse((CHECKOUT / path).read_text(), path)


def imports(path: str) -> set[str]:
    """Return the full names that a file imports, at any level."""
    names: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def roots(path: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def test_the_three_packages_exist() -> None:
    missing = [name for name in PACKAGES if f"{name}/__init__.py" not in MODULES]
    assert missing == []


def folder(path: str) -> str:
    return path.rpartition("/")[0]


def names(path: str, *, runtime: bool = False) -> set[str]:
    """Return the project's modules that a file imports, function-level ones included.

    Args:
        path: the file.
        runtime: exclude imports for type checking.
    """
    tree = parse(path)
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if runtime and isinstance(block, ast.If) and is_type_checking(block.test)
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module for name in found if (module := module_of(name))}


def is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def module_of(name: str) -> str:
    """Return the file of an imported name; "" if it is not in the project."""
    for candidate in (name, name.rpartition(".")[0]):
        stem = candidate.replace(".", "/")
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if path in MODULE_SET:
                return path
    return ""


def test_a_serving_target_imports_nothing_when_it_has_dropped_its_privileges() -> None:
    """Its user may be unable to read the modules; a reload needs them all."""
    parts = ("admin", "config", "disks", "filters", "protocol", "server")
    late = {
        (path, imported.module if isinstance(imported, ast.ImportFrom) else "")
        for path in sources(*(f"target/{part}" for part in parts))
        for function in ast.walk(parse(path))
        if isinstance(function, ast.FunctionDef)
        for imported in ast.walk(function)
        if isinstance(imported, ast.Import | ast.ImportFrom)
    }
    assert late == {
        ("target/server/opening.py", "aoe.capture.annotated"),  # at the start only
        ("target/server/opening.py", "target.reference.loading"),  # an error says so
    }


def test_every_folder_has_a_rule() -> None:
    assert {folder(path) for path in MODULES} == {*FOLDERS}


@every_module
def test_a_file_imports_only_what_its_folder_may(path: str) -> None:
    here = folder(path)
    rule = FOLDERS[here]
    allowed = {here, *rule.folders.split(), *rule.parts.split()}
    allowed |= {name for name, each in FOLDERS.items() if here in each.parts.split()}
    assert {folder(module) for module in names(path)} <= allowed
    assert roots(path) & {"tests", "scripts"} == set()


@pytest.mark.parametrize("here", sorted(name for name in FOLDERS if "/" in name))
def test_a_readme_describes_the_folder(here: str) -> None:
    package, _, inside = here.partition("/")
    readmes = {CHECKOUT / package / "README.md", CHECKOUT / here / "README.md"}
    readmes.add((CHECKOUT / here).parent / "README.md")
    text = "".join(path.read_text() for path in readmes if path.is_file())
    assert f"`{inside}/`" in text


def test_rules_allow_only_imports_in_use() -> None:
    for here, files in groupby(sorted(MODULES, key=folder), key=folder):
        paths = list(files)
        rule = FOLDERS[here]
        imported = {folder(module) for path in paths for module in names(path)}
        reached = {root for path in paths for root in roots(path)}
        assert {*rule.folders.split()} <= imported, here
        assert {*rule.system.split()} <= reached, here


def test_folders_have_no_import_cycle() -> None:
    graph = {
        name: {*rule.folders.split()} & {*FOLDERS} for name, rule in FOLDERS.items()
    }
    assert cycle(graph) == []


@pytest.mark.parametrize("here", FOLDERS)
def test_modules_of_a_folder_have_no_import_cycle(here: str) -> None:
    graph = {path: names(path, runtime=True) for path in MODULES}
    members = {path: graph[path] for path in MODULES if folder(path) == here}
    assert cycle(members) == []


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the nodes that remain after removing those without successors."""
    remaining = {
        name: successors & {*graph} - {name} for name, successors in graph.items()
    }
    while ends := {
        name for name, successors in remaining.items() if not successors & {*remaining}
    }:
        remaining = {
            name: successors
            for name, successors in remaining.items()
            if name not in ends
        }
    return sorted(remaining)


@pytest.mark.parametrize("here", FOLDERS)
def test_a_folder_has_at_most_15_modules(here: str) -> None:
    assert len([path for path in MODULES if folder(path) == here]) <= 15


@every_module
def test_a_file_uses_only_the_system_modules_of_its_folder(path: str) -> None:
    allowed = {*FOLDERS[folder(path)].system.split()}
    assert roots(path) & SYSTEM <= allowed
    calls = {
        node.func.id
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert allowed - {"scapy"} or not calls & CALLS


@every_module
def test_imports_are_absolute(path: str) -> None:
    assert [name for name in imports(path) if name.startswith(".")] == []


@every_file
def test_scapy_all_is_imported_for_the_interactive_session_only(path: str) -> None:
    found = [name for name in imports(path) if re.match(r"scapy\.all(\.|$)", name)]
    assert found == [] or path == "initiator/session/names.py"


@every_file
def test_a_file_has_at_most_500_lines(path: str) -> None:
    lines = (CHECKOUT / path).read_text().count("\n")
    assert lines <= 500


@every_module
def test_every_module_has_a_docstring(path: str) -> None:
    assert ast.get_docstring(parse(path))


@every_file
def test_no_file_has_open_tasks_in_comments(path: str) -> None:
    # Concatenated, so that this file does not match.
    task = re.compile(r"\b(" + "TO" + "DO|FIX" + r"ME)\b")
    assert not task.search((CHECKOUT / path).read_text())


def test_importing_the_commands_imports_no_slow_library() -> None:
    names = [
        path.removesuffix(".py").replace("/", ".")
        for path in MODULES
        if path.startswith(("initiator/cli/", "target/cli/"))
    ]
    assert {"initiator.cli.commands.io", "target.cli.commands.serve"} <= {*names}
    probe = f"import sys, {', '.join(names)}; print(*sorted(sys.modules))"
    command = [sys.executable, "-c", probe]
    result = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) & set(LAZY) == set()
