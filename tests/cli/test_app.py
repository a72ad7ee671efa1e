"""`lookupvit app`: what the page shows, without a browser; and the page itself in Chromium, where that is installed."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookupvit import load_model
from lookupvit.analysis.cascade.cascade import Cascade
from lookupvit.analysis.cost import count_macs
from lookupvit.analysis.explorer import Explorer
from lookupvit.cli.app import exhibits, look
from lookupvit.cli.main import main

LEGACY = Path(__file__).parents[1] / "legacy"
LOOKUPVIT, VIT = str(LEGACY / "classification.ckpt"), str(LEGACY / "vit.ckpt")


@pytest.fixture
def picture(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def cascade_file(path: Path, threshold: float) -> str:
    Cascade(((1, 1), (2, 2)), (threshold,)).save(path)
    return str(path)


def test_a_picture_gets_the_models_own_answers(picture):
    shown = exhibits([LOOKUPVIT, VIT])
    scores, lines, maps, vit_scores, vit_lines, vit_map, budgets = look(shown, picture, side=2, block=1)
    model = load_model(LOOKUPVIT)
    pixels = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1) / 255  # of the model's size: no resize
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = model(((pixels - mean) / std)[None], compressed_size=(2, 2)).detach().softmax(dim=1)[0]
    for name, score in scores.items():
        assert score == pytest.approx(float(expected[model.class_names.index(name)]), abs=1e-5)
    assert list(scores.values()) == sorted(scores.values(), reverse=True) and len(scores) == len(vit_scores) == 5
    counted = count_macs(model, compressed_size=(2, 2)) / 1e9
    assert f"**2x2**, **{counted:.3f} GMACs**" in lines and re.search(r"\*\*[0-9.]+ ms\*\*", lines)
    assert "plain ViT" in vit_lines
    assert all(image.width > 100 and image.height > 100 for image in (maps, vit_map, budgets))


def test_the_slider_and_the_block_change_what_is_drawn(picture):
    shown = exhibits([LOOKUPVIT])
    drawn = [np.array(look(shown, picture, side, block)[2]) for side, block in ((2, 1), (2, 2), (3, 2))]
    assert drawn[0].shape == drawn[1].shape and (drawn[0] != drawn[1]).any()
    assert "**6x6**" in look(shown, picture, side=99, block=99)[1]  # at most the lookup grid and the last block


def test_the_cascades_way_is_that_of_predict(picture, tmp_path):
    (sure,) = exhibits([LOOKUPVIT], cascade_file(tmp_path / "sure.json", 0.0))
    (unsure,) = exhibits([LOOKUPVIT], cascade_file(tmp_path / "unsure.json", 1.0))
    image, _ = sure.tensors(picture)
    for exhibit, stages in ((sure, 1), (unsure, 2)):
        explorer = exhibit.explorer
        way, gmacs = explorer.cascade_way(image)
        logits, stage = explorer.cascade.predict(explorer.model, image[None], explorer.head)
        assert len(way) == stages == int(stage) + 1
        assert way[-1].name == explorer.class_names[int(logits.argmax())]
        alone = explorer.answer(image, (1, 1)).gmacs
        assert gmacs == pytest.approx(alone) if stages == 1 else gmacs > alone
    assert " → " in look([unsure], picture, 1, 1)[1] and " → " not in look([sure], picture, 1, 1)[1]
    with pytest.raises(ValueError, match="has no cascade"):
        Explorer(sure.explorer.model, "alone", sure.explorer.class_names).cascade_way(image)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["no.ckpt"], "no.ckpt"),
        ([str(LEGACY / "video.ckpt")], "is of VideoTask: the app shows classifiers of images"),
        ([LOOKUPVIT, "--port", "0"], "--port"),
        ([VIT, "--cascade", "CASCADE"], "no compressed tokens"),
    ],
)
def test_mistakes_are_one_line(argv, message, tmp_path, capsys):
    pytest.importorskip("gradio")
    argv = [cascade_file(tmp_path / "c.json", 0.5) if value == "CASCADE" else value for value in argv]
    assert main(["app", *argv]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lookupvit")]
    assert message in line


def test_without_gradio_the_remedy_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", LOOKUPVIT]) == 2
    assert "pip install 'lookupvit[app]'" in capsys.readouterr().err


@pytest.fixture
def served():
    """The command in a process of its own, and the address that it prints."""
    pytest.importorskip("gradio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(LEGACY.parents[1]), *sys.path[1:]])}
    command = [sys.executable, "-m", "lookupvit", "app", LOOKUPVIT, VIT, "--port", str(port)]
    # Ctrl-C is ignored where these tests run in the background, and a child inherits that
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=heard)
    line = process.stdout.readline()
    yield port, line
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=20)
    finally:
        process.kill()


@pytest.fixture
def chromium(tmp_path):
    """A headless browser that asks nobody but this machine."""
    selenium = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--window-size=1400,1000", f"--user-data-dir={tmp_path / 'profile'}",
                     "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):  # fmt: skip
        options.add_argument(argument)
    started = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield started
    started.quit()


def wait(condition, seconds: float = 40.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError("the page did not change in time")


def test_the_page_in_a_browser(served, chromium, picture):
    port, line = served
    assert line == f"the page is at http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
    if hosts := subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split():
        with socket.socket() as other:  # another address of this machine does not answer
            assert other.connect_ex((hosts[0], port)) != 0
    chromium.get(f"http://127.0.0.1:{port}/")

    def text(name: str) -> str:
        found = chromium.find_elements("id", name)
        return found[0].text if found else ""

    upload = wait(lambda: chromium.find_elements("css selector", "#picture input[type=file]"))
    upload[0].send_keys(picture)
    wait(lambda: "GMACs" in text("lines0") and "GMACs" in text("lines1"))
    (exhibit, other) = exhibits([LOOKUPVIT, VIT])
    side = max(exhibit.explorer.model.compressed_size)
    scores = look([exhibit], picture, side, exhibit.explorer.model.depth)[0]
    assert next(iter(scores)) in text("answer0") and f"{round(100 * next(iter(scores.values())))}%" in text("answer0")
    assert f"{side}x{side}" in text("lines0") and "plain ViT" in text("lines1")
    assert chromium.find_elements("css selector", "#map0 img") and chromium.find_elements(
        "css selector", "#budgets img"
    )
    slider = chromium.find_element("css selector", "#side input[type=range]")
    slider.send_keys("\ue012")  # the left arrow: one size smaller
    chromium.execute_script("arguments[0].dispatchEvent(new PointerEvent('pointerup', {bubbles: true}))", slider)
    wait(lambda: f"{side - 1}x{side - 1}" in text("lines0"))
    smaller = look([exhibit], picture, side - 1, exhibit.explorer.model.depth)[0]
    wait(lambda: next(iter(smaller)) in text("answer0"))
    errors = [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [entry for entry in errors if "127.0.0.1" in entry["message"] and "favicon" not in entry["message"]]
