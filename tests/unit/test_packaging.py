from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from target.netboot import FILES

CHECKOUT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
PACKAGES = ("aoe", "target", "initiator")


def modules() -> set[str]:
    """Return every module of the packages, as a path in the checkout."""
    return {
        str(path.relative_to(CHECKOUT))
        for package in PACKAGES
        for path in (CHECKOUT / package).rglob("*.py")
    }


def requirements() -> dict[str, list[str]]:
    """Return all requirements by where they are listed; ``dev`` includes its groups."""
    groups = PROJECT["dependency-groups"]
    dev = [
        requirement
        for each in groups["dev"]
        for requirement in (
            [each] if isinstance(each, str) else groups[each["include-group"]]
        )
    ]
    return {
        "runtime": PROJECT["project"]["dependencies"],
        "build": PROJECT["build-system"]["requires"],
        **PROJECT["project"]["optional-dependencies"],
        **groups,
        "dev": dev,
    }


def git(*arguments: str, directory: Path) -> list[str]:
    """Run git on the checkout with a separate repository in ``directory``.

    The result is independent of the checkout's own repository and its owner.
    """
    variables = {"GIT_DIR": str(directory), "GIT_WORK_TREE": str(CHECKOUT)}
    output = subprocess.run(
        ["git", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return output.split("\0")


def build(source: Path, directory: Path, *options: str) -> None:
    """Build reproducibly, with a fixed SOURCE_DATE_EPOCH."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(directory)]
    subprocess.run(
        [*command, *options],
        cwd=source,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True,
        check=True,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the wheel and the sdist."""
    directory = tmp_path_factory.mktemp("dist")
    build(CHECKOUT, directory)
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> dict[str, str]:
    """Return the files of the wheel, content by name."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.fixture(scope="module")
def sdist(built: Path) -> set[str]:
    """Return the names in the sdist, as paths in the checkout."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def metadata_file(wheel: dict[str, str], name: str) -> str:
    (found,) = (path for path in wheel if path.endswith(f".dist-info/{name}"))
    return wheel[found]


def data_file(wheel: dict[str, str], name: str) -> str:
    (found,) = (path for path in wheel if path.endswith(f".data/data/{name}"))
    return wheel[found]


def test_the_wheel_contains_every_module(wheel: dict[str, str]) -> None:
    assert {f"{package}/__init__.py" for package in PACKAGES} <= modules()
    assert modules() - set(wheel) == set()


def test_the_wheel_contains_the_netboot_templates(wheel: dict[str, str]) -> None:
    assert {f"target/netboot/{name}" for name in FILES.values()} <= set(wheel)


def test_the_wheel_holds_the_rules(wheel: dict[str, str]) -> None:
    for document in ("aoe/PROTOCOL.md", "initiator/KERNEL.md"):
        assert wheel[document] == (CHECKOUT / document).read_text("utf-8")


def test_the_wheel_contains_py_typed_markers(wheel: dict[str, str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(wheel)


def test_the_wheel_contains_only_the_packages(wheel: dict[str, str]) -> None:
    tops = {name.partition("/")[0] for name in wheel} - set(PACKAGES)
    assert {top.rpartition(".")[2] for top in tops} == {"data", "dist-info"}
    assert not [name for name in wheel if "__pycache__" in name]


def test_the_wheel_installs_systemd_units_below_its_prefix(
    wheel: dict[str, str],
) -> None:
    # The package contains them as well, for distributors.
    for unit in ("aoe-target.service", "aoe-target@.service"):
        text = (CHECKOUT / "target/systemd" / unit).read_text()
        (installed,) = (
            name for name in wheel if name.endswith(f"data/lib/systemd/system/{unit}")
        )
        assert wheel[f"target/systemd/{unit}"] == wheel[installed] == text


def test_the_wheel_installs_the_two_commands(wheel: dict[str, str]) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(metadata_file(wheel, "entry_points.txt"))
    assert dict(entry_points["console_scripts"]) == {
        "aoe": "initiator.cli.main:main",
        "aoe-target": "target.cli.main:main",
    }


def test_the_wheel_registers_the_pytest_plugin(wheel: dict[str, str]) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(metadata_file(wheel, "entry_points.txt"))
    assert dict(entry_points["pytest11"]) == {"pyaoe": "initiator.pytest_plugin"}


def test_the_wheel_contains_the_licence(wheel: dict[str, str]) -> None:
    licence = metadata_file(wheel, "licenses/LICENSE")
    assert licence == (CHECKOUT / "LICENSE").read_text()
    assert "License-Expression: GPL-2.0-only" in metadata_file(wheel, "METADATA")


@pytest.mark.parametrize(
    "page",
    [
        *("man1/aoe.1", "man1/aoe-copy.1", "man7/aoe.7"),
        *("man8/aoe-target.8", "man8/aoe-target-serve.8"),
        "man8/aoe-target.service.8",
    ],
)
def test_the_wheel_installs_manual_pages(wheel: dict[str, str], page: str) -> None:
    text = data_file(wheel, f"share/man/{page}")
    title = Path(page).stem.upper().replace("-", r"\-")
    assert f'.TH {title} {page[-1]} "2023-11-14" "pyaoe ' in text


def test_the_wheel_installs_every_manual_page(wheel: dict[str, str]) -> None:
    sources = (CHECKOUT / "scripts/manpages.d").glob("*.txt")
    expected = sorted(path.stem for path in sources)
    installed = sorted(Path(name).name for name in wheel if "/share/man/" in name)
    assert installed == expected
    assert len(installed) > 30


def test_the_wheel_installs_the_page_of_the_configuration_file(
    wheel: dict[str, str],
) -> None:
    assert "[[export]]" in data_file(wheel, "share/man/man5/aoe-target.toml.5")


@pytest.mark.parametrize("program", ["aoe", "aoe-target"])
def test_the_wheel_installs_completions(wheel: dict[str, str], program: str) -> None:
    bash = data_file(wheel, f"share/bash-completion/completions/{program}")
    zsh = data_file(wheel, f"share/zsh/site-functions/_{program}")
    fish = data_file(wheel, f"share/fish/vendor_completions.d/{program}.fish")
    assert re.search(rf"^ *complete .* {program}$", bash, re.MULTILINE)
    assert zsh.startswith(f"#compdef {program}\n")
    assert f"complete --no-files --command {program} " in fish


def test_a_wheel_built_from_the_sdist_is_identical(built: Path, tmp_path: Path) -> None:
    (packed,) = built.glob("*.tar.gz")
    subprocess.run(["tar", "-xf", packed, "-C", tmp_path], check=True)
    (source,) = tmp_path.iterdir()
    build(source, tmp_path, "-t", "wheel")
    (again,), (wheel,) = tmp_path.glob("*.whl"), built.glob("*.whl")
    assert again.read_bytes() == wheel.read_bytes()


def test_the_sdist_contains_sources_tests_and_scripts(sdist: set[str]) -> None:
    assert modules() - sdist == set()
    assert {"LICENSE", "README.md", "pyproject.toml", "scripts/test"} <= sdist
    assert "tests/unit/test_packaging.py" in sdist
    assert {"aoe/PROTOCOL.md", "initiator/KERNEL.md"} <= sdist


def test_a_package_has_the_same_lower_bound_wherever_it_is_required() -> None:
    bounds: dict[str, set[str]] = {}
    for requirement in {each for listed in requirements().values() for each in listed}:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", requirement)
        name, _, bound = requirement.partition(">=")
        bounds.setdefault(name, set()).add(bound)
    assert {name: each for name, each in bounds.items() if len(each) > 1} == {}


def test_environments_of_the_tests_have_all_requirements() -> None:
    # scripts/venv installs pyaoe and the group dev, for scripts/versions lowest too.
    listed = requirements()
    installed = {*listed.pop("runtime"), *listed.pop("dev")}
    assert {each for other in listed.values() for each in other} - installed == set()


def test_gitignore_excludes_no_module(tmp_path: Path) -> None:
    # Common .gitignore files for Python exclude target/, and hatchling follows them.
    git("init", "--quiet", directory=tmp_path)
    listed = git("ls-files", "--others", "--exclude-standard", "-z", directory=tmp_path)
    assert modules() - set(listed) == set()


def test_links_of_the_readme_are_absolute_on_a_package_index(
    built: Path,
) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        metadata = archive.read(name).decode()
    links = re.findall(r"\]\(([^)\s]+)\)", metadata)
    assert len(links) > 10
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    (chart,) = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", metadata)
    assert chart.endswith("/main/scripts/bench.svg")
    assert "Description-Content-Type: text/markdown" in metadata
