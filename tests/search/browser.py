"""A headless Chromium that shows a page, driven through the pipe of its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Browser", "chromium"]


def chromium() -> str | None:
    """Return the path of a Chromium; None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """A headless Chromium with one page.

    Messages are JSON, each ended by a zero byte, read by the browser from descriptor 3 and written to descriptor 4
    (chromedevtools.github.io/devtools-protocol, `--remote-debugging-pipe`).
    """

    def __init__(self, program: str, profile: Path) -> None:
        to_read, write = os.pipe()
        read, to_write = os.pipe()
        # The shell puts the two ends where the browser looks for them, whatever numbers they have here.
        script = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        command = ["bash", "-c", script, program, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            command, pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self._write, self._read = os.fdopen(write, "wb", buffering=0), os.fdopen(read, "rb")
        self._numbers, self._waiting = itertools.count(1), b""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def show(self, page: Path, width: int, scheme: str, height: int = 800) -> None:
        """Open a file in a window of so many CSS pixels, in the colour scheme "light" or "dark"."""
        phone = width < 600
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self("Page.navigate", url=page.absolute().as_uri())
        while self.evaluate("document.readyState + ' ' + location.protocol") != "complete file:":
            pass

    def evaluate(self, script: str) -> Any:
        """Return what an expression of JavaScript is worth in the page."""
        found = self("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """Return the whole page as PNG."""
        return base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def close(self) -> None:
        """End the browser."""
        self._write.close()
        self._read.close()
        self._process.terminate()
        self._process.wait(timeout=20)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return what a method of the protocol answers for the page."""
        return self._call(method, self._session, **parameters)

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._write.write(json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            more = os.read(self._read.fileno(), 1 << 16)
            assert more, "the browser has ended"
            self._waiting += more
        first, _, self._waiting = self._waiting.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message
