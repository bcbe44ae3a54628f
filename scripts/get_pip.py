"""Install pip into a virtual environment whose Python lacks ensurepip.

Debian packages ensurepip separately, in python3-venv, and installing that needs root.
This script downloads a wheel of pip, which can install itself. Run it with the Python
of the environment. It uses the index that pip is configured for (``PIP_INDEX_URL``, or
``index-url`` in a configuration file), else PyPI. An index with a password is not
supported.
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
    """A wheel of pip; sorts by version."""

    version: tuple[int, ...]
    name: str
    url: str


class IndexPage(HTMLParser):
    """A parser of an index page that collects the wheels this Python can run."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.wheels: list[Wheel] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Add the link of a final release that is not yanked."""
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
    """Return a setting of pip, from its environment variable or configuration files."""
    files = configparser.RawConfigParser()
    home = Path.home()
    paths = [
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        home / ".config/pip/pip.conf",
    ]
    if "PIP_CONFIG_FILE" in os.environ:
        paths = [Path(os.environ["PIP_CONFIG_FILE"])]
    files.read(paths)
    value = files.get("global", name, fallback=default)
    value = files.get("install", name, fallback=value)
    return os.environ.get(f"PIP_{name.upper().replace('-', '_')}", value)


def download(url: str) -> bytes:
    """Download a URL; index pages as HTML.

    Raises:
        ValueError: the SHA-256 in the URL's fragment does not match.
    """
    opener = build_opener(
        HTTPSHandler(context=ssl.create_default_context(cafile=setting("cert") or None))
    )
    opener.addheaders = [("Accept", "application/vnd.pypi.simple.v1+html, */*;q=0.1")]
    address, fragment = urldefrag(url)
    with opener.open(address, timeout=60) as response:
        content: bytes = response.read()
    expected = fragment.removeprefix("sha256=")
    if expected != fragment and hashlib.sha256(content).hexdigest() != expected:
        raise ValueError(f"{address}: the checksum differs from that of the index")
    return content


def newest_wheel(index: str) -> Wheel:
    """Return the newest release of pip on the index that supports this Python.

    Raises:
        ValueError: there is none.
    """
    url = f"{index.rstrip('/')}/pip/"
    page = IndexPage(url)
    # For a directory, a web server would return index.html.
    inside = "index.html" if url.startswith("file:") else ""
    page.feed(download(url + inside).decode())
    if not page.wheels:
        raise ValueError("no pip for this Python")
    return max(page.wheels)


def main() -> None:
    """Download the newest pip, and let it install itself."""
    if sys.prefix == sys.base_prefix:
        sys.exit("get_pip: run it with the Python of a virtual environment")
    index = setting("index-url", PYPI)
    try:
        wheel = newest_wheel(index)
        content = download(wheel.url)
    except (OSError, ValueError, HTTPException) as error:
        sys.exit(f"get_pip: cannot download pip from {index}: {error}. {FIX}")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, wheel.name)
        path.write_bytes(content)
        install = ["install", "--quiet", "--no-index", str(path)]
        subprocess.run([sys.executable, f"{path}/pip", *install], check=True)


if __name__ == "__main__":
    main()
