"""Blender's strips, from version 4.2 (`sequences`) to 5 (`strips`).

No strip is kept from one step to the next: the user may delete it or undo meanwhile, and a stale one crashes Blender.
"""

from __future__ import annotations

import os
from typing import Any

import bpy

from .placing import at_speed, frames_of, free_channels, strip_name
from .spans import Span, StripError, StripTimes, span

RECORD = "selva"
"""The custom property in which a stem's strip keeps how it was made."""


def sequencer_scene(context: bpy.types.Context) -> bpy.types.Scene:
    """Return the scene whose strips the user sees. Since Blender 5 it may be another than the window's."""
    return getattr(context, "sequencer_scene", None) or context.scene


def strips(scene: bpy.types.Scene) -> Any:
    """Return the collection of the strips that the user sees: of the scene, or of the meta strip that is open."""
    editor = scene.sequence_editor_create()
    owner = editor.meta_stack[-1] if len(editor.meta_stack) else editor
    return owner.strips if hasattr(owner, "strips") else owner.sequences


def selected(scene: bpy.types.Scene, kind: str) -> list[Any]:
    """Return the selected strips of a type, from left to right."""
    found = [strip for strip in strips(scene) if strip.select and strip.type == kind]
    return sorted(found, key=lambda strip: (strip.frame_final_start, strip.channel))


def fps(scene: bpy.types.Scene) -> float:
    """Return the frames of a scene in a second."""
    return scene.render.fps / scene.render.fps_base


def video_span(scene: bpy.types.Scene, strip: Any) -> Span:
    """Return the part of its video that a movie strip shows.

    Raises:
        StripError: there is none that a sound can be generated for.
    """
    keys = len(getattr(strip, "retiming_keys", ()))
    if strip.use_reverse_frames:
        raise StripError("it plays backwards; turn that off")
    if keys > 2:
        raise StripError("its speed changes; split it where it does, or give it one speed")
    path = os.path.realpath(bpy.path.abspath(strip.filepath))
    if not os.path.isfile(path):
        raise StripError(f"its video is not there: {path}")
    return span(
        StripTimes(
            begin=strip.frame_start,
            first=strip.frame_final_start,
            end=strip.frame_final_end,
            trimmed_end=strip.frame_offset_end,
            skipped=strip.animation_offset_start,
            video_frames=_frames(path) - strip.animation_offset_start - strip.animation_offset_end,
            video_fps=strip.fps,
            scene_fps=fps(scene),
            retimed=keys > 0 or getattr(strip, "speed_factor", 1.0) != 1.0,
        )
    )


def _frames(path: str) -> int:
    """Return the frames of a video as Blender counts them. A strip's own count is that after retiming."""
    clip = bpy.data.movieclips.load(path)
    try:
        return int(clip.frame_duration)
    finally:
        bpy.data.movieclips.remove(clip)


def channels_for(scene: bpy.types.Scene, frame: int, shown_s: float, count: int) -> list[int]:
    """Return the lowest channels on which so many sounds of this length can begin at a frame.

    Raises:
        StripError: there are not so many.
    """
    end = frame + frames_of(shown_s, fps(scene))
    taken = [(strip.channel, strip.frame_final_start, strip.frame_final_end) for strip in strips(scene)]
    return free_channels(taken, frame, end, count, _closed(scene))


def add_stems(
    scene: bpy.types.Scene, frame: int, speed: float, records: list[dict[str, Any]], files: list[str]
) -> None:
    """Put the stems of one request at a frame, each on a channel that is free there. All takes but the first are muted.

    Raises:
        StripError: there are not enough free channels.
        OSError: a file cannot be read or written.
    """
    channels = channels_for(scene, frame, max(record["shown_s"] for record in records), len(records))
    takes = max(record["take"] for record in records)
    for channel, record, file in zip(channels, records, files, strict=True):
        name = strip_name(record["prompt"], record["take"], takes)
        path = playable(file, speed)
        strip = strips(scene).new_sound(name=name, filepath=path, channel=channel, frame_start=frame)
        strip.mute = record["take"] > 1
        strip.show_waveform = True
        strip[RECORD] = record


def playable(file: str, speed: float) -> str:
    """Return the path of a file that plays a stem at a strip's speed, relative if it lies beside the .blend file."""
    path = file if speed == 1 else at_speed(file, speed)
    beside = os.path.realpath(os.path.dirname(bpy.data.filepath)) + os.sep if bpy.data.filepath else None
    return bpy.path.relpath(path) if beside is not None and path.startswith(beside) else path


def replace_sound(strip: Any, record: dict[str, Any], file: str) -> None:
    """Give a strip another sound. Its place, trim, volume and keyframes stay."""
    strip.sound = bpy.data.sounds.load(file)
    strip[RECORD] = record


def _closed(scene: bpy.types.Scene) -> set[int]:
    """Return the channels that the user muted or locked. The first of the list is channel 0."""
    channels = getattr(scene.sequence_editor, "channels", ())
    return {number for number, channel in enumerate(channels) if channel.mute or channel.lock}
