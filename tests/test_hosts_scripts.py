"""What the scripts for REAPER and Resolve share: JSON, quoting, the runner; and that the played hosts are strict."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lupa.luajit21", reason="needs lupa with LuaJIT (the extra dev)")

from lua_hosts import HOSTS, Command, Reaper, Resolve, runtime
from lupa import lua54, luajit21

VERSIONS = ("lua51", "luajit21", "lua54")
TEXTS = (
    "",
    "plain",
    'two "quotes"',
    "it's",
    "$HOME `id` $(id)",
    "a\\",
    'a\\"b\\\\',
    "Tür 猫 😀",
    "’’ ‘",
    "100 % & | > ^ !",
)
on_unix = pytest.mark.skipif(sys.platform == "win32", reason="the runner for sh needs sh")


def library(version: str = "lua54") -> tuple[Any, Any]:
    lua = runtime(version)
    decode = lua.execute((HOSTS / "lua" / "selva_json.lua").read_text())
    return lua, lua.execute((HOSTS / "lua" / "selva_job.lua").read_text())(decode)


def plain(value: Any) -> Any:
    """A Lua table as a list or a dict."""
    if not hasattr(value, "items"):
        return value
    items = dict(value.items())
    return [plain(items[key]) for key in sorted(items)] if 1 in items else {k: plain(v) for k, v in items.items()}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_is_read_as_python_writes_it(version, ascii_only):
    value = {
        "texts": [*TEXTS, "\\u0041", "\\\\n", "/\b\f\n\r\t\x00", "\U0001f600é"],
        "numbers": [0, -1, 2.5, 1e-7, 6.02e23],
        "bools": [True, False],
        "deep": {"a": [[1], [2, 3]]},
    }
    decode = runtime(version).execute((HOSTS / "lua" / "selva_json.lua").read_text()).decode
    assert plain(decode(json.dumps(value, ensure_ascii=ascii_only, indent=2))) == value
    assert plain(decode('{"a": null, "b": 1}')) == {"b": 1}


@pytest.mark.parametrize(
    "text", ["", "{", '{"a"', '{"a": }', "[1 2]", '["a', '["\\', "[1] 2", "{1: 2}", "nil", "-", "[" * 40 + "]" * 40]
)
def test_json_that_is_none_is_refused(text):
    decode = runtime("luajit21").execute((HOSTS / "lua" / "selva_json.lua").read_text()).decode
    value, why = decode(text)
    assert value is None
    assert "not JSON at byte" in why


def windows_arguments(line: str) -> list[str]:
    """Read a command line as Windows programs do (the rules of CommandLineToArgvW)."""
    found, at = [], 0
    while at < len(line):
        argument, quoted = "", False
        while at < len(line) and (quoted or line[at] != " "):
            slashes = 0
            while at < len(line) and line[at] == "\\":
                slashes, at = slashes + 1, at + 1
            if at < len(line) and line[at] == '"':
                argument += "\\" * (slashes // 2)
                if slashes % 2:
                    argument += '"'
                else:
                    quoted = not quoted
                at += 1
            else:
                argument += "\\" * slashes
                if at < len(line) and (quoted or line[at] != " "):
                    argument, at = argument + line[at], at + 1
        found.append(argument)
        at += 1
    return found


def powershell_strings(text: str) -> list[str]:
    """The strings in single quotes of a PowerShell text; typographic quotes count as single ones."""
    marks, found, at = "'\u2018\u2019\u201a\u201b", [], 0
    while at < len(text):
        if text[at] not in marks:
            at += 1
            continue
        string, at = "", at + 1
        while text[at] not in marks or text[at + 1] in marks:
            step = 2 if text[at] in marks else 1
            string, at = string + text[at], at + step
        found.append(string)
        at += 1
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_quoting_gives_back_every_argument(text):
    lua, job = library("luajit21")
    arguments = [text, "--prompt=" + text, "end"]
    assert shlex.split(" ".join(map(job.for_sh, arguments))) == arguments
    assert windows_arguments(" ".join(map(job.for_windows, arguments))) == arguments
    name, script = job.runner("C:\\it’s\\selva-generate.exe", lua.table_from(arguments), True)
    line = next(line for line in script.splitlines() if "Start-Process" in line)
    program, given = powershell_strings(line)
    assert name == "run.ps1"
    assert script.startswith("\ufeff")  # or PowerShell 5.1 reads it in the code page of the country
    assert program == "C:\\it’s\\selva-generate.exe"
    assert windows_arguments(given) == arguments


def running(folder: Path) -> list[str]:
    """The processes that were started with a path in this folder."""
    found = subprocess.run(["ps", "-Aww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if str(folder) in line]


@on_unix
@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_the_runner_passes_arguments_and_can_be_ended(tmp_path, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    command = Command(tmp_path / 'it\'s a "bin" $1')
    lua, job = library()
    folder = tmp_path / 'it\'s an "out" $1'
    folder.mkdir()
    for number, (hangs, code) in enumerate([(False, "0"), (True, "143")]):
        command.plan(hangs=hangs)
        arguments = [*TEXTS, f"--out={folder}"]
        name, script = job.runner(str(command.path), lua.table_from(arguments), False)
        (folder / name).write_text(script)
        (folder / "exit").unlink(missing_ok=True)
        process = subprocess.Popen([shell, str(folder / name)])
        if hangs:
            while len(command.asked) <= number or not (folder / "selva.log").read_text():
                time.sleep(0.02)
            (folder / "cancel").touch()
        assert process.wait(10) == 0
        end_s = time.monotonic() + 5
        while running(folder):  # what waits for `cancel`
            assert time.monotonic() < end_s, "a process stays"
            time.sleep(0.05)
        assert (folder / "exit").read_text().strip() == code
        assert command.asked[number] == arguments


def test_the_command_is_found_where_windows_and_macos_have_it():
    _, job = library("luajit21")
    seen: list[str] = []
    job.exists = lambda path: bool(seen.append(path))
    windows = {"PATH": "C:\\a;D:\\b", "USERPROFILE": "U:", "LOCALAPPDATA": "L:", "APPDATA": "R:"}
    assert job.find_command("", True, windows.get) is None
    assert seen[:3] == [f"{folder}\\selva-generate.exe" for folder in ("C:\\a", "D:\\b", "U:\\.local\\bin")]
    assert "L:\\Programs\\Python\\Python312\\Scripts\\selva-generate.exe" in seen
    seen.clear()
    assert job.find_command("", False, {"PATH": "/usr/bin:/bin", "HOME": "/home/ü"}.get) is None
    assert seen[:3] == [f"{folder}/selva-generate" for folder in ("/usr/bin", "/bin", "/home/ü/.local/bin")]
    assert "/home/ü/Library/Python/3.13/bin/selva-generate" in seen
    seen.clear()
    assert job.find_command("/mine", False, {}.get) is None
    assert seen == ["/mine"]


def test_two_runs_of_one_second_have_two_folders(tmp_path):
    _, job = library()
    first = Path(job.new_folder(str(tmp_path), False))
    first.mkdir()
    (first / "run.sh").touch()
    second = Path(job.new_folder(str(tmp_path), False))
    assert first != second


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("reaper.GetOSName()", "GetOSName is not published"),
        ("reaper.GetOS(1)", "takes 0 arguments, not 1"),
        ("reaper.ShowMessageBox('a', 'b')", "type is missing"),
        ("reaper.ShowMessageBox('a', 'b', '0')", "type is a string, not a integer"),
        ("reaper.ShowMessageBox('a', 'b', 0.5)", "type is a number, not a integer"),
        ("reaper.GetActiveTake((reaper.EnumProjects(-1)))", "item is a ReaProject, not a MediaItem"),
        ("reaper.InsertTrackAtIndex(0, 1)", "wantDefaults is a integer, not a boolean"),
        ("reaper.InsertTrackAtIndex(0, true)", "outside an undo block"),
        ("reaper.ExecProcess('true', 0)", "would wait and stop the host"),
        ("gfx.drawtext('a')", "drawtext is not published"),
    ],
)
def test_the_played_reaper_refuses_what_is_not_published(tmp_path, call, words):
    with pytest.raises(lua54.LuaError, match=words):
        Reaper(tmp_path).lua.execute(call)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("p:GetTimeline()", "GetTimeline is not published"),
        ("t.GetStartFrame()", "the object is missing"),
        ("t:AddTrack('audio')", "subTrackType is missing"),
        ("t:SetTrackName('audio', '1', 'a')", "trackIndex is a string, not a integer"),
        ("p:GetMediaPool():ImportMedia('a.wav')", "items is a string, not a table"),
        ("p:GetMediaPool():AppendToTimeline({ { recordFrame = 1 } })", "is a nil, not a"),
        ("debug.getinfo(1)", "nil"),
    ],
)
def test_the_played_resolve_refuses_what_is_not_published(tmp_path, call, words):
    host = Resolve(tmp_path)
    host.lua.execute("p = Resolve():GetProjectManager():GetCurrentProject() t = p:GetCurrentTimeline()")
    with pytest.raises(luajit21.LuaError, match=words):
        host.lua.execute(call)


@on_unix
def test_the_files_may_lie_beside_the_script(tmp_path):
    for path in (HOSTS / "reaper" / "selva.lua", *(HOSTS / "lua").glob("*.lua")):
        shutil.copy(path, tmp_path)
    host = Reaper(tmp_path / "media", tmp_path / "selva.lua")
    host.run()
    assert host.messages == ["Select one video item, and run this again."]
