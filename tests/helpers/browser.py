"""A page of a real Chromium, over the DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PLAIN_HOST = "clipmill.test"
"""Name of this machine in the browser: unlike localhost, no secure context without TLS."""
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {PLAIN_HOST} 127.0.0.1",
]
_EVENT = """(() => {
  const bytes = Uint8Array.from(atob(%s), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], %s, { type: %s }));
  const options = { bubbles: true, cancelable: true };
  document.body.dispatchEvent(%s
    ? new ClipboardEvent("paste", { clipboardData: data, ...options })
    : new DragEvent("drop", { dataTransfer: data, ...options }));
})()"""


class Browser:
    """A page, its requests, and the errors in its console."""

    def __init__(self, connection: ClientConnection) -> None:
        self._socket = connection
        self._number = 0
        self.requested: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("method") == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            if message.get("method") in {"Log.entryAdded", "Runtime.exceptionThrown"}:
                self.complaints.append(json.dumps(message["params"]))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])

    def reset(self) -> None:
        """Empty the page, and forget what was requested and said."""
        self.send("Page.navigate", url="about:blank")
        self.send("Emulation.clearDeviceMetricsOverride")
        self.send("Emulation.setEmulatedMedia", features=[])
        self.requested.clear()
        self.complaints.clear()

    def open(self, url: str) -> None:
        """Load a page; one that differs in its fragment alone is loaded too."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        response = self.send(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        return response["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            value = self.value(
                f"Promise.resolve({expression}).then((it) => it instanceof Node || it)"
            )
            if value:
                return value
            time.sleep(0.05)
        pytest.fail(f"{expression} never came true: {self.value('document.body.innerText')}")

    def text(self, selector: str) -> str:
        """Text of all elements that match, on a line each."""
        query = f"document.querySelectorAll({json.dumps(selector)})"
        return str(self.value(f'[...{query}].map((element) => element.textContent).join("\\n")'))

    def is_shown(self, selector: str) -> bool:
        return bool(
            self.value(
                f"document.querySelector({json.dumps(selector)})?.checkVisibility() ?? false"
            )
        )

    def click(self, selector: str) -> None:
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def click_by_mouse(self, selector: str) -> None:
        """Click as a person does, which lets the page copy."""
        left, top = self.value(f"""(() => {{
          const element = document.querySelector({json.dumps(selector)});
          element.scrollIntoView();
          const {{ left, top }} = element.getBoundingClientRect();
          return [left + 5, top + 5];
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            options = {"x": left, "y": top, "button": "left", "clickCount": 1}
            self.send("Input.dispatchMouseEvent", type=kind, **options)

    def drop(
        self, data: bytes, name: str = "mine.png", kind: str = "image/png", *, paste: bool = False
    ) -> None:
        """Drop a file on the page, or paste it."""
        values = (base64.b64encode(data).decode(), name, kind, paste)
        self.value(_EVENT % tuple(json.dumps(value) for value in values))

    def press(self, key: str, **options: Any) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, **text, **options)


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty page; the test is skipped where Chromium isn't installed."""
    if CHROMIUM is None:
        pytest.skip("chromium isn't installed")
    command = [CHROMIUM, *_FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    with subprocess.Popen(
        [*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            port_file = profile / "DevToolsActivePort"
            deadline = time.monotonic() + 60
            while not (port_file.exists() and port_file.read_text().count("\n")):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            port = int(port_file.read_text().splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=30) as response:
                (page,) = [t for t in json.loads(response.read()) if t["type"] == "page"]
            with connect(page["webSocketDebuggerUrl"], max_size=None) as connection:
                yield Browser(connection)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
