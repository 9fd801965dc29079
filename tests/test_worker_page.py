"""The page in a real browser with a real worker: drop, generate, listen, another take, cancel, reload, download."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import wave
import zipfile
from pathlib import Path

import pytest
from workers import COMMAND, STREET, until

from selva_runtime.command.deliver import DEMO_BUNDLE
from selva_worker.client import Worker, rendezvous_path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no Chromium; apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")

PROMPTS = "ball bouncing\nlamp beeping"
WAIT_MS = 30_000
IN_SYNC_MS = 40


@pytest.fixture
def process(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    options = ["--state", str(tmp_path / "state"), "--bundle", str(DEMO_BUNDLE), "--backend", "cpu", "--threads", "1"]
    with subprocess.Popen([*COMMAND, *options, "--allow", str(STREET.parent)], stderr=subprocess.DEVNULL) as process:
        until(Worker.find)
        yield process
        process.terminate()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def said(process):
    """What the browser's console said: nothing, unless a test takes it out."""
    found = []
    yield found
    assert found == []


@pytest.fixture
def page(browser, process, said):
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    place = json.loads(Path(rendezvous_path()).read_text())
    page.goto(f"http://127.0.0.1:{place['port']}/#token={place['token']}")
    page.wait_for_selector("body[data-ready]")
    assert page.url == f"http://127.0.0.1:{place['port']}/"
    yield page
    context.close()


def drop(page) -> None:
    """Drops the example on the page, as a hand does."""
    data = page.evaluate_handle(
        """async (bytes) => {
            const given = new DataTransfer();
            given.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], "street.mp4"));
            return given;
        }""",
        base64.b64encode(STREET.read_bytes()).decode(),
    )
    page.dispatch_event("#drop", "dragenter", {"dataTransfer": data})
    page.dispatch_event("#drop", "drop", {"dataTransfer": data})
    until(lambda: page.evaluate("picture.videoWidth === 256"))  # the page's policy forbids wait_for_function


def two_seconds(page, steps: int = 2) -> None:
    """Asks for two stems of the first two seconds."""
    drop(page)
    page.fill("#out-point", "2")
    page.press("#out-point", "Tab")
    page.fill("#prompts", PROMPTS)
    page.evaluate("options.open = true")
    page.fill("#steps", str(steps))


def generate(page) -> None:
    two_seconds(page)
    page.click("#generate")
    loaded(page, 2)


def loaded(page, takes: int) -> None:
    until(lambda: page.locator(".take[data-loaded]").count() == takes)


def levels(page, seconds: float) -> list[float]:
    """What the meter shows while the page plays."""
    found = []
    for _ in range(int(seconds / 0.05)):
        page.wait_for_timeout(50)
        found.append(page.evaluate("level.value"))
    return found


def jobs(page) -> list[dict]:
    worker = Worker.find()
    return [worker.get(job["id"]) for job in worker.jobs()]


def test_drop_generate_listen_take_reload_download(page, tmp_path):
    assert page.text_content("#model") == "Toy model"
    generate(page)
    (job,) = jobs(page)
    assert (job["request"]["start_s"], job["request"]["duration_s"], job["request"]["steps"]) == (0, 2, 2)
    assert page.locator(".stem h3").all_text_contents() == PROMPTS.splitlines()

    # Listen: time passes, sound flows, and the picture keeps up.
    page.click("#play")
    assert max(levels(page, 0.8)) > 0.05
    assert 0.5 < page.evaluate("picture.currentTime") < 1.5
    assert page.evaluate("!picture.paused")
    assert abs(float(page.get_attribute("#picture", "data-off-ms"))) < IN_SYNC_MS
    page.click("#play")
    assert page.evaluate("picture.paused")

    # Another take of one sound, beside the first.
    page.click(".stem[data-prompt='lamp beeping'] .again")
    loaded(page, 3)
    again = jobs(page)[-1]
    assert (again["request"]["prompts"], again["request"]["seed"]) == (["lamp beeping"], 1)
    takes = page.locator("[data-prompt='lamp beeping'] .take")
    assert takes.count() == 2
    takes.nth(1).get_by_role("button", name="Keep").click()
    takes.nth(0).get_by_role("button", name="Throw away").click()

    # A reload brings back the view, the takes and what was thought of them.
    page.reload()
    loaded(page, 3)
    assert page.input_value("#prompts") == PROMPTS
    assert page.input_value("#out-point") == "2.00"
    assert [take.get_attribute("data-mark") for take in takes.all()] == ["thrown", "kept"]
    assert page.locator("#history > li").count() == 1

    # Downloads are what the worker wrote.
    with page.expect_download() as got:
        takes.nth(1).get_by_role("button", name="as WAV").click()
    wav = Path(got.value.path()).read_bytes()
    assert wav == Path(again["result"]["stems"][0]["file"]).read_bytes()
    with wave.open(io.BytesIO(wav)) as file:
        assert file.getnframes() == 32_000
    assert page.text_content("#zip") == "ZIP of 1 kept take"
    takes.nth(1).get_by_role("button", name="Kept").click()
    with page.expect_download() as got:
        page.click("#zip")
    with zipfile.ZipFile(got.value.path()) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["ball-bouncing.wav", "lamp-beeping.wav"]
        assert archive.read("lamp-beeping.wav") == wav
    with page.expect_download() as got:
        page.get_by_role("button", name="Timeline (.otioz)").click()
    with zipfile.ZipFile(got.value.path()) as archive:
        assert "content.otio" in archive.namelist()


def test_solo_mute_and_gain_decide_what_is_heard(page):
    generate(page)
    page.check("#loop")
    page.click("#play")
    assert max(levels(page, 2)) > 0.05
    for name in ("ball bouncing", "lamp beeping"):
        page.get_by_role("button", name=f"Mute {name}").click()
    page.wait_for_timeout(200)
    assert max(levels(page, 2)) < 0.001
    page.get_by_role("button", name="Solo lamp beeping").click()  # a muted stem stays silent
    page.wait_for_timeout(200)
    assert max(levels(page, 2)) < 0.001
    page.get_by_role("button", name="Mute lamp beeping").click()
    assert max(levels(page, 2)) > 0.05
    page.locator("[data-prompt='lamp beeping'] input[type=range]").fill("-40")
    page.wait_for_timeout(200)
    assert max(levels(page, 2)) < 0.001


def test_the_picture_follows_the_sound(page):
    generate(page)
    page.click("#play")
    page.wait_for_timeout(300)
    page.evaluate("picture.currentTime += 0.15")  # as after a frame that took too long to decode
    page.evaluate("picture.pause()")  # as a browser does in a hidden tab
    page.wait_for_timeout(900)
    assert page.evaluate("!picture.paused")
    assert abs(float(page.get_attribute("#picture", "data-off-ms"))) < IN_SYNC_MS
    position = float(page.input_value("#seek"))
    assert abs(page.evaluate("picture.currentTime") - position) < 0.1
    page.evaluate("seek.value = 0.5; seek.dispatchEvent(new Event('input'))")
    page.wait_for_timeout(500)
    assert abs(float(page.get_attribute("#picture", "data-off-ms"))) < IN_SYNC_MS
    assert float(page.input_value("#seek")) < 1.5


def test_all_of_it_by_keyboard(page):
    page.focus("#path")
    page.keyboard.type(str(STREET))
    page.keyboard.press("Enter")
    until(lambda: page.evaluate("picture.videoWidth === 256"))
    page.focus("#out-range")
    page.keyboard.press("Home")
    assert page.input_value("#out-point") == "0.64"  # the least that the model takes
    page.focus("#prompts")
    page.keyboard.type("lamp beeping")
    page.keyboard.press("Control+Enter")
    loaded(page, 1)
    assert jobs(page)[0]["request"]["duration_s"] == 0.64
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("1")
    assert page.get_by_role("button", name="Solo lamp beeping").get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowRight")
    assert page.input_value("#seek") == "0.5"
    page.keyboard.press("i")
    assert page.input_value("#in-point") == "0.00"  # no room for a part that begins there
    page.keyboard.press("Space")
    assert page.evaluate("!picture.paused")
    order = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(60):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"play", "seek", "in-range", "out-range", "prompts", "generate", "zip", "Keep", "WAV"} <= set(order)


CONTRAST = """() => {
    const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (colour) => rgb(colour).slice(0, 3).map((part) => part / 255)
        .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
    const paper = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (rgb(colour)[3] !== 0) return colour;
        }
    };
    const low = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !element.checkVisibility() || element.disabled || element.closest(".quiet, .skip")) continue;
        const [a, b] = [light(getComputedStyle(element).color), light(paper(element))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) low.push(element.textContent);
    }
    return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_at_every_width_and_in_the_dark(page, scheme):
    page.emulate_media(color_scheme=scheme)
    generate(page)
    page.fill("#takes", "65")
    page.evaluate("sounds.noValidate = true")
    page.click("#generate")
    page.wait_for_selector(".job[data-state=failed]")
    for width in (1440, 800, 400):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CONTRAST) == []
    unnamed = (
        "[...document.querySelectorAll('input, textarea, button, meter, progress')].filter((e) => !e.labels?.length"
    )
    assert page.evaluate(f"{unnamed} && !e.ariaLabel && !e.textContent.trim()).map((e) => e.id)") == []


def test_cancel_and_a_failure_and_trying_again(page, tmp_path):
    two_seconds(page, steps=1000)
    page.fill("#takes", "16")
    page.click("#generate")
    page.wait_for_selector(".job progress[value]")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector(".job[data-state=cancelled]")
    page.get_by_role("button", name="Dismiss").click()
    page.fill("#takes", "17000000")
    page.evaluate("sounds.noValidate = true")
    page.click("#generate")
    page.wait_for_selector(".job[data-state=failed]")
    assert "takes" in page.text_content(".job .job-status")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".job[data-state=failed]")
    assert page.locator(".job").count() == 1
    assert "1 cancelled" in page.text_content("#history")


def test_a_worker_that_is_gone_is_told_and_stems_still_play(page, process, said):
    generate(page)
    os.kill(process.pid, signal.SIGKILL)
    page.wait_for_selector("#banner:not([hidden])")
    assert "The worker is gone" in page.text_content("#banner")
    assert page.text_content("#connection") == "Worker gone"
    page.click("#play")
    assert max(levels(page, 0.8)) > 0.05
    assert all("ERR_CONNECTION_REFUSED" in text or "ERR_INCOMPLETE_CHUNKED" in text for text in said)
    said.clear()


def test_a_page_without_its_key_says_how_to_open_it(browser, process):
    place = json.loads(Path(rendezvous_path()).read_text())
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{place['port']}/")
    page.wait_for_selector("#banner:not([hidden])")
    assert "selva-worker --open" in page.text_content("#banner")
    page.close()


def test_a_typed_path_and_one_that_is_not_allowed(page, said):
    page.fill("#path", "/etc/passwd.mp4")
    page.click("#path-form button")
    page.wait_for_selector("#film-error:not([hidden])")
    assert "outside the allowed folders" in page.text_content("#film-error")
    assert [text for text in said if "403" not in text] == []  # the browser reports each refused answer
    said.clear()
    page.fill("#path", str(STREET))
    page.click("#path-form button")
    until(lambda: page.evaluate("picture.videoWidth === 256"))
