"""Uses the extension in a Blender without a window, and writes down what happened. Runs in Blender's Python.

    python blender_background.py WORK          with the module bpy
    blender -b --python blender_background.py -- WORK

WORK holds `selva.zip` and `video.mp4` (24 frames a second); SELVA_PYTHON names the worker's Python.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import bpy

WORK = Path(sys.argv[-1])
PROMPTS = ["lamp beeping", "ball bouncing"]
SEEN = {"version": bpy.app.version_string, "python": sys.version.split()[0]}


def install():
    bpy.ops.extensions.package_install_files(
        filepath=str(WORK / "selva.zip"), repo="user_default", enable_on_install=True, overwrite=True
    )
    name = next(addon.module for addon in bpy.context.preferences.addons if addon.module.endswith(".selva"))
    return sys.modules[name + ".state"].STATE, sys.modules[name + ".run"].Run


def strips():
    editor = bpy.context.scene.sequence_editor_create()
    return editor.strips if hasattr(editor, "strips") else editor.sequences


def fresh(name):
    """An empty scene of 24 frames a second, whose settings are quick."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    scene = bpy.context.scene
    scene.render.fps, scene.render.fps_base = 24, 1
    for prompt in PROMPTS:
        scene.selva.prompts.add().name = prompt
    scene.selva.steps, scene.selva.seed, scene.selva.out = 2, 7, str(WORK / name)
    return scene


def movie(channel=1):
    """A movie strip at frame 101, whose first 12 frames and last 20 are cut off."""
    strip = strips().new_movie("film", str(WORK / "video.mp4"), channel, 101)
    strip.frame_offset_start, strip.frame_offset_end = 12, 20
    strip.select = True
    return strip


def described(strip):
    return {
        "name": strip.name,
        "channel": strip.channel,
        "first": strip.frame_final_start,
        "end": strip.frame_final_end,
        "mute": strip.mute,
        "file": bpy.path.abspath(strip.sound.filepath),
        "record": strip["selva"].to_dict(),
    }


def stems():
    found = [strip for strip in strips() if "selva" in strip]
    return sorted((described(strip) for strip in found), key=lambda seen: seen["channel"])


def generated(operator=None, **options):
    """Press the button. Returns the lines that it said, "" if it had nothing to complain about."""
    try:
        (operator or bpy.ops.selva.generate)(**options)
    except RuntimeError as error:
        return str(error).strip()
    return ""


def during_steps(action):
    """Do something once, in the midst of the next run's computation."""
    step = Run.step

    def watched(run):
        step(run)
        job = run.tasks[0].job if run.tasks else None
        if job and job["progress"] and job["progress"]["phase"] == "step":
            Run.step = step
            action(run)

    Run.step = watched


def worker_pid():
    return STATE.connection.worker.call("doctor")["supervisor"]["pid"]


def files(name):
    return sorted(path.name for path in (WORK / name).rglob("*"))


STATE, Run = install()


def first_and_second_run():
    scene = fresh("first")
    scene.selva.takes = 2
    movie()
    strips().new_effect("in the way", "COLOR", 3, frame_start=120, **effect_length(120, 130)).select = False
    strips().new_effect("elsewhere", "COLOR", 2, frame_start=1, **effect_length(1, 100)).select = False
    SEEN["first"] = {"said": generated(), "stems": stems(), "pid": worker_pid()}
    mixdown(scene)
    scene.selva.takes, scene.selva.seed = 1, 8
    SEEN["second"] = {"said": generated(), "stems": stems(), "pid": worker_pid(), "files": files("first")}


def effect_length(begin, end):
    return {"length": end - begin} if bpy.app.version >= (5, 0, 0) else {"frame_end": end}


def mixdown(scene):
    """All sound of the scene from frame 101 to 252, as the first take of the lamp alone."""
    scene.frame_start, scene.frame_end = 101, 252
    kept = {strip.name: strip.mute for strip in strips()}
    for strip in strips():
        strip.mute = strip.name != "lamp beeping (take 1)"
    same_rate = {"mixrate": 16000} if "mixrate" in bpy.ops.sound.mixdown.get_rna_type().properties else {}
    scene.render.ffmpeg.audio_mixrate = 16000
    bpy.ops.sound.mixdown(
        filepath=str(WORK / "mixdown.wav"),
        container="WAV",
        codec="PCM",
        format="S24",
        check_existing=False,
        **same_rate,
    )
    for name, mute in kept.items():
        strips()[name].mute = mute


def again_and_replace():
    fresh("again")
    movie()
    SEEN["again_made"] = {"said": generated(), "stems": stems()}
    for strip in strips():
        strip.select = strip.name == "ball bouncing"
    SEEN["again"] = {"said": generated(bpy.ops.selva.again), "stems": stems()}
    for strip in strips():
        strip.select = strip.name == "lamp beeping"
    strips()["lamp beeping"].volume = 0.5
    SEEN["replaced"] = {"said": generated(bpy.ops.selva.again, replace=True), "stems": stems()}
    SEEN["replaced"]["volume"] = strips()["lamp beeping"].volume


def saved_and_opened():
    scene = fresh("unused")
    scene.selva.out, scene.selva.negative = "//stems", "music"
    movie()
    SEEN["unsaved"] = generated()
    bpy.ops.wm.save_as_mainfile(filepath=str(WORK / "saved" / "film.blend"))
    SEEN["saved"] = {"said": generated(), "raw": [strip.sound.filepath for strip in strips() if "selva" in strip]}
    bpy.ops.wm.save_mainfile()
    before = stems()
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    bpy.ops.wm.open_mainfile(filepath=str(WORK / "saved" / "film.blend"))
    settings = bpy.context.scene.selva
    SEEN["opened"] = {
        "same": stems() == before,
        "stems": before,
        "prompts": [prompt.name for prompt in settings.prompts],
        "options": [settings.negative, settings.takes, settings.seed, settings.steps, settings.out],
    }


def other_rates():
    """A scene of another rate than the film, frame by frame; and a film at twice its speed."""
    scene = fresh("rates")
    scene.render.fps = 30
    movie()
    SEEN["frame_by_frame"] = {"said": generated(), "stems": stems()}
    scene = fresh("fast")
    strip = strips().new_movie("film", str(WORK / "video.mp4"), 1, 101)
    strip.select = True
    twice_as_fast(scene, strip)
    strip.frame_offset_start, strip.frame_offset_end = 6, 10
    SEEN["fast"] = {"said": generated(), "stems": stems(), "movie": [strip.frame_final_start, strip.frame_final_end]}

    scene = fresh("uneven")
    twice_as_fast(scene, movie())
    SEEN["uneven"] = generated()


def twice_as_fast(scene, strip):
    window = bpy.context.window_manager.windows[0]
    if hasattr(window.workspace, "sequencer_scene"):
        window.workspace.sequencer_scene = scene
    area = window.screen.areas[0]
    area.ui_type = "SEQUENCE_EDITOR"
    region = next(region for region in area.regions if region.type == "WINDOW")
    scene.sequence_editor.active_strip = strip
    with bpy.context.temp_override(window=window, area=area, region=region):
        bpy.ops.sequencer.retiming_segment_speed_set(speed=200.0)


def refusals():
    scene = fresh("refused")
    SEEN["nothing_selected"] = generated()
    strip = movie()
    strip.use_reverse_frames = True
    SEEN["backwards"] = generated()
    strip.use_reverse_frames = False
    for _ in PROMPTS:
        scene.selva.prompts.remove(0)
    SEEN["no_prompt"] = generated()
    scene.selva.prompts.add().name = "lamp beeping"
    scene.selva.takes = 64
    for channel in range(2, 100):
        strips().new_effect("busy", "COLOR", channel, frame_start=110, **effect_length(110, 130)).select = False
    SEEN["no_channels"] = {"said": generated(), "stems": stems(), "files": len(files("refused"))}


def cancelled_and_killed():
    scene = fresh("ended")
    scene.selva.steps, scene.selva.takes = 1000, 16
    movie()
    during_steps(lambda run: run.cancel())
    SEEN["cancelled"] = {"said": generated(), "stems": stems(), "files": files("ended")}
    pid = worker_pid()
    during_steps(lambda run: os.kill(pid, signal.SIGKILL))
    SEEN["killed"] = {"said": generated(), "stems": stems(), "connected": STATE.connection is not None}
    SEEN["killed"]["messages"] = STATE.messages
    scene.selva.steps, scene.selva.takes = 2, 1
    SEEN["after"] = {"said": generated(), "stems": stems(), "pids": [pid, worker_pid()]}
    os.kill(worker_pid(), signal.SIGKILL)
    STATE.connection._pipes.process.wait()
    SEEN["killed_idle"] = generated()


def examined():
    fresh("doctor")
    SEEN["healthy"] = {"said": generated(bpy.ops.selva.doctor), "lines": STATE.examined, "install": STATE.install}
    kept = os.environ["SELVA_PYTHON"]
    os.environ["SELVA_PYTHON"] = "/usr/bin/python3"
    paths = os.environ.pop("PYTHONPATH", None)
    SEEN["bare"] = {"said": generated(bpy.ops.selva.doctor), "lines": STATE.examined, "install": STATE.install}
    os.environ["SELVA_PYTHON"] = kept
    if paths is not None:
        os.environ["PYTHONPATH"] = paths


def disabled():
    fresh("disabled")
    generated(bpy.ops.selva.doctor)
    pid = worker_pid()
    name = next(addon.module for addon in bpy.context.preferences.addons if addon.module.endswith(".selva"))
    bpy.ops.preferences.addon_disable(module=name)
    SEEN["disabled"] = {"left": not Path(f"/proc/{pid}").exists(), "gone": not hasattr(bpy.types.Scene, "selva")}


(WORK / "saved").mkdir()
for scenario in (
    first_and_second_run,
    again_and_replace,
    saved_and_opened,
    other_rates,
    refusals,
    cancelled_and_killed,
    examined,
    disabled,
):
    begun = time.monotonic()
    scenario()
    SEEN.setdefault("seconds", {})[scenario.__name__] = time.monotonic() - begun
(WORK / "seen.json").write_text(json.dumps(SEEN, indent=1))
