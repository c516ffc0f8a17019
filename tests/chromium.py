"""A real browser for tests: finds Chromium or Chrome, and drives it over the pipe of the DevTools protocol.

No package is needed: commands and events are JSON with a zero byte behind each, on file descriptors 3 and 4
(https://chromedevtools.github.io/devtools-protocol/). `python tests/chromium.py` installs one where there is none.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chromium-headless-shell")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
INSTALLERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "apt-get": (("apt-get", "update", "-q"), ("apt-get", "install", "-q", "-y", "--no-install-recommends", "chromium")),
    "dnf": (("dnf", "install", "-q", "-y", "chromium"),),
    "apk": (("apk", "add", "-q", "chromium", "font-dejavu"),),
    "pacman": (("pacman", "-Sy", "--noconfirm", "chromium"),),
}
"""Package manager → the commands that install Chromium, as root."""

HELP = (
    "the tests of the page need a browser: install Chromium or Chrome (Debian: apt-get install chromium), "
    "or name one in the variable CHROME"
)


_LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Puts two file descriptors, whatever their numbers, where the browser looks for its pipe, and becomes the browser."""


def find() -> str | None:
    """The browser to use: the one that the variable CHROME names, else the first that is installed."""
    named = os.environ.get("CHROME")
    found = [shutil.which(name) for name in ((named,) if named else (*NAMES, *PLACES))]
    return next((path for path in found if path), None)


def install() -> None:
    """Install a browser with the system's package manager, where there is none. Raises SystemExit when it can't."""
    if find():
        return
    manager = next((name for name in INSTALLERS if shutil.which(name)), None)
    if manager is None or os.geteuid() != 0:
        raise SystemExit(HELP)
    for command in INSTALLERS[manager]:
        done = subprocess.run(
            command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, stdout=sys.stderr, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed; {HELP}")
    if not find():
        raise SystemExit(HELP)


class Browser:
    """A headless browser, in a profile of its own. Use `with`; `open` gives pages."""

    def __init__(self) -> None:
        path = find()
        assert path, HELP
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        options = (
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe",
            f"--user-data-dir={self._profile.name}",
        )  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(commands), str(answers), path, *options, "about:blank"],
            pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._number, self._buffer = 0, b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.call("Browser.close")
        finally:
            os.close(self._out)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            os.close(self._in)
            self._profile.cleanup()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command; events that come meanwhile are kept in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read(60)
            assert answer is not None, f"the browser did not answer {method}"
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]  # type: ignore[no-any-return]
            self.events.append(answer)

    def read(self, seconds: float) -> dict[str, Any] | None:
        """The next message, or None when none came in time."""
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], seconds)[0]:
                return None
            part = os.read(self._in, 1 << 20)
            assert part, "the browser has gone"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)  # type: ignore[no-any-return]

    def open(self, path: Path, width: int = 1200, height: int = 900, dark: bool = False) -> Page:
        """A new page that shows a file, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=path.resolve().as_uri())
        page.wait("document.readyState === 'complete' && location.protocol === 'file:'")
        return page


class Page:
    """A page in the browser: clicks, keys and what it shows."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command to this page."""
        return self._browser.call(method, self._session, **parameters)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives; fails when it throws."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, f"{expression}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Until a JavaScript condition holds; fails when it doesn't in time."""
        end = time.monotonic() + seconds
        while not self.value(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never came true: {condition}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """The text that an element shows."""
        return str(self.value(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Click an element's middle with the mouse, as a user does: it must be visible and nothing may lie on it."""
        self.value(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        x, y, hit = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}), r = e.getBoundingClientRect();"
            "const x = r.x + r.width / 2, y = r.y + r.height / 2, at = document.elementFromPoint(x, y);"
            "return [x, y, e === at || e.contains(at)]; })()"
        )
        assert hit, f"{selector} can't be clicked: something lies on it"
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def type(self, selector: str, text: str) -> None:
        """Click into a field, and write in it in place of what was there."""
        self.click(selector)
        self.value(f"document.querySelector({json.dumps(selector)}).select()")
        if text:
            self.call("Input.insertText", text=text)
        else:
            self.press("Delete")

    def press(self, key: str) -> None:
        """Press and release a key, such as Enter or ArrowRight."""
        text = {"Enter": "\r", " ": " "}.get(key)
        codes = {"Enter": 13, "Delete": 46, "Escape": 27, "Tab": 9}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, 0)}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Save what the page looks like as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def problems(self) -> list[str]:
        """Errors, exceptions, and every request but that of the page itself."""
        self.value("1")
        rules: dict[str, Callable[[dict[str, Any]], str | None]] = {
            "Runtime.exceptionThrown": lambda p: str(p["exceptionDetails"]),
            "Runtime.consoleAPICalled": lambda p: str(p["args"]) if p["type"] in ("error", "warning") else None,
            "Log.entryAdded": lambda p: p["entry"]["text"] if p["entry"]["level"] == "error" else None,
            "Network.requestWillBeSent": lambda p: (
                None if p["type"] == "Document" else f"request: {p['request']['url']}"
            ),
        }
        own = [e for e in self._browser.events if e.get("sessionId") == self._session and e["method"] in rules]
        return [found for e in own if (found := rules[e["method"]](e["params"])) is not None]


def main(arguments: Sequence[str] = ()) -> int:
    """Install a browser where there is none."""
    install()
    return 0


if __name__ == "__main__":
    sys.exit(main())
