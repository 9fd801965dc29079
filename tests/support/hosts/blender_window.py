"""Uses the extension in a Blender with a window, and writes down what happened. Runs in Blender's Python.

    blender --factory-startup --python blender_window.py -- WORK

WORK holds the unpacked extension `selva/`, its zip and `street.mp4` (25 frames a second). SELVA_PYTHON names the
worker's Python. Keys come from xdotool, pictures from ImageMagick's import.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import bpy

WORK = Path(sys.argv[-1])
SEEN = {"version": bpy.app.version_string, "background": bpy.app.background}
STEPS_S = []
"""How long each step of a run held up the window."""


def install():
    bpy.context.preferences.view.show_splash = False
    if bpy.app.version >= (4, 2, 0):
        bpy.ops.extensions.package_install_files(
            filepath=str(WORK / "selva.zip"), repo="user_default", enable_on_install=True, overwrite=True
        )
        package = next(addon.module for addon in bpy.context.preferences.addons if addon.module.endswith(".selva"))
    else:  # before extensions: the package alone, without its preferences
        sys.path.insert(0, str(WORK))
        package = "selva"
        importlib.import_module(package).register()
    run = sys.modules[package + ".run"].Run
    step = run.step

    def timed(self):
        begun = time.perf_counter()
        step(self)
        STEPS_S.append(time.perf_counter() - begun)

    run.step = timed
    return sys.modules[package + ".state"].STATE


STATE = install()


def window():
    return bpy.context.window_manager.windows[0]


def in_sequencer():
    area = next(area for area in window().screen.areas if area.type == "SEQUENCE_EDITOR")
    region = next(region for region in area.regions if region.type == "WINDOW")
    return bpy.context.temp_override(window=window(), area=area, region=region)


def strips():
    editor = bpy.context.scene.sequence_editor_create()
    return editor.strips if hasattr(editor, "strips") else editor.sequences


def stems():
    found = [strip for strip in strips() if "selva" in strip]
    return [
        {"name": s.name, "channel": s.channel, "first": s.frame_final_start, "end": s.frame_final_end, "mute": s.mute}
        for s in found
    ]


def set_up():
    area = max(window().screen.areas, key=lambda area: area.width * area.height)
    area.ui_type = "SEQUENCE_EDITOR"
    if hasattr(window().workspace, "sequencer_scene"):
        window().workspace.sequencer_scene = bpy.context.scene
    area.spaces.active.show_region_ui = True
    scene = bpy.context.scene
    scene.render.fps, scene.render.fps_base = 24, 1
    with in_sequencer():
        bpy.ops.sequencer.movie_strip_add(
            filepath=str(WORK / "street.mp4"),
            relative_path=False,
            frame_start=101,
            channel=1,
            sound=False,
            use_framerate=False,
            adjust_playback_rate=True,
        )
    strip = strips()[0]
    strip.frame_offset_start, strip.frame_offset_end = 12, 10
    strip.select = True
    SEEN["movie"] = [strip.frame_final_start, strip.frame_final_end, strip.fps]
    scene.frame_start, scene.frame_end, scene.frame_current = 90, 220, 120
    settings = scene.selva
    for prompt in ("ball bouncing", "lamp beeping"):
        settings.prompts.add().name = prompt
    settings.negative, settings.out, settings.seed = "music", str(WORK / "stems"), 7
    settings.takes = 2


def press_generate():
    with in_sequencer():
        bpy.ops.ed.undo_push(message="before")
        return list(bpy.ops.selva.generate("INVOKE_DEFAULT"))


def until(condition, within_s=240):
    """Yields until the condition holds, while Blender goes on."""
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        yield


def told_until_it_generates():
    """Yields until the fifth progress of the computation, and returns what the panel said until then."""
    told = []
    for _ in until(lambda: len({text for text in told if text.startswith("Generating")}) >= 5):
        if STATE.run is not None:
            told.append(f"{STATE.run.text} {STATE.run.fraction}")
        yield
    return list(dict.fromkeys(told))


def escape_key():
    subprocess.run(["xdotool", "mousemove", "400", "300", "key", "Escape"], check=True)


def screenshot(name):
    subprocess.run(["import", "-window", "root", str(WORK / name)], check=True)


def show_our_panels():
    area = next(area for area in window().screen.areas if area.type == "SEQUENCE_EDITOR")
    region = next(region for region in area.regions if region.type == "UI")
    if bpy.app.version >= (4, 2, 0):
        region.active_panel_category = "SelVA"
    else:  # cannot be chosen by a script: a click on the last tab
        subprocess.run(["xdotool", "mousemove", "1042", "288", "click", "1"], check=True)
    with in_sequencer():
        bpy.ops.sequencer.view_all()


def scenario():
    set_up()
    yield
    yield
    show_our_panels()
    yield
    bpy.context.scene.selva.steps = 1000
    SEEN["pressed"] = press_generate()
    SEEN["told"] = yield from told_until_it_generates()
    yield from (None for _ in range(20))
    screenshot("running.png")
    begun = time.monotonic()
    escape_key()
    yield from until(lambda: STATE.run is None)
    SEEN["cancelled"] = {"stems": stems(), "after_s": time.monotonic() - begun, "messages": STATE.messages}
    SEEN["cancelled"]["files"] = sorted(path.name for path in (WORK / "stems").iterdir())
    bpy.context.scene.selva.steps = 25
    press_generate()
    yield from until(lambda: STATE.run is None)
    SEEN["done"] = {"stems": stems(), "messages": STATE.messages}
    yield from (None for _ in range(20))
    screenshot("done.png")
    bpy.ops.ed.undo()
    yield
    SEEN["undone"] = {"stems": stems(), "strips": len(strips())}
    bpy.context.scene.selva.steps = 1000
    press_generate()
    yield from told_until_it_generates()
    os.kill(STATE.connection.worker.call("doctor")["supervisor"]["pid"], signal.SIGKILL)
    yield from until(lambda: STATE.run is None)
    SEEN["killed"] = {"stems": stems(), "messages": STATE.messages}
    SEEN["longest_step_s"] = max(STEPS_S)
    SEEN["steps"] = len(STEPS_S)


GOING = scenario()


def tick():
    try:
        next(GOING)
    except StopIteration:
        finish()
        return None
    except Exception:
        SEEN["failed"] = traceback.format_exc()
        finish()
        return None
    return 0.05


def finish():
    (WORK / "seen.json").write_text(json.dumps(SEEN, indent=1))
    sys.stdout.flush()
    STATE.disconnect()
    os._exit(0)  # Blender would ask whether to save


bpy.app.timers.register(tick, first_interval=1.0)
