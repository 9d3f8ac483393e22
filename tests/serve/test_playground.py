"""The page at / in a real browser: images, models side by side, failures, and the curl command."""

import io
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.models.config import ClipConfig, TextConfig, VisionConfig
from clipmill.models.towers import build_clip
from clipmill.serve.launch import ServerProcess
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.visualization import class_palette, encode_png
from helpers.browser import PLAIN_HOST, Browser, open_browser
from helpers.faulty_proxy import Answer, FaultyProxy
from helpers.small_models import save_model

STATUS = '[...document.querySelectorAll(".status")].map((status) => status.textContent)'
ANSWERED = f'{STATUS}.length && {STATUS}.every((text) => text.startsWith("Response in"))'
SECOND = "#samples button:nth-child(2)"
CLIP = ClipConfig(
    embed_dim=16,
    vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=2, head_width=16),
    text=TextConfig(context_length=16, vocab_size=1000, width=32, heads=2, layers=2),
)
HTML = Answer(502, b"<html><h1>Bad gateway</h1></html>", {"Content-Type": "text/html"})
BUSY = Answer(503, b'{"error": "32 requests are open; try again later"}', {"Retry-After": "0"})


@pytest.fixture(scope="module")
def uris(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models of each kind, and two versions of one."""
    folder = tmp_path_factory.mktemp("kinds")
    torch.manual_seed(0)
    metadata = CheckpointMetadata(kind="clip", architecture=CLIP.to_json(), recipe={})
    save_checkpoint(str(folder / "clip"), metadata, build_clip(CLIP).state_dict())
    return {
        "seg@2": models["seg"],
        "seg@1": save_model(str(folder / "seg"), "segmentation", crop_size=32),
        "depth": models["depth"],
        "objects": save_model(str(folder / "detection"), "detection"),
        "kinds": save_model(str(folder / "classification"), "classification"),
        "clip": str(folder / "clip"),
    }


@pytest.fixture(scope="module")
def server(
    uris: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    log_path = tmp_path_factory.mktemp("server") / "server.log"
    with ServerProcess(uris, log_path=log_path) as process:
        yield process


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.url) as running:
        yield running


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    chromium.reset()
    return chromium


def overlay(browser: Browser, panel: int = 0) -> np.ndarray:
    """RGBA pixels of a panel's overlay."""
    canvas = f'document.querySelectorAll(".overlay")[{panel}]'
    width, height = browser.value(f"[{canvas}.width, {canvas}.height]")
    pixels = f'[...{canvas}.getContext("2d").getImageData(0, 0, {width}, {height}).data]'
    return np.array(browser.value(pixels), np.uint8).reshape(height, width, 4)


def colors_of(uri: str, image_HW3: np.ndarray) -> np.ndarray:
    """Colors (H, W, 3) of the classes that a model predicts."""
    return class_palette()[Predictor.open(uri).predict([image_HW3])[0]["classes"]]


def sample(number: int) -> np.ndarray:
    folder = Path(__file__).parents[2] / "src/clipmill/serve/playground"
    return np.asarray(Image.open(folder / f"sample-{number}.jpg").convert("RGB"))


def assert_no_answer(browser: Browser) -> None:
    """No part of a prediction is shown: neither overlay nor legend, scale, numbers or probe."""
    assert not browser.value(
        '[...document.querySelectorAll(".overlay, .ramp, .probe, .legend li, .facts dt")]'
        ".some((element) => element.checkVisibility())"
    )
    assert not browser.text(".reading")


def test_the_page_and_its_files_may_load_nothing_from_elsewhere(server: ServerProcess) -> None:
    folder = Path(__file__).parents[2] / "src/clipmill/serve/playground"
    files = [path.name for path in folder.iterdir() if path.suffix in {".js", ".css", ".jpg"}]
    assert {"page.js", "page.css", "sample-1.jpg"} <= set(files)
    for path in ("/", *(f"/playground/{name}" for name in files)):
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


def test_drop_an_image_see_the_mask_then_the_depth(
    browser: Browser, server: ServerProcess, uris: dict[str, str], picture: np.ndarray
) -> None:
    browser.open(f"{server.url}/#model=seg@2")
    browser.wait_for('document.querySelectorAll("#models input").length')
    browser.drop(encode_png(picture))
    browser.wait_for(ANSWERED)
    np.testing.assert_array_equal(overlay(browser)[..., :3], colors_of(uris["seg@2"], picture))
    predictor = Predictor.open(uris["seg@2"])
    classes = np.unique(predictor.predict([picture])[0]["classes"])
    assert {predictor.classes[i] for i in classes} == set(browser.text(".name").split("\n"))

    browser.click("#models input[value=depth]")
    browser.wait_for(ANSWERED)
    assert browser.is_shown(".ramp")
    browser.value('document.querySelector(".stage").focus()')
    browser.press("ArrowRight")
    meters = Predictor.open(uris["depth"]).predict([picture])[0]["depth_metres"][24, 32]
    assert browser.text(".reading") == f"{meters:.2f} meters at 32, 24"

    assert browser.requested
    assert all(
        url.startswith((server.url, "data:", "blob:", "about:")) for url in browser.requested
    )
    assert not browser.complaints


def test_objects_are_masked_boxed_and_listed(
    browser: Browser, server: ServerProcess, uris: dict[str, str], picture: np.ndarray
) -> None:
    predictor = Predictor.open(uris["objects"])
    (expected,) = predictor.predict([picture])
    shown = expected["scores"] >= 0.3
    assert shown.any()
    browser.open(f"{server.url}/#model=objects")
    browser.wait_for('document.querySelectorAll("#models input").length')
    browser.drop(encode_png(picture))
    browser.wait_for(ANSWERED)
    names = browser.text(".name").split("\n")
    assert names == [predictor.classes[label] for label in expected["labels"][shown]]
    alpha_HW = overlay(browser)[..., 3]
    assert (alpha_HW[expected["masks"][shown].any(axis=0)] == 255).all()
    boxed_HW = np.zeros((48, 64), bool)
    for x1, y1, x2, y2 in expected["boxes"][shown].astype(int):
        boxed_HW[max(0, y1 - 2) : y2 + 3, max(0, x1 - 2) : x2 + 3] = True
    assert not alpha_HW[~boxed_HW & ~expected["masks"][shown].any(axis=0)].any()
    assert not browser.complaints


def test_an_old_answer_is_never_over_a_new_image_or_model(
    browser: Browser, proxy: FaultyProxy, uris: dict[str, str]
) -> None:
    faults = proxy.faults
    browser.open(f"{proxy.url}/#model=seg@2&sample=1")
    browser.wait_for(ANSWERED)
    assert browser.is_shown(".overlay")

    faults.is_open.clear()
    browser.click(SECOND)  # the answer to it comes after that to the third
    browser.wait_for(f'{STATUS}[0].startsWith("Waiting")')
    assert_no_answer(browser)
    browser.click("#samples button:nth-child(3)")
    browser.wait_for(f'{STATUS}[0].startsWith("Waiting") && location.hash.includes("sample=3")')
    faults.is_open.set()
    browser.wait_for(ANSWERED)
    np.testing.assert_array_equal(overlay(browser)[..., :3], colors_of(uris["seg@2"], sample(3)))

    faults.next_answers = [Answer(500, b'{"error": "the model failed"}')]
    browser.click(SECOND)
    browser.wait_for(f'{STATUS}[0] === "The model failed."')
    assert_no_answer(browser)
    browser.click(".again")
    browser.wait_for(ANSWERED)

    faults.is_open.clear()
    browser.click("#models input[value=depth]")
    browser.wait_for(f'{STATUS}[0].startsWith("Waiting")')
    assert_no_answer(browser)
    assert not browser.is_shown("#fade")


def test_a_503_is_retried_once(browser: Browser, proxy: FaultyProxy) -> None:
    proxy.faults.next_answers = [BUSY._replace(headers={"Retry-After": "1"})]
    browser.open(f"{proxy.url}/#model=seg@2&sample=1")
    browser.wait_for(f'{STATUS}[0] === "The server is busy. Trying again in 1 s …"')
    browser.wait_for(ANSWERED)
    assert len(proxy.faults.predictions) == 2

    proxy.faults.next_answers = [BUSY, BUSY]
    browser.click(SECOND)
    browser.wait_for(f'{STATUS}[0] === "32 requests are open; try again later."')
    assert len(proxy.faults.predictions) == 4
    browser.click(".again")
    browser.wait_for(ANSWERED)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (HTML, "can't reach the model server"),
        (HTML._replace(status=413), "too large for the gateway"),
        (HTML._replace(status=418), "status 418 and no reason"),
        (HTML._replace(status=200), "not a PNG"),
        (Answer(400, b'{"error": "an image is 9 x 1"}'), "An image is 9 x 1."),
    ],
)
def test_failures_of_a_request_in_words(
    browser: Browser, proxy: FaultyProxy, answer: Answer, words: str
) -> None:
    proxy.faults.next_answers = [answer]
    browser.open(f"{proxy.url}/#model=seg@2&sample=1")
    browser.wait_for(f"{STATUS}[0].includes({json.dumps(words)})")
    assert_no_answer(browser)


def test_a_server_that_is_gone_in_words(browser: Browser, server: ServerProcess) -> None:
    with FaultyProxy(server.url) as proxy:
        browser.open(f"{proxy.url}/#model=seg@2")
        browser.wait_for('document.querySelectorAll("#models input").length')
    browser.drop(encode_png(sample(1)))
    browser.wait_for(f'{STATUS}[0].startsWith("The server can\'t be reached")')
    browser.click(SECOND)
    browser.wait_for('document.querySelector("#notice.failed")')
    assert "can't be reached" in browser.text("#notice")
    assert not browser.is_shown("#panels"), "the image before"


@pytest.mark.parametrize(
    ("answer", "words"),
    [(HTML, "can't reach"), (HTML._replace(status=200), "not as a clipmill server does")],
)
def test_a_list_of_models_that_fails_in_words(
    browser: Browser, proxy: FaultyProxy, answer: Answer, words: str
) -> None:
    proxy.faults.answers["/v2/models"] = answer
    browser.open(f"{proxy.url}/")
    browser.wait_for('document.querySelector("#notice.failed")')
    assert words in browser.text("#notice")
    proxy.faults.answers.clear()
    browser.click("#notice button")
    browser.wait_for('document.querySelectorAll("#models input").length === 6')


def test_models_that_go_or_change_while_the_page_is_open(
    browser: Browser, proxy: FaultyProxy
) -> None:
    answers = proxy.faults.answers
    answers["/v2/models/kinds"] = Answer(404, b'{"error": "no model"}')
    browser.open(f"{proxy.url}/#model=seg@2&sample=1")
    browser.wait_for(ANSWERED)
    assert not browser.value('Boolean(document.querySelector("input[value=kinds]"))'), (
        "went at start"
    )

    with urllib.request.urlopen(f"{proxy.url}/v2/models/seg/versions/2") as response:
        metadata: dict[str, Any] = json.loads(response.read())
    metadata["parameters"] |= {"digest": "f" * 64, "classes": ["new-0", "new-1", "new-2"]}
    answers["/v2/models/seg/versions/2"] = Answer(200, json.dumps(metadata).encode())
    browser.click(SECOND)
    browser.wait_for(ANSWERED)
    assert all(name.startswith("new-") for name in browser.text(".name").split("\n"))
    assert "digest ffffffffffff" in browser.text(".identity")

    gone = Answer(404, b'{"error": "\'depth\' is not served"}')
    browser.wait_for('document.querySelector("input[value=depth]")')
    answers["/v2/models/depth"] = answers["/v2/models/depth/infer"] = gone
    browser.click("#models input[value=depth]")
    browser.wait_for(f'{STATUS}[0] === "depth isn\'t served any more. Choose another model."')
    browser.wait_for('!document.querySelector("input[value=depth]")')
    assert_no_answer(browser)


def test_images_that_cannot_be_shown_or_sent(browser: Browser, server: ServerProcess) -> None:
    browser.open(f"{server.url}/#model=seg@2&sample=1")
    browser.wait_for(ANSWERED)
    for data, words in ((b"no picture", "not an image"), (b"", "empty")):
        browser.drop(data, "note.heic")
        browser.wait_for(
            f'document.querySelector("#notice.failed")?.textContent.includes("{words}")'
        )
        assert "note.heic" in browser.text("#notice")
        assert not browser.is_shown("#panels")
        assert browser.is_shown("#empty")
    for size in ((1, 5000), (5000, 1)):
        browser.drop(encode_png(np.zeros((*size, 3), np.uint8)))
        browser.wait_for(f'{STATUS}[0]?.includes("5000")')
        assert_no_answer(browser)
        assert browser.value("document.documentElement.scrollHeight") < 2000
        browser.click(SECOND)
        browser.wait_for(ANSWERED)


def test_empty_labels_in_words(browser: Browser, server: ServerProcess) -> None:
    browser.open(f"{server.url}/#model=clip&sample=1&labels=a ball,a box")
    browser.wait_for(ANSWERED)
    assert sorted(browser.text(".name").split("\n")) == ["a ball", "a box"]
    browser.value('document.getElementById("labels").value = " , "')
    browser.click("#zero-shot button")
    browser.wait_for(f'{STATUS}[0] === "Enter at least one label."')
    assert_no_answer(browser)
    assert not browser.is_shown("pre")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(
    "name",
    [
        "image.jpg",
        "my photo's $(touch pwned);x.jpg",
        '`touch pwned`"!!\\n%s *.png',
        "-",
        "--output",
        "Bildschirmfoto größer.png",
        "a\x03\ntouch pwned\n",
        "\x1b[201~\u0085%d\\.png",
    ],
)
def test_the_command_sends_what_the_page_sends(
    name: str,
    browser: Browser,
    proxy: FaultyProxy,
    uris: dict[str, str],
    tmp_path: Path,
) -> None:
    image_HW3 = np.random.default_rng(0).integers(0, 256, (40, 1100, 3), np.uint8)[:, ::8]
    browser.open(f"{proxy.url}/#model=seg@2")
    browser.wait_for('document.querySelectorAll("#models input").length')
    data = encode_png(image_HW3)
    browser.drop(data, name)
    browser.wait_for(ANSWERED)
    command = browser.text("pre")
    # A terminal obeys control characters even between quotes.
    assert command.replace("\n", "").isprintable()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_bytes(data)
    subprocess.run(["sh", "-euc", command], cwd=folder, check=True)
    by_page, by_curl = proxy.faults.predictions
    assert by_curl == by_page
    assert by_page.body == data
    with Image.open(folder / "seg-prediction.png") as answer:
        np.testing.assert_array_equal(answer.convert("RGB"), colors_of(uris["seg@2"], image_HW3))
    assert {path.name for path in folder.iterdir()} == {name, "seg-prediction.png"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("model", ["depth", "objects", "kinds", "clip"])
def test_the_command_fetches_a_sample(
    model: str, browser: Browser, proxy: FaultyProxy, tmp_path: Path
) -> None:
    browser.open(f"{proxy.url}/#model={model}&sample=3&labels=it's a ball,50%")
    browser.wait_for(ANSWERED)
    subprocess.run(["sh", "-euc", browser.text("pre")], cwd=tmp_path, check=True)
    by_page, by_curl = proxy.faults.predictions
    assert by_curl == by_page


def test_a_transparent_image_is_sent_as_it_is_and_shown_over_white(
    browser: Browser, proxy: FaultyProxy
) -> None:
    rgba_HW4 = np.zeros((700, 1300, 4), np.uint8)
    rgba_HW4[:, 650:] = (200, 0, 0, 255)
    data = encode_png(rgba_HW4)
    browser.open(f"{proxy.url}/#model=seg@2")
    browser.wait_for('document.querySelectorAll("#models input").length')
    browser.drop(data)
    browser.wait_for(ANSWERED)
    assert proxy.faults.predictions[0].body == data
    context = 'document.querySelector(".image").getContext("2d")'
    assert browser.value(f"[...{context}.getImageData(0, 0, 1, 1).data]") == [255, 255, 255, 255]
    assert overlay(browser).shape == (700, 1300, 4)


def test_a_photo_shows_that_it_is_read_and_needs_no_type(
    browser: Browser, server: ServerProcess, picture: np.ndarray
) -> None:
    file = io.BytesIO()
    Image.fromarray(picture).resize((4032, 3024)).save(file, "JPEG")
    browser.open(f"{server.url}/#model=seg@2")
    browser.wait_for('document.querySelectorAll("#models input").length')
    browser.value("""{
      const notice = document.getElementById("notice");
      window.said = [];
      const observer = new MutationObserver(() => said.push(notice.textContent));
      observer.observe(notice, { childList: true });
    }""")
    browser.drop(file.getvalue(), "phone", "")
    browser.wait_for(ANSWERED)
    assert browser.value("said") == ["Reading phone …", ""]
    assert browser.value("document.querySelector('.overlay').width") == 4032


def test_versions_side_by_side_by_a_link(
    browser: Browser, server: ServerProcess, uris: dict[str, str], tmp_path: Path
) -> None:
    browser.open(f"{server.url}/#sample=2")
    browser.wait_for(ANSWERED)
    browser.click("#compare")
    browser.click("#models input[value='seg@1']")
    browser.wait_for(f"{STATUS}.length === 2 && {ANSWERED}")
    link = browser.value("location.href")
    assert link == f"{server.url}/#model=seg@2&model=seg@1&sample=2"
    assert browser.is_shown("#share")

    browser.open(link)
    browser.wait_for(ANSWERED)
    assert browser.text("h2").split("\n") == ["seg@2", "seg@1"]
    expected = [colors_of(uris[key], sample(2)) for key in ("seg@2", "seg@1")]
    assert (expected[0] != expected[1]).any()
    for panel, colors_HW3 in enumerate(expected):
        np.testing.assert_array_equal(overlay(browser, panel)[..., :3], colors_HW3)
    browser.value('document.querySelector(".stage").focus()')
    browser.press("ArrowLeft")
    first, second = browser.text(".reading").split("\n")
    assert first.split(" at ")[1] == second.split(" at ")[1]

    browser.value('location.hash = "#model=depth&model=gone&sample=3"')
    browser.wait_for(f"{STATUS}.length === 1 && {ANSWERED}")
    assert browser.text("h2") == "depth"
    assert browser.text("#notice") == "The link names gone, which isn't served here."
    browser.drop(encode_png(sample(1)))
    browser.wait_for(f'{ANSWERED} && !location.hash.includes("sample")')
    assert not browser.is_shown("#share"), "the image isn't in the link"


def test_a_pasted_image_can_be_saved_for_the_command(
    browser: Browser, server: ServerProcess, picture: np.ndarray
) -> None:
    browser.open(f"{server.url}/#model=seg@2")
    browser.wait_for('document.querySelectorAll("#models input").length')
    assert browser.is_shown("#empty[for=file]"), "a click chooses a file"
    data = encode_png(picture)
    browser.drop(data, "image.png", paste=True)
    browser.wait_for(ANSWERED)
    assert browser.is_shown(".save a[download='image.png']")
    assert "@image.png" in browser.text("pre")


def test_copy_without_a_secure_context(browser: Browser, server: ServerProcess) -> None:
    browser.open(f"http://{PLAIN_HOST}:{server.http_port}/#model=clip&sample=1")
    browser.wait_for(ANSWERED)
    assert not browser.value("isSecureContext")
    command = browser.text("pre")
    browser.click_by_mouse(".copy")
    browser.wait_for('document.querySelector(".copy").textContent === "Copied"')
    browser.value('document.getElementById("labels").select()')
    browser.press("v", commands=["paste"])
    pasted = browser.value('document.getElementById("labels").value')
    assert pasted.split() == command.split()
    browser.wait_for('document.querySelector(".copy").textContent === "Copy"')


def test_behind_a_path_prefix(browser: Browser, server: ServerProcess) -> None:
    with FaultyProxy(server.url, "/serving/ns/name") as proxy:
        browser.open(f"{proxy.url}/#model=seg@2&sample=1")
        browser.wait_for(ANSWERED)
        assert f"{proxy.url}/v2/models/seg/versions/2/infer" in browser.text("pre")
        assert not browser.complaints


def test_zoom_keeps_the_place_under_the_pointer(browser: Browser, server: ServerProcess) -> None:
    browser.open(f"{server.url}/#model=seg@2&model=depth&sample=2")
    browser.wait_for(ANSWERED)
    left, top = browser.value("""(() => {
      const box = document.querySelector(".layers").getBoundingClientRect();
      return [box.left + box.width / 4, box.top + box.height / 4].map(Math.round);
    })()""")
    place = {"x": left, "y": top}

    def move(x: float, y: float, kind: str = "mouseMoved", **options: Any) -> str:
        browser.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **options)
        return browser.text(".reading")

    before = move(**place)
    assert before
    browser.send(
        "Input.dispatchMouseEvent", type="mouseWheel", deltaX=0, deltaY=-400, modifiers=2, **place
    )
    browser.wait_for('document.querySelector("[data-zoom=fit]").textContent === "400 %"')
    move(left + 1, top)
    assert move(**place) == before
    move(**place, kind="mousePressed", button="left", clickCount=1)
    move(left + 40, top + 20, button="left", buttons=1)
    move(left + 40, top + 20, kind="mouseReleased", button="left", clickCount=1)
    assert move(left + 40, top + 20) == before, "dragged along"
    browser.value('document.querySelector(".stage").focus()')
    browser.press("0")
    assert browser.text("[data-zoom=fit]") == "100 %"
    browser.press("+")
    assert browser.text("[data-zoom=fit]") == "200 %"


def test_no_opacity_where_nothing_is_drawn(browser: Browser, server: ServerProcess) -> None:
    browser.open(f"{server.url}/#model=kinds&sample=1")
    browser.wait_for(ANSWERED)
    assert not browser.is_shown("#fade")
    browser.click("#models input[value=depth]")
    browser.wait_for(ANSWERED)
    assert browser.is_shown("#fade")


def test_all_controls_have_names(browser: Browser, server: ServerProcess) -> None:
    browser.open(f"{server.url}/#model=seg@2&model=clip&sample=1")
    browser.wait_for(ANSWERED)
    browser.send("Accessibility.enable")
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    focusable = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", []))
    ]
    assert len(focusable) > 15
    assert not [role for role, name in focusable if not name and role != "generic"]
    assert [name for role, name in focusable if role == "application"] == [
        f"Image with the prediction of {key}. Arrow keys move the probe point, plus and minus zoom."
        for key in ("seg@2", "clip")
    ]
    assert ("checkbox", "seg, version 1") in focusable


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
    browser.open(f"{server.url}/#model=depth&model=clip&sample=2")
    browser.wait_for(ANSWERED)
    assert browser.value("document.documentElement.scrollWidth") <= 375
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert max(int(n) for n in background[4:-1].split(",")) < 64
