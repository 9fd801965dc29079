"""The script for REAPER, run by Lua 5.4 against a REAPER that has only the published API. It never ran in REAPER."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("lupa", reason="needs lupa (the extra dev)")
if sys.platform == "win32":
    pytest.skip("the runner for Windows is PowerShell: not run by tests", allow_module_level=True)

from lua_hosts import Command, Reaper

ONE = ("dog barking", "", "1", "0")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path / "bin")


@pytest.fixture
def reaper(tmp_path: Path, command: Command) -> Reaper:
    host = Reaper(tmp_path / "media")
    host.world.settings["selva/command"] = str(command.path)
    return host


def option(arguments: list[str], name: str) -> list[str]:
    return [text.partition("=")[2] for text in arguments if text.startswith(f"--{name}=")]


def part(arguments: list[str]) -> tuple[float, float]:
    """Begin and length of what was asked for, in seconds of the file."""
    return float(option(arguments, "start")[0]), float(option(arguments, "duration")[0])


def test_stems_lie_below_the_item_at_its_position_in_one_undo_step(reaper, command):
    reaper.movie("/films/street.mp4", length_s=10.0, at_s=101.5, item_s=4.0, D_STARTOFFS=2.25)
    reaper.movie("/films/other.mp4", length_s=1.0)  # a track below
    reaper.world.selected[2] = None
    reaper.run("dog barking; footsteps", "music", "2", "7")
    (arguments,) = command.asked
    assert arguments[0] == "/films/street.mp4"
    assert part(arguments) == (2.25, 4.0)
    assert option(arguments, "prompt") == ["dog barking", "footsteps"]
    assert option(arguments, "negative") == ["music"]
    tracks = list(reaper.tracks())
    assert [name for name, _ in tracks] == ["picture", "dog barking", "footsteps", "picture"]
    for name, (item,) in tracks[1:3]:
        assert (item["values"].D_POSITION, item["values"].D_LENGTH, item["values"].B_LOOPSRC) == (101.5, 4.0, 0)
        takes = list(item.takes.values())
        assert [take.name for take in takes] == [f"{name}, take {take}, seed 7" for take in (1, 2)]
        assert [Path(take.source.file).name[1:] for take in takes] == ["-1.wav", "-2.wav"]
        assert item.active.name == takes[0].name
        assert item.notes == "for non-commercial research"
    assert [(step.name, len(step.tracks)) for step in reaper.world.undo.values()] == [("SelVA stems", 2)]
    assert reaper.world.refresh == 0
    assert not reaper.world.window
    assert reaper.messages == []
    assert list(reaper.world.console.values()) == ["SelVA stems\nthe toy demo\n"]
    assert 40047 in reaper.world.commands.values()


def test_a_worker_is_tried_first(reaper, command):
    reaper.movie("/films/street.mp4", length_s=4.0)
    reaper.run(*ONE)
    assert ["--worker" in arguments for arguments in command.asked] == [True]
    command.plan(worker=False, slow=True)
    reaper.run(*ONE)
    assert ["--worker" in arguments for arguments in command.asked] == [True, True, False]
    assert [name for name, _ in reaper.tracks()] == ["picture", "dog barking", "dog barking"]


def test_a_play_rate_stretches_the_stem_as_it_does_the_picture(reaper, command):
    reaper.movie("/films/street.mp4", length_s=10.0, at_s=3.0, item_s=2.0, D_STARTOFFS=1.0, D_PLAYRATE=1.5, B_PPITCH=0)
    reaper.run(*ONE)
    assert part(command.asked[-1]) == (1.0, 3.0)
    (_, (item,)) = list(reaper.tracks())[1]
    assert (item["values"].D_POSITION, item["values"].D_LENGTH) == (3.0, 2.0)
    assert (item.takes[1]["values"].D_PLAYRATE, item.takes[1]["values"].B_PPITCH) == (1.5, 0)


def test_an_item_that_begins_before_its_video_and_goes_on_after_it(reaper, command):
    reaper.movie("/films/street.mp4", length_s=4.0, at_s=10.0, item_s=6.0, D_STARTOFFS=-1.0, D_PLAYRATE=2.0)
    reaper.run(*ONE)
    assert part(command.asked[-1]) == (0.0, 4.0)
    (_, (item,)) = list(reaper.tracks())[1]
    assert (item["values"].D_POSITION, item["values"].D_LENGTH) == (10.5, 2.0)


def test_an_item_that_loops_its_video_gets_the_first_pass(reaper, command):
    item = reaper.movie("/films/street.mp4", length_s=4.0, item_s=9.0, D_STARTOFFS=5.5)
    item["values"].B_LOOPSRC = 1
    reaper.run(*ONE)
    assert part(command.asked[-1]) == (1.5, 2.5)


def test_sections_of_sections_are_found_in_the_file(reaper, command):
    item = reaper.movie("/films/street.mp4", length_s=20.0, item_s=9.0, D_STARTOFFS=0.5)
    file = item.takes[1].source
    inner = reaper.world.source("SECTION", "", 8.0, reaper.lua.table_from({"parent": file, "offset_s": 5.0}))
    outer = reaper.world.source("SECTION", "", 30.0, reaper.lua.table_from({"parent": inner, "offset_s": 2.0}))
    item.takes[1].source = outer
    reaper.run(*ONE)
    assert command.asked[-1][0] == "/films/street.mp4"
    assert part(command.asked[-1]) == (7.5, 5.5)
    file.length_s = 10.0  # the file ends before its sections
    reaper.run(*ONE)
    assert part(command.asked[-1]) == (7.5, 2.5)


def make_reversed(reaper, item):
    section = reaper.lua.table_from({"parent": item.takes[1].source, "offset_s": 0.0, "reverse": True})
    item.takes[1].source = reaper.world.source("SECTION", "", 4.0, section)


def set_values(reaper, item):
    item.takes[1]["values"].D_STARTOFFS = 5.0


def unselect(reaper, item):
    reaper.world.selected[1] = None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda reaper, item: setattr(item.takes[1].source, "type", "WAVE"), "no video"),
        (lambda reaper, item: setattr(item.takes[1].source, "type", "MIDI"), "no video"),
        (lambda reaper, item: setattr(item, "active", None), "no video"),
        (lambda reaper, item: setattr(item.takes[1], "markers", 1), "stretch markers"),
        (make_reversed, "reversed"),
        (set_values, "behind the end"),
        (unselect, "Select one video item"),
    ],
    ids=["audio", "midi", "empty", "stretch", "reversed", "behind", "none"],
)
def test_what_has_no_usable_video_is_one_message(reaper, command, change, words):
    change(reaper, reaper.movie("/films/street.mp4", length_s=4.0))
    reaper.run(*ONE)
    (message,) = reaper.messages
    assert words in message
    assert command.asked == []
    assert reaper.world.asked is None


def test_prompts_reach_the_command_letter_by_letter(reaper, command):
    prompts = ['it\'s "loud" $HOME `id` \\', "Tür, 猫 — 100 %", "-x --out=/etc & | > < ! ^"]
    reaper.movie('/films/it\'s a "film" $1 ü.mp4', length_s=4.0)
    reaper.run(" ;".join(prompts) + " ; ;", "", "1", "0")
    assert option(command.asked[-1], "prompt") == prompts
    assert command.asked[-1][0] == '/films/it\'s a "film" $1 ü.mp4'
    assert [name for name, _ in reaper.tracks()][1:] == prompts


def test_the_dialog_has_what_was_asked_last_in_this_project(reaper):
    reaper.movie("/films/street.mp4", length_s=4.0)
    reaper.run("rain, heavy; wind", "music", "", "7")
    reaper.run()
    assert reaper.world.asked["values"] == "rain, heavy; wind\nmusic\n1\n7"
    assert reaper.world.asked.number == 4
    assert reaper.world.asked.captions.count(",") == 5


@pytest.mark.parametrize("answers", [(), (" ; ", "", "1", "0"), ("dog", "", "two", "0"), ("dog", "", "1", "-1")])
def test_a_dialog_that_asks_for_nothing_starts_nothing(reaper, command, answers):
    reaper.movie("/films/street.mp4", length_s=4.0)
    reaper.run(*answers)
    assert len(reaper.messages) == bool(answers)
    assert command.asked == []


def test_a_failure_is_shown_once_with_the_log(reaper, command):
    command.plan(error="the video cannot be read")
    reaper.movie("/films/street.mp4", length_s=4.0)
    reaper.run(*ONE)
    (message,) = reaper.messages
    first, log = message.split("\nLog: ")
    assert first == "the video cannot be read (exit code 2)"
    assert "error: the video cannot be read" in Path(log).read_text()
    assert [name for name, _ in reaper.tracks()] == ["picture"]
    assert not list(reaper.world.undo.values())


@pytest.mark.parametrize("report", ["", "[1, 2", '{"stems": [}', "[" * 40])
def test_a_report_that_is_none_is_a_failure(reaper, command, report):
    command.plan(report=report)
    reaper.movie("/films/street.mp4", length_s=4.0)
    reaper.run(*ONE)
    assert "report cannot be read" in reaper.messages[0]


def test_a_stem_that_reaper_cannot_open_leaves_the_project_alone(reaper, command, tmp_path):
    stems = [{"prompt": "dog", "take": 1, "seed": 0, "file": str(tmp_path / "gone.wav"), "duration_s": 1.0}]
    command.plan(report=json.dumps({"stems": stems, "notice": ""}))
    reaper.movie("/films/street.mp4", length_s=4.0)
    reaper.run(*ONE)
    assert "cannot open" in reaper.messages[0]
    assert [name for name, _ in reaper.tracks()] == ["picture"]


@pytest.mark.parametrize("how", [27, -1, "quit"])
def test_cancelling_ends_the_command_and_changes_nothing(reaper, command, tmp_path, how):
    command.plan(hangs=True)
    reaper.movie("/films/street.mp4", length_s=4.0)
    reaper.run(*ONE, until=lambda: len(command.asked) == 1)
    if how == "quit":
        reaper.world.quit()
    else:
        reaper.world["keys"][1] = how
        while reaper.world.turn():
            pass
    reaper.processes.wait()  # within 10 s; the command hangs for 60 s
    assert reaper.messages == []
    assert [name for name, _ in reaper.tracks()] == ["picture"]
    assert not list(tmp_path.rglob("*.wav"))


def test_the_command_is_looked_for_and_a_choice_is_kept(reaper, command, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    del reaper.world.settings["selva/command"]
    reaper.movie("/films/street.mp4", length_s=4.0)
    reaper.world.press = 2  # Cancel
    reaper.run(*ONE)
    assert "pip install" in reaper.messages[0]
    assert reaper.world.asked is None
    reaper.world.press, reaper.world.chosen = 1, str(command.path)
    reaper.run(*ONE)
    assert reaper.world.settings["selva/command"] == str(command.path)
    assert len(command.asked) == 1
    del reaper.world.settings["selva/command"]
    (tmp_path / ".local" / "bin").mkdir(parents=True)
    shutil.copy(command.path, tmp_path / ".local" / "bin")
    reaper.run()
    assert len(reaper.messages) == 2


def test_a_command_that_does_not_start_is_told(reaper, command):
    reaper.world.settings["selva/command"] = str(command.path)
    reaper.processes.start = lambda line: "0\n"
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    reaper.clock = clock
    reaper.movie("/films/street.mp4", length_s=4.0)
    reaper.run(*ONE)
    assert "did not start within 30 seconds" in reaper.messages[0]


def test_stems_wait_until_their_project_is_in_front(reaper, command):
    reaper.movie("/films/street.mp4", length_s=4.0)
    mine = reaper.world.project
    reaper.run(*ONE, until=lambda: len(command.asked) == 1)
    reaper.world.front = reaper.lua.table_from({"kind": "ReaProject", "open": True})
    reaper.processes.wait()
    for _ in range(30):
        reaper.world.turn()
        time.sleep(0.01)
    assert [name for name, _ in reaper.tracks()] == ["picture"]
    reaper.world.front = mine
    reaper.world.turn()
    assert [name for name, _ in reaper.tracks()] == ["picture", "dog barking"]


def test_a_project_that_was_closed_gets_nothing(reaper, command):
    reaper.movie("/films/street.mp4", length_s=4.0)
    reaper.run(*ONE, until=lambda: len(command.asked) == 1)
    reaper.world.project.open = False
    while reaper.world.turn():
        time.sleep(0.01)
    (message,) = reaper.messages
    assert message.startswith("The project was closed. The stems are in ")
    assert [name for name, _ in reaper.tracks()] == ["picture"]


def test_an_item_that_was_moved_or_deleted_meanwhile(reaper, command):
    item = reaper.movie("/films/street.mp4", length_s=4.0, at_s=2.0)
    reaper.movie("/films/other.mp4", length_s=1.0)
    reaper.world.selected[2] = None
    reaper.run(*ONE, until=lambda: len(command.asked) == 1)
    item["values"].D_POSITION = 50.0
    while reaper.world.turn():
        pass
    assert list(reaper.tracks())[1][1][0]["values"].D_POSITION == 50.0
    reaper.run(*ONE, until=lambda: len(command.asked) == 2)
    item.gone = True
    while reaper.world.turn():
        pass
    assert [name for name, _ in reaper.tracks()] == ["picture", "dog barking", "picture", "dog barking"]
    assert list(reaper.tracks())[3][1][0]["values"].D_POSITION == 50.0
