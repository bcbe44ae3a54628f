"""What a repository promises outside of its code, and would break without a test."""

from __future__ import annotations

import re
import subprocess
import tomllib
from datetime import date
from pathlib import Path

import pytest

from scripts.release import date_section, set_version

CHECKOUT = Path(__file__).resolve().parents[2]
PYPROJECT = (CHECKOUT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(PYPROJECT)
CHANGELOG = (CHECKOUT / "CHANGELOG.md").read_text()
HOOKS = (CHECKOUT / ".pre-commit-config.yaml").read_text()
WORKFLOWS = sorted((CHECKOUT / ".github/workflows").glob("*.yml"))
DOCUMENTS = [*sorted((CHECKOUT / ".github").rglob("*.md")), CHECKOUT / "CHANGELOG.md"]
FORMS = [
    CHECKOUT / ".github/ISSUE_TEMPLATE" / name for name in ("bug.yml", "feature.yml")
]
SMALL_CHANGELOG = (
    "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- This.\n\n"
    "## [0.1.0] - 2026-11-25\n\n- That.\n\n"
    "[Unreleased]: https://host/p/compare/v0.1.0...HEAD\n"
    "[0.1.0]: https://host/p/releases/tag/v0.1.0\n"
)

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def classified_pythons() -> list[str]:
    """Return the minor versions of Python that the classifiers name."""
    prefix = "Programming Language :: Python :: "
    names = [name.removeprefix(prefix) for name in PROJECT["project"]["classifiers"]]
    return [name for name in names if re.fullmatch(r"3\.\d+", name)]


def matrix_pythons() -> list[str]:
    """Return the minor versions of Python in the matrix of the CI workflow."""
    text = (CHECKOUT / ".github/workflows/ci.yml").read_text()
    (matrix,) = re.findall(r"^ +python: \[(.*)\]$", text, re.MULTILINE)
    # Without quotes, YAML reads 3.10 as 3.1.
    versions: list[str] = re.findall(r'"(3\.\d+)"', matrix)
    assert len(versions) == matrix.count(",") + 1
    return versions


def lower_bounds(requirements: list[str] | str) -> dict[str, tuple[int, ...]]:
    """Return each requirement's lower bound, or its only version, by its name."""
    text = "\n".join(requirements) if isinstance(requirements, list) else requirements
    found = re.findall(r"([\w-]+)(?:>=|==)([\d.]+)", text)
    return {name: tuple(map(int, bound.split("."))) for name, bound in found}


def released() -> list[str]:
    """Return the versions that have a dated section, newest first."""
    return re.findall(
        r"^## \[([\d.abrc]+)\] - \d{4}-\d\d-\d\d$", CHANGELOG, re.MULTILINE
    )


def check_message(directory: Path, message: str) -> subprocess.CompletedProcess[str]:
    """Run the hook for commit messages."""
    path = directory / "COMMIT_EDITMSG"
    path.write_text(message)
    return subprocess.run(
        [CHECKOUT / "scripts/commit_msg", path],
        capture_output=True,
        text=True,
        check=False,
    )


def test_ci_runs_every_python_that_is_classified() -> None:
    assert matrix_pythons() == classified_pythons()


def test_the_oldest_python_is_the_one_that_is_required() -> None:
    assert PROJECT["project"]["requires-python"] == f">={classified_pythons()[0]}"


def test_the_pythons_are_consecutive() -> None:
    minors = [int(version.partition(".")[2]) for version in classified_pythons()]
    assert minors == [*range(minors[0], minors[-1] + 1)]


def test_ci_runs_the_script_of_ci() -> None:
    text = (CHECKOUT / ".github/workflows/ci.yml").read_text()
    assert re.search(r"^ +/srv/pyaoe/\.ci/run'$", text, re.MULTILINE)
    assert (CHECKOUT / ".ci/run").is_file()


@each_workflow
def test_workflows_have_few_permissions_and_an_end(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"^permissions:\n  contents: read\n\n", text, re.MULTILINE)
    assert re.search(r"^concurrency:\n", text, re.MULTILINE)
    jobs = re.findall(r"^    runs-on: ", text, re.MULTILINE)
    assert len(jobs) == len(
        re.findall(r"^    timeout-minutes: \d+$", text, re.MULTILINE)
    )


@each_workflow
def test_actions_are_pinned(path: Path) -> None:
    used = re.findall(r"uses: (\S+)", path.read_text())
    assert [name for name in used if not re.search(r"@(release/)?v\d+$", name)] == []


def test_hooks_use_no_older_tools_than_the_gate() -> None:
    wanted = lower_bounds(PROJECT["dependency-groups"]["lint"])
    # mypy runs in the project's environment; if it is ever listed, the same holds.
    hooks = [
        (name, bound)
        for requirements in re.findall(r"additional_dependencies: \[(.*)\]", HOOKS)
        for name, bound in lower_bounds(requirements).items()
        if name in wanted
    ]
    assert "ruff" in dict(hooks)
    assert [name for name, bound in hooks if bound < wanted[name]] == []


def test_hooks_run_all_tools_of_the_gate() -> None:
    gate = (CHECKOUT / "scripts/check").read_text()
    for tool in ("ruff check", "ruff format", "mypy"):
        assert tool in gate
        assert re.search(rf"^ +entry: .*\b{tool}\b", HOOKS, re.MULTILINE)


def test_hooks_need_nothing_but_pypi() -> None:
    assert set(re.findall(r"repo: (\S+)", HOOKS)) == {"local"}


def test_hooks_leave_captures_and_golden_files_alone() -> None:
    (pattern,) = re.findall(r"^exclude: (.*)$", HOOKS, re.MULTILINE)
    golden = [path.relative_to(CHECKOUT) for path in CHECKOUT.glob("tests/golden/*")]
    assert golden
    assert [path for path in golden if not re.search(pattern, str(path))] == []


def test_the_changelog_has_a_place_for_the_next_release() -> None:
    sections = re.findall(r"^## \[(.*?)\]", CHANGELOG, re.MULTILINE)
    assert sections == ["Unreleased", *released()]


def test_the_version_is_that_of_the_newest_release() -> None:
    assert PROJECT["project"]["version"] == released()[0]


def test_every_section_of_the_changelog_has_its_link() -> None:
    repository = PROJECT["project"]["urls"]["Source"]
    links = dict(re.findall(r"^\[(.*?)\]: (\S+)$", CHANGELOG, re.MULTILINE))
    assert [*links] == ["Unreleased", *released()]
    assert links["Unreleased"] == f"{repository}/compare/v{released()[0]}...HEAD"
    assert all(link.startswith(f"{repository}/") for link in links.values())


def test_the_project_has_one_address() -> None:
    repository = PROJECT["project"]["urls"]["Source"]
    assert all(
        url.startswith(repository) for url in PROJECT["project"]["urls"].values()
    )
    owner = repository.rpartition("/")[0]
    for path in [*DOCUMENTS, *FORMS]:
        found = set(re.findall(rf"{owner}/[\w-]+", path.read_text()))
        assert found <= {repository}


@each_document
def test_links_lead_to_files_that_are_there(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)\s#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


@each_document
def test_scripts_and_tests_that_are_named_are_there(path: Path) -> None:
    named = re.findall(
        r"`(?:\./|sudo )?((?:\.ci|scripts|tests)/[\w/.-]+)", path.read_text()
    )
    assert [name for name in named if not (CHECKOUT / name).exists()] == []


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_have_different_ids(path: Path) -> None:
    ids = re.findall(r"^    id: (.*)$", path.read_text(), re.MULTILINE)
    assert len(ids) == len(set(ids)) > 1


def test_a_bug_report_asks_for_what_is_needed() -> None:
    text = FORMS[0].read_text()
    for wanted in (
        *("aoe --version", "uname -a", "MTU", "NIC", "--pcap"),
        *("aoe doctor --json", "aoe-target doctor --json"),
    ):
        assert wanted in text


def test_vulnerabilities_are_reported_in_private() -> None:
    private = f"{PROJECT['project']['urls']['Source']}/security/advisories/new"
    for path in ("SECURITY.md", "ISSUE_TEMPLATE/config.yml", "ISSUE_TEMPLATE/bug.yml"):
        assert private in (CHECKOUT / ".github" / path).read_text()


@pytest.mark.parametrize(
    "message",
    [
        "Announce the size\n\nClients kept the old one.\n",
        "x" * 72 + "\n\nWhy.\n",
        "ü" * 72 + "\n\nWhy.\n",
        "\n# a comment\nAnnounce the size\n# another\n\nWhy.\n",
        "Merge branch 'main' into topic\n",
        'Revert "Announce the size"\n\nThis reverts commit 1.\n',
        "fixup! Announce the size\n",
        f"Announce the size\n\nWhy.\n# {'-' * 24} >8 {'-' * 24}\ndiff\n",
    ],
)
def test_a_good_commit_message_passes(tmp_path: Path, message: str) -> None:
    done = check_message(tmp_path, message)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("", "message: empty. Write a subject and a body"),
        ("# only a comment\n", "message: empty. Write a subject and a body"),
        (
            "x" * 73 + "\n\nWhy.\n",
            "subject: 73 characters. Shorten it to 72, the body has room",
        ),
        (
            "Announce the size.\n\nWhy.\n",
            "subject: ends with a full stop. Remove it",
        ),
        (
            "Announce\nthe size\n",
            "line 2: not empty. Put an empty line between subject and body",
        ),
        (
            "Announce the size\n",
            "body: missing. Add a paragraph that says why the change is made",
        ),
        (
            "Announce the size\n\nSigned-off-by: A <a@example.org>\n",
            "body: missing. Add a paragraph that says why the change is made",
        ),
    ],
)
def test_a_bad_commit_message_is_refused_with_a_fix(
    tmp_path: Path, message: str, error: str
) -> None:
    done = check_message(tmp_path, message)
    assert (done.returncode, done.stderr) == (1, f"commit_msg: {error}\n")


def test_the_hook_works_as_a_symbolic_link(tmp_path: Path) -> None:
    link, message = tmp_path / "commit-msg", tmp_path / "message"
    link.symlink_to(CHECKOUT / "scripts/commit_msg")
    message.write_text("Announce the size\n\nWhy.\n")
    subprocess.run([link, message], check=True)


def test_a_release_dates_the_unreleased_section() -> None:
    assert date_section(SMALL_CHANGELOG, "0.2.0", date(2027, 1, 2)) == (
        "# Changelog\n\n## [Unreleased]\n\n"
        "## [0.2.0] - 2027-01-02\n\n### Added\n\n- This.\n\n"
        "## [0.1.0] - 2026-11-25\n\n- That.\n\n"
        "[Unreleased]: https://host/p/compare/v0.2.0...HEAD\n"
        "[0.2.0]: https://host/p/compare/v0.1.0...v0.2.0\n"
        "[0.1.0]: https://host/p/releases/tag/v0.1.0\n"
    )


def test_a_release_of_nothing_is_refused() -> None:
    text = date_section(SMALL_CHANGELOG, "0.2.0", date(2027, 1, 2))
    with pytest.raises(ValueError, match="no entries"):
        date_section(text, "0.3.0", date(2027, 1, 3))


def test_a_release_that_exists_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.1\.0 is released already"):
        date_section(SMALL_CHANGELOG, "0.1.0", date(2027, 1, 2))


def test_a_release_without_a_link_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="no link"):
        date_section(SMALL_CHANGELOG.replace("compare", "x"), "0.2.0", date(2027, 1, 2))


def test_a_release_changes_one_line_of_pyproject() -> None:
    changed = set_version(PYPROJECT, "9.9.9")
    assert tomllib.loads(changed)["project"]["version"] == "9.9.9"
    pairs = zip(PYPROJECT.splitlines(), changed.splitlines(), strict=True)
    assert len([1 for old, new in pairs if old != new]) == 1


def test_a_pyproject_without_a_version_is_refused() -> None:
    with pytest.raises(ValueError, match="0 lines"):
        set_version("[project]\n", "9.9.9")
