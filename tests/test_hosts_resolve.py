"""The script for Resolve, run by LuaJIT against a Resolve that has only the published API. It never ran in Resolve."""

import sys
from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("lupa.luajit21", reason="needs lupa with LuaJIT (the extra dev)")
if sys.platform == "win32":
    pytest.skip("the runner for Windows is PowerShell: not run by tests", allow_module_level=True)

from lua_hosts import Command, Resolve

FIRST = 86400
RATES = {
    "23.976": Fraction(24000, 1001),
    "24": Fraction(24),
    "25": Fraction(25),
    "29.97": Fraction(30000, 1001),
    "29.97 DF": Fraction(30000, 1001),
    "30": Fraction(30),
    "50": Fraction(50),
    "59.94 DF": Fraction(60000, 1001),
}


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path / "bin")


@pytest.fixture
def resolve(tmp_path: Path, command: Command) -> Resolve:
    (tmp_path / "scripts").mkdir()
    host = Resolve(tmp_path / "scripts")
    host.setting("command", str(command.path))
    host.setting("folder", str(tmp_path / 'it\'s a "folder" $1'))
    show(host)
    return host


def show(
    host: Resolve, rate: str = "25", fps: str = "25", start: int = FIRST + 100, frames: int = 50, offset: int = 30
):
    """Put the playhead on a clip that begins `offset` frames of the timeline into its file."""
    ratio = float(fps) / float(rate.removesuffix(" DF"))
    used, first = round(frames * ratio), round(offset * ratio)
    host.world.rate = rate
    host.world.clip("/films/street.mov", fps, start, frames, offset, first, first + used)


def option(arguments: list[str], name: str) -> list[str]:
    return [text.partition("=")[2] for text in arguments if text.startswith(f"--{name}=")]


def marker(host: Resolve, frame: int = 110):
    return host.world.markers[frame]


@pytest.mark.parametrize(("setting", "rate"), RATES.items())
def test_stems_begin_at_the_first_frame_of_the_clip(resolve, command, setting, rate):
    show(resolve, setting, setting.split()[0], frames=120, offset=1001)
    resolve.mark(219, "selva: what is asked later")
    resolve.mark(110, "selva: dog barking; footsteps, fast", "takes: 2\nseed: 7\nnegative: music")
    resolve.run()
    (arguments,) = command.asked
    assert arguments[0] == "/films/street.mov"
    assert float(option(arguments, "start")[0]) == pytest.approx(float(1001 / rate), abs=1e-6)
    assert float(option(arguments, "duration")[0]) == pytest.approx(float(120 / rate), abs=1e-6)
    assert option(arguments, "prompt") == ["dog barking", "footsteps, fast"]
    assert [option(arguments, name) for name in ("takes", "seed", "negative")] == [["2"], ["7"], ["music"]]
    names = ["dog barking", "dog barking, take 2", "footsteps, fast", "footsteps, fast, take 2"]
    assert [(name, enabled) for name, enabled, _ in resolve.tracks()] == list(
        zip(names, [True, False] * 2, strict=True)
    )
    files = [Path(clip.clip["is"].file).name for _, _, (clip,) in resolve.tracks()]
    assert files == ["0-1.wav", "0-2.wav", "1-1.wav", "1-2.wav"]
    assert {(clip.start, clip.duration) for _, _, (clip,) in resolve.tracks()} == {(FIRST + 100, 120)}
    assert [line.split(":")[0] for line in resolve.world.imported.values()] == ["SelVA"] * 4
    assert resolve.world.folder["is"].name == "Master"
    assert marker(resolve).color == "Green"
    assert marker(resolve).note.startswith("takes: 2\nseed: 7\nnegative: music\n= Done: 4 stems. for non-commercial")
    assert "the toy demo" in marker(resolve).note


def test_a_file_of_another_rate_than_the_timeline(resolve, command):
    show(resolve, "25", "50", offset=30)
    resolve.mark(110, "SelVA: rain")
    resolve.run()
    assert (option(command.asked[0], "start"), option(command.asked[0], "duration")) == (["1.200000"], ["2.000000"])


@pytest.mark.parametrize(
    ("marks", "part", "begin"),
    [
        ({"in": 120, "out": 129}, ("2.000000", "0.400000"), 120),
        ({"in": 0, "out": 109}, ("1.200000", "0.400000"), 100),
        ({"in": 140, "out": 900}, ("2.800000", "0.400000"), 140),
        ({"in": 200, "out": 900}, ("1.200000", "2.000000"), 100),
        ({"in": 0, "out": 99}, ("1.200000", "2.000000"), 100),
        ({"in": 120}, ("1.200000", "2.000000"), 100),
    ],
)
def test_in_and_out_of_the_timeline_shorten_the_clip(resolve, command, marks, part, begin):
    resolve.world.marks = resolve.lua.table_from({"video": resolve.lua.table_from(marks)})
    resolve.mark(110, "selva: rain")
    resolve.run()
    assert (option(command.asked[0], "start")[0], option(command.asked[0], "duration")[0]) == part
    assert [clip.start for _, _, (clip,) in resolve.tracks()] == [FIRST + begin]


def test_a_clip_without_a_marker_gets_one_to_fill_in(resolve, command):
    resolve.mark(100, "mine")
    resolve.mark(99, "selva: of the clip before")
    resolve.mark(150, "selva: of the clip after")
    resolve.run()
    assert marker(resolve, 101).name == "selva: "
    assert command.asked == []
    resolve.run()
    assert marker(resolve, 101).color == "Red"
    assert command.asked == []
    resolve.world.markers[101] = None
    note = "takes: 1\nseed: 0\nnegative:\n= Write the sounds after selva:"
    resolve.mark(101, "selva: rain", note)
    resolve.run()
    resolve.run()  # what was answered is no option of the next run
    assert [name for name, _, _ in resolve.tracks()] == ["rain", "rain"]
    assert marker(resolve, 101).note.count("= Done") == 1
    assert len(resolve.world.root["is"].folders) == 1


@pytest.mark.parametrize("note", ["takes: two", "seed: -1", "loudness: 3", "just words"])
def test_a_note_that_is_wrong_starts_nothing(resolve, command, note):
    resolve.mark(110, "selva: rain", note)
    resolve.run()
    assert marker(resolve).color == "Red"
    assert marker(resolve).note.startswith(note + "\n= ")
    assert command.asked == []


def test_a_speed_change_is_refused(resolve, command):
    resolve.world.clip("/films/street.mov", "25", FIRST + 100, 50, 30, 30, 130)
    resolve.mark(110, "selva: rain")
    resolve.run()
    assert "speed change" in marker(resolve).note
    assert command.asked == []


@pytest.mark.parametrize("file", [None, ""])
def test_a_clip_without_a_file_is_told(resolve, command, file):
    resolve.world.clip(file, "25", FIRST + 100, 50, 0, 0, 50)
    resolve.mark(110, "selva: rain")
    resolve.run()
    assert "no video file" in marker(resolve).note


def test_no_clip_under_the_playhead(resolve, command):
    resolve.world.item = None
    resolve.run()
    assert list(resolve.world.printed.values()) == ["SelVA: put the playhead on a video clip in the Edit page."]


def test_a_failure_is_in_the_marker_with_the_log(resolve, command):
    command.plan(error="the video cannot be read")
    resolve.mark(110, "selva: rain")
    resolve.run()
    first, log = marker(resolve).note.splitlines()
    assert first == "= the video cannot be read (exit code 2)"
    assert "the video cannot be read" in Path(log.removeprefix("= Log: ")).read_text()
    assert resolve.tracks() == []


@pytest.mark.parametrize("renamed", [False, True])
def test_removing_or_renaming_the_marker_cancels(resolve, command, tmp_path, renamed):
    command.plan(hangs=True)
    resolve.mark(110, "selva: rain")

    def waiting() -> None:
        if command.asked and not renamed:
            resolve.world.markers[110] = None
        elif command.asked:
            resolve.mark(110, "selva: wind")

    resolve.waiting = waiting
    resolve.run()
    assert list(resolve.world.printed.values())[-1] == "SelVA: cancelled."
    assert resolve.tracks() == []
    assert not list(tmp_path.rglob("*.wav"))


@pytest.mark.parametrize(
    ("refused", "words"), [("track", "no audio track"), ("import", "did not import"), ("place", "lies at frame")]
)
def test_what_resolve_refuses_is_told_with_the_folder(resolve, command, refused, words):
    resolve.world.refuses[refused] = 1
    resolve.mark(110, "selva: rain")
    resolve.run()
    assert words in marker(resolve).note
    assert "The stems are in " in marker(resolve).note


def test_stems_go_to_their_timeline_when_another_is_in_front(resolve, command):
    resolve.mark(110, "selva: rain")

    def waiting() -> None:
        resolve.world.front = 2

    resolve.waiting = waiting
    resolve.run()
    assert marker(resolve).color == "Green"
    assert len(resolve.tracks()) == 1
    assert resolve.world.front == 2


def test_a_command_that_is_missing(resolve, command):
    resolve.setting("command", "/nowhere/selva-generate")
    resolve.mark(110, "selva: rain")
    resolve.run()
    assert "pip install" in marker(resolve).note
