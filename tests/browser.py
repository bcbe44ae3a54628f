"""Debian's Chromium, driven by the DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import subprocess
import tempfile
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Self

from tests.requirements import program

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT: Final = 60.0
_OPTIONS: Final = (
    # User namespaces are not allowed everywhere, and root may not use the sandbox.
    "--no-sandbox",
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--no-first-run",
    "--no-zygote",
    "--force-color-profile=srgb",
)
_MESSAGE_END: Final = b"\0"
_KEYS: Final = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "End": 35,
    "Enter": 13,
    "Escape": 27,
    "Home": 36,
}
"""Virtual key codes; a letter has that of its capital."""


class Browser:
    """A Chromium without a window, and one page in it.

    Attributes:
        problems: exceptions and errors of scripts, and requests for other files, since
            the last ``open``.
    """

    def __init__(self) -> None:
        path = program("chromium")
        self.problems: list[str] = []
        self._number = 0
        self._session = ""
        self._buffer = b""
        self._loaded = False
        self._url = ""
        with ExitStack() as stack:
            home = stack.enter_context(
                tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            )
            commands, self._out = os.pipe()
            self._in, answers = os.pipe()
            for descriptor in (self._out, self._in):
                stack.callback(os.close, descriptor)
            # Chromium reads commands from descriptor 3 and writes answers to 4.
            theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (commands, answers)]
            os.close(commands)
            os.close(answers)
            shell = f'exec "$0" "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
            self._process = subprocess.Popen(
                ["bash", "-c", shell, path, *_OPTIONS, f"--user-data-dir={home}"],
                pass_fds=theirs,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "HOME": home},
            )
            stack.callback(self._stop)
            for descriptor in theirs:
                os.close(descriptor)
            self._attach()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _attach(self) -> None:
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    # --- the protocol -------------------------------------------------------------

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + _MESSAGE_END)
        deadline = time.monotonic() + _TIMEOUT
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, deadline: float) -> dict[str, Any]:
        """Return the next message; record it if it is an event."""
        while _MESSAGE_END not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._in], [], [], left)
            assert ready, "Chromium does not respond"
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "Chromium has ended"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(_MESSAGE_END)
        message: dict[str, Any] = json.loads(line)
        self._record(message.get("method", ""), message.get("params", {}))
        return message

    def _record(self, method: str, params: dict[str, Any]) -> None:
        match method:
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                self.problems.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" | "Log.entryAdded":
                self.problems.append(str(params))
            case "Network.requestWillBeSent":
                url = params["request"]["url"].partition("#")[0]
                if url != self._url:
                    self.problems.append(f"request for {url}")

    # --- the page -----------------------------------------------------------------

    def open(self, path: Path, width: int = 1280, height: int = 720) -> None:
        """Load a file into the page, in a window of this size."""
        self.resize(width, height)
        self.problems.clear()
        self._url = path.as_uri()
        self._loaded = False
        self.call("Page.navigate", url=self._url)
        deadline = time.monotonic() + _TIMEOUT
        while not self._loaded:
            self._receive(deadline)

    def resize(self, width: int, height: int) -> None:
        """Give the page the size of a window."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", mobile=width < 500, **size)

    def run(self, script: str) -> Any:  # noqa: ANN401 - as the script returns
        """Return the value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str) -> Any:  # noqa: ANN401 - as the script returns
        """Return the value of an expression as soon as it is true."""
        deadline = time.monotonic() + _TIMEOUT
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, script
            time.sleep(0.01)
        return value

    def press(self, *keys: str) -> None:
        """Press and release keys one after another."""
        for key in keys:
            code = _KEYS.get(key) or ord(key.upper())
            text = {"text": key} if len(key) == 1 else {}
            if key == "Enter":
                text = {"text": "\r"}
            event = {"key": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)
        self._settle()

    def click(self, selector: str) -> None:
        """Click on the middle of an element."""
        where = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', inline: 'center'});"
            "const r = e.getBoundingClientRect();"
            "return {x: r.x + r.width / 2, y: r.y + r.height / 2}; })()"
        )
        button = {"button": "left", "clickCount": 1, **where}
        self.call("Input.dispatchMouseEvent", type="mousePressed", **button)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **button)
        self._settle()

    def _settle(self) -> None:
        # Scroll events are delivered before the next frame is drawn.
        frame = (
            "new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))"
        )
        self.call("Runtime.evaluate", expression=frame, awaitPromise=True)

    def screenshot(self) -> bytes:
        """Return the visible part of the page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])
