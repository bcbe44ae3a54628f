"""Run mutation tests of the lab: remove one get, put or deferral at a time.

Each mutant is a copy of the checkout in which one statement does nothing. The unit
tests of the lab run on it until the first failure. A mutant that survives shows that a
test is missing.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHECKOUT: Final = Path(__file__).resolve().parents[1]
GETS_AND_PUTS: Final = frozenset(
    {"get_page", "put_page", "page_ref_inc", "page_ref_dec", "release_data"}
)
MUTATED: Final = {
    "initiator/lab/kernel/policy.py": GETS_AND_PUTS,
    "initiator/lab/kernel/slab.py": GETS_AND_PUTS | {"reap"},
    "initiator/lab/kernel/skbuff.py": GETS_AND_PUTS,
    "initiator/lab/kernel/submitters.py": frozenset({"reap"}),
    "initiator/driver/driver.py": frozenset({"bio_arrives", "bio_ends"}),
    "initiator/lab/world.py": frozenset({"end_io"}),
}
"""Calls to remove, by module."""
SHARERS: Final = frozenset({"dataref", "users"})
"""Counters of sharers, whose increments and decrements are removed as well."""
DEFERRAL: Final = "_is_referenced"
"""The test for deferring the reuse of an object, replaced by False."""
TESTS: Final = tuple(
    f"tests/unit/test_lab_{name}.py"
    for name in ("skbuff", "slab", "rules", "model", "policies", "costs")
)
NEEDED: Final = ("aoe", "initiator", "target", "tests", "pyproject.toml")
_TIMEOUT: Final = 120.0


class Mutant(NamedTuple):
    """A module with one statement removed.

    Args:
        path: the module.
        line: line of the statement.
        function: the function around it.
        text: the statement.
        source: source of the module without the statement.
    """

    path: str
    line: int
    function: str
    text: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.function}: {self.text}"


class Verdict(NamedTuple):
    """The test that killed a mutant, "" if it survived."""

    mutant: Mutant
    killer: str
    seconds: float


def mutants(path: str, source: str) -> Iterator[Mutant]:
    """Yield the mutants of a module in the order of its lines."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                replacement = _replacement(node, MUTATED[path])
                if replacement:
                    found.append((node, function.name, replacement))
    for node, function_name, replacement in sorted(
        found, key=lambda f: _position(f[0])
    ):
        text = ast.get_source_segment(source, node) or ""
        mutated = _replaced(source, node, replacement)
        yield Mutant(path, _position(node)[0], function_name, text, mutated)


def _replacement(node: ast.AST, names: frozenset[str]) -> str:
    """Return the replacement of a statement or call, "" for none."""
    match node:
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name))) if name in names:
            return "pass"
        case ast.AugAssign(target=ast.Attribute(attr=name)) if name in SHARERS:
            return "pass"
        case ast.Call(func=ast.Attribute(attr=name)) if name == DEFERRAL:
            return "False"
    return ""


def _position(node: ast.AST) -> tuple[int, int]:
    return getattr(node, "lineno", 0), getattr(node, "col_offset", 0)


def _replaced(source: str, node: ast.AST, replacement: str) -> str:
    lines = source.splitlines(keepends=True)
    line, column = _position(node)
    last: int = getattr(node, "end_lineno", line)
    end: int = getattr(node, "end_col_offset", 0)
    before, after = lines[line - 1][:column], lines[last - 1][end:]
    return "".join([*lines[: line - 1], before, replacement, after, *lines[last:]])


def all_mutants(checkout: Path = CHECKOUT) -> list[Mutant]:
    """Return the mutants of all modules."""
    return [
        mutant
        for path in MUTATED
        for mutant in mutants(path, (checkout / path).read_text())
    ]


def copy_checkout(home: Path) -> None:
    """Copy the files that the tests need into an empty directory."""
    for name in NEEDED:
        if (CHECKOUT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(CHECKOUT / name, home / name, ignore=ignored)
        else:
            shutil.copy(CHECKOUT / name, home / name)


def failing_test(home: Path, tests: Sequence[str] = TESTS) -> str:
    """Run the tests in a copy of the checkout; return the first failing one or ""."""
    # Running pytest as a module puts the copy first in sys.path. Bytecode must not be
    # written, or it would outlive the mutant.
    environment = os.environ | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(home / ".hypothesis"),
    }
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "pytest", "-xq", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"timeout after {_TIMEOUT:.0f} s"
    if done.returncode == 0:
        return ""
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split()[1].removeprefix("tests/unit/")
    return done.stdout.strip().splitlines()[-1]


def run_mutant(mutant: Mutant, home: Path, tests: Sequence[str] = TESTS) -> Verdict:
    """Run the tests on one mutant in a copy, and restore the copy."""
    start = time.monotonic()
    module = home / mutant.path
    original = module.read_text()
    module.write_text(mutant.source)
    try:
        killer = failing_test(home, tests)
    finally:
        module.write_text(original)
    return Verdict(mutant, killer, time.monotonic() - start)


def run_mutants(
    chosen: Sequence[Mutant], jobs: int, tests: Sequence[str] = TESTS
) -> Iterator[Verdict]:
    """Run the tests on mutants in parallel, with a copy of the checkout per job."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        homes: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            home = Path(directory) / str(number)
            home.mkdir()
            copy_checkout(home)
            homes.put(home)
        first = homes.get()
        broken = failing_test(first, tests)
        homes.put(first)
        if broken:
            raise SystemExit(f"mutants: {broken} fails without a mutant. Fix it first")

        def run(mutant: Mutant) -> Verdict:
            home = homes.get()
            try:
                return run_mutant(mutant, home, tests)
            finally:
                homes.put(home)

        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(run, chosen)


def main(args: Sequence[str] | None = None) -> int:
    """Run the mutants and print the killer of each; return 1 if one survives."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    parser.add_argument(
        "-k", metavar="TEXT", default="", help="only mutants that contain TEXT"
    )
    parser.add_argument(
        "-j",
        metavar="JOBS",
        type=int,
        default=os.cpu_count() or 1,
        help="number of parallel jobs",
    )
    parser.add_argument(
        "tests", nargs="*", default=TESTS, help="tests to run (default: the lab's)"
    )
    options = parser.parse_args(args)
    chosen = [mutant for mutant in all_mutants() if options.k in str(mutant)]
    if options.list:
        print(*chosen, sep="\n")
        return 0
    start = time.monotonic()
    survivors = 0
    for mutant, killer, seconds in run_mutants(chosen, options.j, options.tests):
        survivors += not killer
        print(f"{mutant}\n    {killer or 'SURVIVES'} ({seconds:.1f} s)", flush=True)
    took = time.monotonic() - start
    print(f"{len(chosen)} mutants, {survivors} survive, {took:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
