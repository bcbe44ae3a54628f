"""Give pip to a virtual environment whose Python came without ensurepip.

Debian packs ensurepip apart from Python, and installing that takes root. A wheel of pip
is enough: pip runs from inside it and installs it. Run this with the environment's own
Python. The index is the one that pip is configured for (``PIP_INDEX_URL`` or
``index-url`` in its configuration files), else PyPI. An index that wants a password
is beyond it.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import ssl
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urldefrag, urljoin, urlsplit
from urllib.request import HTTPSHandler, build_opener

PYPI = "https://pypi.org/simple"
FIX = "Or install ensurepip with: apt install python3-venv"
WHEEL = re.compile(r"pip-(\d+(?:\.\d+)*)-py3-none-any\.whl")


class Wheel(NamedTuple):
    """A wheel of pip; the newest is the greatest."""

    version: tuple[int, ...]
    name: str
    url: str


class IndexPage(HTMLParser):
    """The wheels of pip on an index's page that this Python can run."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.wheels: list[Wheel] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the link of a final release that was not withdrawn."""
        found = dict(attrs)
        url = urljoin(self.base, found.get("href") or "")
        name = Path(urlsplit(url).path).name
        match = WHEEL.fullmatch(name)
        needs = re.findall(r">=\s*3\.(\d+)", found.get("data-requires-python") or "")
        too_new = any(sys.version_info < (3, int(minor)) for minor in needs)
        if tag == "a" and match and not too_new and "data-yanked" not in found:
            version = tuple(int(part) for part in match[1].split("."))
            self.wheels.append(Wheel(version, name, url))


def setting(name: str, default: str = "") -> str:
    """One of pip's settings: from its environment variable, else from its files."""
    files = configparser.RawConfigParser()
    home = Path.home()
    places = [
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        home / ".config/pip/pip.conf",
    ]
    if "PIP_CONFIG_FILE" in os.environ:
        places = [Path(os.environ["PIP_CONFIG_FILE"])]
    files.read(places)
    value = files.get("global", name, fallback=default)
    value = files.get("install", name, fallback=value)
    return os.environ.get(f"PIP_{name.upper().replace('-', '_')}", value)


def fetch(url: str) -> bytes:
    """Return what is at the URL, a page preferably as HTML.

    Raises:
        ValueError: the URL carries a SHA-256 and the content has another.
    """
    opener = build_opener(
        HTTPSHandler(context=ssl.create_default_context(cafile=setting("cert") or None))
    )
    opener.addheaders = [("Accept", "application/vnd.pypi.simple.v1+html, */*;q=0.1")]
    address, fragment = urldefrag(url)
    with opener.open(address, timeout=60) as answer:
        content: bytes = answer.read()
    expected = fragment.removeprefix("sha256=")
    if expected != fragment and hashlib.sha256(content).hexdigest() != expected:
        raise ValueError(f"{address} does not have the checksum that the index gives")
    return content


def newest_wheel(index: str) -> Wheel:
    """Return the newest release of pip that the index has for this Python.

    Raises:
        ValueError: it has none.
    """
    url = f"{index.rstrip('/')}/pip/"
    page = IndexPage(url)
    # A directory on disk has its page where a web server would look for it.
    inside = "index.html" if url.startswith("file:") else ""
    page.feed(fetch(url + inside).decode())
    if not page.wheels:
        raise ValueError("it has no pip for this Python")
    return max(page.wheels)


def main() -> None:
    """Fetch the newest pip and let it install itself."""
    if sys.prefix == sys.base_prefix:
        sys.exit("get_pip: run it with the Python of a virtual environment")
    index = setting("index-url", PYPI)
    try:
        wheel = newest_wheel(index)
        content = fetch(wheel.url)
    except (OSError, ValueError, HTTPException) as error:
        sys.exit(f"get_pip: cannot fetch pip from {index}: {error}. {FIX}")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, wheel.name)
        path.write_bytes(content)
        install = ["install", "--quiet", "--no-index", str(path)]
        subprocess.run([sys.executable, f"{path}/pip", *install], check=True)


if __name__ == "__main__":
    main()
