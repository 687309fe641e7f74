"""A real browser that a test can look into and act in, over Chromium's own debugging protocol."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

BROWSER_SECONDS = 120
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def chromium() -> str:
    """The browser's program."""
    found = shutil.which("chromium")
    assert found, "chromium is not installed: apt-get install chromium (make test installs it when run as root)"
    return found


class Tab:
    """One page; `problems` collects what its scripts threw."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.problems: list[str] = []
        self.command("Runtime.enable")
        self.command("Page.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol and wait for its answer."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(BROWSER_SECONDS))
            if message.get("method") == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(message["params"])[:500])
            if message.get("id") == self._number:
                found: dict[str, Any] = message["result"]
                return found

    def value(self, expression: str) -> Any:
        """What a JavaScript expression (or the promise it gives) comes to."""
        answer = self.command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        """Go to an address."""
        self.command("Page.navigate", url=url)

    def wait(self, expression: str) -> Any:
        """The first value of an expression that is true; it may be asked for before the page is there."""
        deadline = time.monotonic() + BROWSER_SECONDS
        while time.monotonic() < deadline:
            answer = self.command("Runtime.evaluate", expression=expression, returnByValue=True)
            found = answer["result"].get("value")
            if found and "exceptionDetails" not in answer:
                return found
            time.sleep(0.05)
        raise AssertionError(f"{expression} never became true; the page says: {self.value('document.body.innerText')}")


@contextlib.contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A browser with one empty page; gone at the end of the block."""
    program = [chromium(), *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as browser:
        try:
            assert browser.stderr is not None
            address = next(
                found[1] for line in browser.stderr if (found := re.search(r"DevTools listening on (ws://\S+)", line))
            )
            with connect(address, max_size=None) as socket:
                socket.send(json.dumps({"id": 0, "method": "Target.getTargets"}))
                targets = json.loads(socket.recv(BROWSER_SECONDS))["result"]["targetInfos"]
            page = next(target["targetId"] for target in targets if target["type"] == "page")
            with connect(f"{address.partition('/devtools')[0]}/devtools/page/{page}", max_size=None) as socket:
                yield Tab(socket)
        finally:
            browser.kill()
