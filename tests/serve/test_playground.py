"""The page at / in a real browser: a sample, a dropped file, keys, and what it may load."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from clipmill.serve.launch import ServerProcess
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.visualization import class_palette, encode_png
from helpers.small_models import save_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def test_the_page_and_its_files_may_load_nothing_from_elsewhere(server: ServerProcess) -> None:
    for path in ("/", "/playground/page.js", "/playground/page.css", "/playground/sample-1.jpg"):
        with urllib.request.urlopen(server.url + path, timeout=30) as response:
            policy = response.headers["Content-Security-Policy"]
            body = response.read()
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert b"http://" not in body
        assert b"https://" not in body
    for name in ("nothing.js", "..%2F__init__.py", "__init__.py"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{server.url}/playground/{name}", timeout=30)


class Browser:
    """A page of a real Chromium, over the DevTools protocol."""

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

    def value(self, expression: str) -> Any:
        found = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        return found["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            value = self.value(expression)
            if value:
                return value
            time.sleep(0.05)
        pytest.fail(f"{expression} never came true: {self.value('document.body.innerText')}")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium isn't installed")
    command = [CHROMIUM, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={tmp_path}"]
    with subprocess.Popen(
        [*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            port_file = tmp_path / "DevToolsActivePort"
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


_DROP = """(() => {
  const bytes = Uint8Array.from(atob(%s), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "mine.png", { type: "image/png" }));
  const stage = document.getElementById("stage");
  stage.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
})()"""
_PIXELS = """[...document.getElementById("answer").getContext("2d")
  .getImageData(0, 0, 64, 48).data].filter((_, index) => index %% 4 < 3)""".replace("%%", "%")
_RESPONDED = 'document.getElementById("status").textContent.startsWith("Response in")'


def test_drop_an_image_see_the_mask_then_the_depth(
    browser: Browser,
    server: ServerProcess,
    picture: np.ndarray,
    predictors: dict[str, Predictor],
) -> None:
    browser.send("Page.navigate", url=f"{server.url}/?model=seg")
    browser.wait_for('document.querySelectorAll("#models input").length === 2')
    browser.value(_DROP % json.dumps(base64.b64encode(encode_png(picture)).decode()))
    browser.wait_for(_RESPONDED)
    classes_HW = predictors["seg"].predict([picture])[0]["classes"]
    shown = np.array(browser.value(_PIXELS), np.uint8).reshape(48, 64, 3)
    np.testing.assert_array_equal(shown, class_palette()[classes_HW])
    legend = browser.value('document.getElementById("legend").innerText')
    assert all(predictors["seg"].classes[i] in legend for i in np.unique(classes_HW))
    assert f"{server.url}/v2/models/seg/infer?output=png" in browser.value(
        'document.getElementById("curl").textContent'
    )

    browser.value('document.querySelector("#models input[value=depth]").click()')
    browser.wait_for(f'{_RESPONDED} && !document.getElementById("scale").hidden')
    press(browser, "ArrowRight")
    reading = browser.wait_for('document.getElementById("reading").textContent')
    meters = predictors["depth"].predict([picture])[0]["depth_meters"][24, 32]
    assert reading == f"{np.float16(meters):.2f} meters at 32, 24"

    assert browser.requested
    assert all(url.startswith((server.url, "data:", "blob:")) for url in browser.requested)
    assert not browser.complaints


def press(browser: Browser, key: str) -> None:
    browser.value('document.getElementById("stage").focus()')
    for kind in ("keyDown", "keyUp"):
        browser.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)


def test_a_sample_on_a_phone_in_the_dark(browser: Browser, server: ServerProcess) -> None:
    browser.send(
        "Emulation.setDeviceMetricsOverride",
        width=375,
        height=800,
        deviceScaleFactor=1,
        mobile=True,
    )
    browser.send(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    browser.send("Page.navigate", url=f"{server.url}/?model=depth&sample=2")
    browser.wait_for(_RESPONDED)
    assert browser.value("document.documentElement.scrollWidth") <= 375
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert max(int(n) for n in background[4:-1].split(",")) < 64


def test_a_file_that_is_no_image_is_refused(browser: Browser, server: ServerProcess) -> None:
    browser.send("Page.navigate", url=server.url)
    browser.wait_for('document.querySelectorAll("#models input").length === 2')
    browser.value(_DROP % json.dumps(base64.b64encode(b"no picture").decode()))
    browser.wait_for('document.getElementById("status").textContent.includes("not an image")')
    assert not browser.value('!document.getElementById("answer").hidden')


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Predictor]]:
    """A server of a detection model whose random weights are sure of what they see."""
    folder = tmp_path_factory.mktemp("detector")
    uri = save_model(str(folder / "model"), "detection")
    with ServerProcess({"objects": uri}, log_path=folder / "server.log") as process:
        yield process, Predictor.open(uri)


def test_objects_are_masked_boxed_and_listed(
    browser: Browser, detector: tuple[ServerProcess, Predictor], picture: np.ndarray
) -> None:
    server, predictor = detector
    (found,) = predictor.predict([picture])
    shown = found["scores"] >= 0.3
    assert shown.any()
    browser.send("Page.navigate", url=server.url)
    browser.wait_for('document.querySelectorAll("#models input").length === 1')
    browser.value(_DROP % json.dumps(base64.b64encode(encode_png(picture)).decode()))
    browser.wait_for(_RESPONDED)
    legend = browser.value('document.getElementById("legend").innerText').split("\n")
    names = [line for line in legend if line in predictor.classes]
    assert names == [predictor.classes[label] for label in found["labels"][shown]]
    opaque = """[...document.getElementById("answer").getContext("2d")
      .getImageData(0, 0, 64, 48).data].filter((_, index) => index % 4 === 3)"""
    alpha_HW = np.array(browser.value(opaque), np.uint8).reshape(48, 64)
    assert (alpha_HW[found["masks"][shown].any(axis=0)] == 255).all()
    boxed_HW = np.zeros((48, 64), bool)
    for x1, y1, x2, y2 in found["boxes"][shown].astype(int):
        boxed_HW[max(0, y1 - 2) : y2 + 3, max(0, x1 - 2) : x2 + 3] = True
    assert not alpha_HW[~boxed_HW & ~found["masks"][shown].any(axis=0)].any()
    assert "output=rle" in browser.value('document.getElementById("curl").textContent')
    assert not browser.complaints
