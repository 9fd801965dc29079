"""The scripts for REAPER and Resolve start the real command with the demo model, and place what it wrote."""

import sys

import pytest

pytest.importorskip("lupa.luajit21", reason="needs lupa with LuaJIT (the extra dev)")
if sys.platform == "win32":
    pytest.skip("the runner for Windows is PowerShell: not run by tests", allow_module_level=True)

import soundfile
from lua_hosts import Reaper, Resolve, real_command
from workers import STREET


def test_reaper_gets_stems_of_the_demo_model(tmp_path):
    host = Reaper(tmp_path / "media")
    host.world.settings["selva/command"] = str(real_command(tmp_path))
    host.movie(STREET, length_s=4.16, at_s=100.0, item_s=0.5, D_STARTOFFS=1.5, D_PLAYRATE=2.0)
    host.run("dog barking; hammer", "", "2", "3", limit_s=60.0)
    assert host.messages == []
    tracks = list(host.tracks())[1:]
    assert [name for name, _ in tracks] == ["dog barking", "hammer"]
    for name, (item,) in tracks:
        assert (item["values"].D_POSITION, item["values"].D_LENGTH) == (100.0, 0.5)
        assert [take.name for take in item.takes.values()] == [f"{name}, take {take}, seed 3" for take in (1, 2)]
        for take in item.takes.values():
            file = soundfile.info(take.source.file)
            assert (file.samplerate, file.frames, file.subtype) == (48000, 48000, "PCM_24")
        assert "Toy model" in item.notes


def test_resolve_gets_stems_of_the_demo_model(tmp_path):
    (tmp_path / "scripts").mkdir()
    resolve = Resolve(tmp_path / "scripts")
    resolve.setting("folder", str(tmp_path / "stems"))
    resolve.setting("command", str(real_command(tmp_path)))
    resolve.world.rate = "25"
    resolve.world.clip(str(STREET), "25", 86400, 25, 25, 25, 50)
    resolve.mark(0, "selva: dog barking")
    resolve.run()
    assert resolve.world.markers[0].color == "Green"
    assert [(name, clip.start, clip.duration) for name, _, (clip,) in resolve.tracks()] == [("dog barking", 86400, 25)]
