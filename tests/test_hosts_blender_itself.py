"""The extension in Blender itself: without a window (the module `bpy`), and with one. `make test-hosts` installs both.

Each Blender does everything once, in `tests/support/hosts/`, and writes down what it saw. The tests read that.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import av
import numpy as np
import pytest
import soundfile
from clips import write_video
from workers import STREET

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "runtime" / "hosts" / "blender"))
from build import build  # noqa: E402

SCRIPTS = Path(__file__).parent / "support" / "hosts"
BPY = Path(os.environ.get("SELVA_BPY_PYTHON", ROOT / ".venv-hosts" / "bin" / "python"))
"""The Python of an environment that has `bpy`."""
WINDOW = ("blender", "xvfb-run", "xdotool", "import")
pytestmark = [pytest.mark.hosts]
needs_bpy = pytest.mark.skipif(
    not (BPY.parents[1] / "installed").exists(), reason="needs Blender's module bpy; `make test-hosts` installs it"
)
needs_window = pytest.mark.skipif(
    not all(map(shutil.which, WINDOW)), reason=f"needs {', '.join(WINDOW)}; `make test-hosts` installs them"
)


def environment(work):
    kept = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    own = {"BLENDER_USER_RESOURCES": work / "user", "XDG_STATE_HOME": work / "state", "LIBGL_ALWAYS_SOFTWARE": 1}
    return {**kept, **{name: str(value) for name, value in own.items()}, "SELVA_PYTHON": sys.executable}


def seen_by(command, work, within_s):
    given = {"env": environment(work), "capture_output": True, "text": True, "timeout": within_s}
    done = subprocess.run([*map(str, command), str(work)], check=False, **given)
    assert (work / "seen.json").exists(), done.stdout + done.stderr
    found = json.loads((work / "seen.json").read_text())
    assert "failed" not in found, found["failed"]
    return found


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("blender")


@pytest.fixture(scope="module")
def background(work):
    build(work / "selva.zip")
    with av.open(str(STREET)) as film:
        pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    write_video(work / "video.mp4", pictures, rate=24)
    return seen_by([BPY, SCRIPTS / "blender_background.py"], work, 300)


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    work = tmp_path_factory.mktemp("window")
    with ZipFile(build(work / "selva.zip")) as archive:
        archive.extractall(work / "selva")
    shutil.copy(STREET, work)
    screen = ["xvfb-run", "-a", "-s", "-screen 0 1280x800x24"]
    blender = ["blender", "--factory-startup", "--window-geometry", 0, 0, 1280, 800]
    return work, seen_by([*screen, *blender, "--python", SCRIPTS / "blender_window.py", "--"], work, 600)


def places(seen):
    return [(stem["name"], stem["channel"], stem["first"], stem["end"], stem["mute"]) for stem in seen["stems"]]


@needs_bpy
def test_stems_are_under_the_trimmed_strip_on_free_channels(background):
    """The film is at 101, its first 12 frames are cut off, and channel 3 is in use there."""
    assert background["first"]["said"] == ""
    assert places(background["first"]) == [
        ("lamp beeping (take 1)", 2, 113, 185, False),
        ("lamp beeping (take 2)", 4, 113, 185, True),
        ("ball bouncing (take 1)", 5, 113, 185, False),
        ("ball bouncing (take 2)", 6, 113, 185, True),
    ]
    record = background["first"]["stems"][1]["record"]
    assert {name: record[name] for name in ("prompt", "seed", "take", "steps", "start_s", "duration_s")} == {
        "prompt": "lamp beeping",
        "seed": 7,
        "take": 2,
        "steps": 2,
        "start_s": 0.5,
        "duration_s": 3.0,
    }


@needs_bpy
def test_the_mixdown_is_the_stem_at_its_frame(background, work):
    """Frame 113 is half a second after the mixdown's begin. Blender plays a mono sound in the middle, at -3 dB."""
    stem, rate_hz = soundfile.read(background["first"]["stems"][0]["file"])
    mixed, mixed_hz = soundfile.read(work / "mixdown.wav")
    left = mixed[:, 0] / np.sqrt(0.5)
    assert rate_hz == mixed_hz == 16000
    assert abs(stem).max() > 0.05
    apart = {shift: abs(left[8000 + shift :][: len(stem) - 9] - stem[:-9]).max() for shift in range(-8, 9)}
    best = min(apart, key=apart.get)
    assert abs(best) <= 1
    assert apart[best] < 1e-3
    assert abs(left[: 8000 + best]).max() < 1e-6
    assert abs(left[8000 + best + len(stem) :]).max() < 1e-6


@needs_bpy
def test_a_second_run_uses_the_same_worker_and_overwrites_nothing(background):
    first, second = background["first"], background["second"]
    assert (second["said"], second["pid"]) == ("", first["pid"])
    assert second["stems"][:4] == first["stems"]
    assert places(second)[4:] == [("lamp beeping", 7, 113, 185, False), ("ball bouncing", 8, 113, 185, False)]
    assert [stem["record"]["seed"] for stem in second["stems"]] == [7, 7, 7, 7, 8, 8]
    assert len(second["files"]) == 6


@needs_bpy
def test_again_with_another_seed_mutes_the_old_stem(background):
    before, after = background["again_made"], background["again"]
    assert (before["said"], after["said"]) == ("", "")
    assert places(after) == [
        *places(before)[:1],
        ("ball bouncing", 3, 113, 185, True),
        ("ball bouncing.001", 4, 113, 185, False),
    ]
    old, new = after["stems"][1]["record"], after["stems"][2]["record"]
    assert old["seed"] != new["seed"]
    assert {**old, "seed": 0} == {**new, "seed": 0}


@needs_bpy
def test_replace_changes_the_sound_of_the_strip(background):
    before, after = background["again"], background["replaced"]
    assert (after["said"], after["volume"]) == ("", 0.5)
    assert places(after) == places(before)
    assert after["stems"][1:] == before["stems"][1:]
    old, new = before["stems"][0], after["stems"][0]
    assert (Path(old["file"]).name, Path(new["file"]).name) == ("lamp-beeping.wav", "lamp-beeping-2.wav")
    assert old["record"]["seed"] != new["record"]["seed"]


@needs_bpy
def test_prompts_and_seeds_are_kept_in_the_file(background):
    assert "save the .blend file first" in background["unsaved"]
    assert background["saved"] == {"said": "", "raw": ["//stems/lamp-beeping.wav", "//stems/ball-bouncing.wav"]}
    opened = background["opened"]
    assert opened["same"]
    assert opened["prompts"] == ["lamp beeping", "ball bouncing"]
    assert opened["options"] == ["music", 1, 7, 2, "//stems"]
    assert [stem["record"]["negative"] for stem in opened["stems"]] == ["music", "music"]


@needs_bpy
def test_stems_are_as_fast_as_the_picture(background, work):
    """A film of 24 frames a second, frame by frame in a scene of 30; then one at twice its speed."""
    slow, fast = background["frame_by_frame"], background["fast"]
    assert (slow["said"], fast["said"]) == ("", "")
    assert [place[2:4] for place in places(slow)] == [(113, 185), (113, 185)]
    assert [list(place[2:4]) for place in places(fast)] == [fast["movie"], fast["movie"]] == [[107, 143], [107, 143]]
    for seen, speed, rate_hz in ((slow, 1.25, 20000), (fast, 2, 32000)):
        stem = seen["stems"][0]
        assert (stem["record"]["start_s"], stem["record"]["duration_s"], stem["record"]["speed"]) == (0.5, 3, speed)
        info = soundfile.info(stem["file"])
        assert (info.samplerate, info.frames) == (rate_hz, 48000)


@needs_bpy
def test_what_cannot_be_done_is_a_line_and_nothing_else(background):
    assert background["nothing_selected"] == "Error: no movie strip is selected"
    assert background["backwards"] == "Error: film: it plays backwards; turn that off"
    assert background["no_prompt"] == "Error: there is no prompt; add one, such as: dog barking"
    assert background["uneven"].startswith("Error: film: its speed changes;")
    full = background["no_channels"]
    assert full["said"] == "Error: film: only 29 channels are free there, for 64 stems"
    assert (full["stems"], full["files"]) == ([], 0)


@needs_bpy
def test_cancelled_without_a_trace(background):
    assert background["cancelled"] == {"said": "", "stems": [], "files": []}


@needs_bpy
def test_a_worker_that_dies_is_told_and_the_next_run_has_a_new_one(background):
    killed, after = background["killed"], background["after"]
    assert killed["said"].startswith("Error: the worker is gone (exit code -9); its log: ")
    assert killed["said"].endswith("engine.log")
    assert killed["messages"][0] == killed["said"].removeprefix("Error: ")
    assert (killed["stems"], killed["connected"]) == ([], False)
    assert (after["said"], len(after["stems"])) == ("", 2)
    assert after["pids"][0] != after["pids"][1]
    assert background["killed_idle"] == ""


@needs_bpy
def test_the_doctor_says_what_is_there_and_what_is_missing(background):
    healthy, bare = background["healthy"], background["bare"]
    assert (healthy["said"], healthy["install"]) == ("", "")
    assert healthy["lines"][0] == f"Worker: {sys.executable} -m selva_worker (from SELVA_PYTHON)"
    assert "onnxruntime" in healthy["lines"][2]
    assert "No module named" in bare["lines"][1]
    assert bare["install"] == "'/usr/bin/python3' -m pip install --upgrade 'selva-deploy[cpu]'"


@needs_bpy
def test_the_worker_leaves_with_the_extension(background):
    assert background["disabled"] == {"left": True, "gone": True}


@needs_window
def test_the_window_goes_on_while_stems_are_made(window):
    _, seen = window
    assert (seen["background"], seen["pressed"]) == (False, ["RUNNING_MODAL"])
    phases = list(dict.fromkeys(line.rpartition(" ")[0] for line in seen["told"]))
    assert phases[0] == "Starting the worker"
    assert phases[-1] == "Generating"
    assert len([line for line in seen["told"] if line.startswith("Generating")]) >= 5
    assert seen["steps"] > 20
    assert seen["longest_step_s"] < 2


@needs_window
def test_escape_cancels(window):
    _, seen = window
    cancelled = seen["cancelled"]
    assert (cancelled["stems"], cancelled["files"]) == ([], [])
    assert cancelled["after_s"] < 3


@needs_window
def test_the_window_outlives_the_worker(window):
    """Unlike the module bpy, Blender does not ignore SIGPIPE."""
    _, seen = window
    assert seen["killed"]["stems"] == []
    assert re.fullmatch(r"the worker is gone \(exit code -9\); its log: .*engine.log", seen["killed"]["messages"][0])


@needs_window
def test_stems_come_and_one_undo_takes_them_away(window):
    """The film has 25 frames a second, the scene 24: at the film's own speed, the stems need no other speed."""
    work, seen = window
    assert seen["movie"] == [113, 190, 25.0]
    assert places(seen["done"]) == [
        ("ball bouncing (take 1)", 2, 113, 190, False),
        ("ball bouncing (take 2)", 3, 113, 190, True),
        ("lamp beeping (take 1)", 4, 113, 190, False),
        ("lamp beeping (take 2)", 5, 113, 190, True),
    ]
    assert not [line for line in seen["done"]["messages"] if "the video ends" in line]
    assert soundfile.info(work / "stems" / "ball-bouncing-take1.wav").frames == round(77 / 24 * 16000)
    assert seen["undone"] == {"stems": [], "strips": 1}


@needs_window
def test_there_are_pictures_of_the_panel(window):
    work, _ = window
    for name in ("running.png", "done.png"):
        assert (work / name).stat().st_size > 50_000
