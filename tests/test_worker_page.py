"""The page in a real browser with a real worker: drop, generate, listen, another take, cancel, reload, download."""

import base64
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import wave
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from workers import COMMAND, STREET, until

from selva_runtime.command.deliver import DEMO_BUNDLE
from selva_worker.client import Worker, rendezvous_path
from selva_worker.page.opening import open_page, running_page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no Chromium; apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")

PROMPTS = "ball bouncing\nlamp beeping"
WAIT_MS = 30_000
IN_SYNC_MS = 40


@contextmanager
def started(tmp_path: Path) -> Iterator[subprocess.Popen]:
    options = ["--state", str(tmp_path / "state"), "--bundle", str(DEMO_BUNDLE), "--backend", "cpu", "--threads", "1"]
    command = [*COMMAND, *options, "--allow", str(STREET.parent), "--allow", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            until(Worker.find)
            yield process
        finally:
            process.terminate()


@pytest.fixture
def process(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    with started(tmp_path) as process:
        yield process


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
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
    visit(page)
    yield page
    context.close()


def visit(page) -> None:
    place = json.loads(Path(rendezvous_path()).read_text())
    page.goto(f"http://127.0.0.1:{place['port']}/#token={place['token']}")
    page.wait_for_selector("body[data-ready]")
    assert page.url == f"http://127.0.0.1:{place['port']}/"


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


def levels(page, seconds: float, until_above: float = 2) -> list[float]:
    """What the meter shows while the page plays."""
    found = [0.0]
    for _ in range(int(seconds / 0.05)):
        if found[-1] <= until_above:
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

    def heard() -> bool:
        """Whether there is any sound in one round of the loop."""
        page.wait_for_timeout(200)
        return any(level > 0.05 for level in levels(page, 2.1, until_above=0.05))

    def press(name: str) -> None:
        page.get_by_role("button", name=name).click()

    assert heard()
    press("Mute lamp beeping")
    assert heard()  # the ball
    press("Solo lamp beeping")  # a muted stem stays silent, and so does the ball
    assert not heard()
    press("Mute lamp beeping")
    assert heard()
    page.locator("[data-prompt='lamp beeping'] input[type=range]").fill("-40")
    assert not heard()


OFF = """
globalThis.worstOffMs = 0;
new MutationObserver(() => worstOffMs = Math.max(worstOffMs, Math.abs(picture.dataset.offMs)))
    .observe(picture, { attributeFilter: ["data-off-ms"] });
"""
"""Remembers how far the picture was off: it may be back between two looks."""


def test_the_picture_follows_the_sound(page):
    def in_sync() -> bool:
        return abs(float(page.get_attribute("#picture", "data-off-ms") or "inf")) < IN_SYNC_MS

    two_seconds(page)
    page.click("#whole")
    page.click("#generate")
    loaded(page, 2)
    page.click("#play")
    until(lambda: page.evaluate("picture.currentTime") > 0.6)
    page.evaluate(OFF)
    page.evaluate("picture.currentTime -= 0.4")  # the slower this is, the further behind is the picture
    until(lambda: page.evaluate("worstOffMs") > IN_SYNC_MS, within_s=5)
    page.evaluate("picture.pause()")  # as a browser does in a hidden tab
    until(in_sync, within_s=5)
    until(lambda: page.evaluate("!picture.paused"), within_s=5)
    assert page.evaluate("Math.abs(picture.currentTime - seek.value)") < 0.1
    page.evaluate("seek.value = 0.5; seek.dispatchEvent(new Event('input'))")
    page.wait_for_timeout(200)
    until(in_sync, within_s=5)
    assert float(page.input_value("#seek")) < 3


LISTEN = """
const Real = AudioContext;
globalThis.AudioContext = class extends Real {
    createAnalyser() {
        const meter = super.createAnalyser();
        globalThis.heard = this;
        globalThis.spy = new AnalyserNode(this, { fftSize: 4096 });
        meter.connect(spy);
        return meter;
    }
};"""
"""Hears what the page sends to the loudspeaker."""
MEET = """(loud) => new Promise((resolve) => {
    const frames = [], onsets = [], samples = new Float32Array(4096);
    const saw = (now, frame) => {
        frames.push([frame.expectedDisplayTime, frame.mediaTime]);
        picture.requestVideoFrameCallback(saw);
    };
    picture.requestVideoFrameCallback(saw);
    play.click();
    let quiet = 0;
    const timer = setInterval(() => {
        if (!globalThis.spy) return;
        const [now, at] = [performance.now(), heard.currentTime];
        spy.getFloatTimeDomainData(samples);
        samples.forEach((sample, index) => {
            if (Math.abs(sample) < loud) return;
            const time = at - (samples.length - index) / heard.sampleRate;
            if (time > quiet) onsets.push(now - 1000 * (at - time - heard.outputLatency));
            quiet = Math.max(quiet, time + 0.15);
        });
    }, 5);
    setTimeout(() => { clearInterval(timer); resolve([frames, onsets]); }, 4000);
})"""
"""Times at which frames are shown and sounds begin, both on the clock of the page."""
LOUD = 0.03


def test_sounds_are_heard_with_their_frames(page):
    page.add_init_script(LISTEN)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    drop(page)
    page.fill("#prompts", "ball bouncing")
    page.click("#generate")
    loaded(page, 1)
    audio, rate_hz = soundfile.read(jobs(page)[0]["result"]["stems"][0]["file"])
    loud_s = np.flatnonzero(np.abs(audio) > LOUD) / rate_hz
    begins_s = loud_s[np.diff(loud_s, prepend=-1) > 0.15]
    frames, heard_ms = page.evaluate(MEET, LOUD)
    assert len(heard_ms) == len(begins_s) > 2
    ahead_ms = []
    for now_ms, begin_s in zip(heard_ms, begins_s, strict=True):
        shown_ms, media_s = min(frames, key=lambda frame: abs(frame[0] - now_ms))
        ahead_ms.append(1000 * (media_s - begin_s) + now_ms - shown_ms)
    assert abs(np.median(ahead_ms)) < IN_SYNC_MS, ahead_ms


def test_all_of_it_by_keyboard(page):
    page.focus("#path")
    page.keyboard.type(str(STREET))
    page.keyboard.press("Enter")
    until(lambda: page.evaluate("picture.videoWidth === 256"))
    page.focus("#out-range")
    page.keyboard.press("Home")
    assert page.input_value("#out-point") == "0.64"  # the least that the model takes
    page.keyboard.press("End")
    page.evaluate("document.activeElement.blur()")
    for key in ("ArrowRight", "i", "ArrowRight", "ArrowRight", "o"):
        page.keyboard.press(key)
    assert (page.input_value("#in-point"), page.input_value("#out-point")) == ("0.50", "1.50")
    page.focus("#prompts")
    page.keyboard.type("lamp beeping")
    page.keyboard.press("Control+Enter")
    loaded(page, 1)
    asked = jobs(page)[0]["request"]
    assert (asked["start_s"], asked["duration_s"]) == (0.5, 1)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("1")
    assert page.get_by_role("button", name="Solo lamp beeping").get_attribute("aria-pressed") == "true"
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


def test_it_can_be_read_at_every_width_and_in_the_dark(page):
    generate(page)
    page.fill("#takes", "65")
    page.evaluate("sounds.noValidate = true")
    page.click("#generate")
    page.wait_for_selector(".job[data-state=failed]")
    for scheme, width in itertools.product(("light", "dark"), (1440, 800, 400)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CONTRAST) == [], scheme
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


def test_a_worker_that_is_gone_is_told_and_its_history_is_not_lost(page, process, said, tmp_path):
    generate(page)
    page.get_by_role("button", name="Keep").first.click()
    until((tmp_path / "state" / "page" / "marks.json").exists)
    os.kill(process.pid, signal.SIGKILL)
    page.wait_for_selector("#banner:not([hidden])")
    assert "The worker is gone" in page.text_content("#banner")
    assert page.text_content("#connection") == "Worker gone"
    assert page.is_disabled("#generate")
    page.click("#play")  # what is loaded can be heard
    assert max(levels(page, 0.8)) > 0.05
    process.wait()
    assert all("ERR_CONNECTION_REFUSED" in text or "ERR_INCOMPLETE_CHUNKED" in text for text in said)
    with started(tmp_path):
        visit(page)
        said.clear()  # of the time between the two
        page.get_by_role("button", name="Open street.mp4").click()
        loaded(page, 2)
        assert page.input_value("#prompts") == PROMPTS
        assert page.input_value("#out-point") == "2.00"
        assert page.locator(".take[data-mark=kept]").count() == 1
        shutil.rmtree(tmp_path / "state" / "page" / "videos")
        page.reload()
        loaded(page, 2)  # without the picture
        assert "is not there any more" in page.text_content("#no-picture")
        page.click("#play")
        assert max(levels(page, 0.8)) > 0.05
        assert [text for text in said if "404" not in text] == []
        said.clear()
        page.close()


def test_a_video_that_the_browser_cannot_show_gets_its_stems(page, tmp_path):
    film = tmp_path / "old.avi"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, width=64, height=64)
        for _ in range(30):
            container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    page.set_input_files("#file", film)
    page.wait_for_selector("#no-picture:not([hidden])")
    assert "cannot show this video" in page.text_content("#no-picture")
    page.fill("#prompts", "lamp beeping")
    page.evaluate("options.open = true")
    page.fill("#steps", "2")
    page.click("#generate")
    loaded(page, 1)
    page.click("#play")
    assert page.get_attribute("#play", "aria-label") == "Pause"
    levels(page, 0.5)
    assert float(page.input_value("#seek")) > 0.2
    drop(page)  # another video has other stems
    loaded(page, 0)
    assert page.is_visible("#mix-empty")
    page.get_by_role("button", name="Open old.avi").click()
    loaded(page, 1)


def test_copying_can_be_stopped(page, said, tmp_path):
    page.route("**/v1/page/videos/**", lambda route: None)  # it never ends
    page.set_input_files("#file", STREET)
    page.click("#upload-cancel")
    page.wait_for_selector("#uploading", state="hidden")
    assert page.is_hidden("#stage")
    page.unroute("**/v1/page/videos/**")
    drop(page)


def test_the_file_that_the_browser_gets_leads_to_the_page(browser, process, monkeypatch):
    given = []
    monkeypatch.setattr("webbrowser.open", given.append)
    open_page(running_page())
    page = browser.new_page()
    page.goto(given[0])
    page.wait_for_selector("body[data-ready]")
    assert page.url.startswith("http://127.0.0.1:")
    assert "token" not in page.url
    page.close()


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
