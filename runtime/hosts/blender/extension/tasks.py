"""From what is selected to requests, and from results to strips."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bpy

from . import strips
from .run import Task
from .spans import Span, StripError


@dataclass(frozen=True)
class Place:
    """Where stems go. It names what it means, since the user may delete or undo it meanwhile."""

    scene: str
    frame: int
    """The scene's frame at which the stems begin."""
    videos: tuple[str, str]
    """Its path as the .blend file has it, for a project that moves, and the absolute one, for one saved elsewhere."""
    span: Span
    stem: str | None = None
    """Name of the strip that is generated again."""
    replace: bool = False
    """Whether the new sound goes into that strip."""


def for_movies(scene: bpy.types.Scene) -> list[Task]:
    """Return a task for each selected movie strip, with the scene's prompts and settings.

    Raises:
        StripError: there is no prompt, or no strip that a sound can be generated for.
    """
    settings = scene.selva
    prompts = [prompt.name.strip() for prompt in settings.prompts if prompt.name.strip()]
    movies = strips.selected(scene, "MOVIE")
    if not prompts:
        raise StripError("there is no prompt; add one, such as: dog barking")
    if not movies:
        raise StripError("no movie strip is selected")
    options = {"seed": settings.seed, "takes": settings.takes}
    if settings.negative.strip():
        options["negative"] = settings.negative.strip()
    if settings.steps:
        options["steps"] = settings.steps
    return [_for_movie(scene, movie, {**options, "prompts": prompts}) for movie in movies]


def for_stems(scene: bpy.types.Scene, *, replace: bool, new_seed: Callable[[], int]) -> list[Task]:
    """Return a task for each selected stem: the same with another seed.

    Raises:
        StripError: no stem is selected.
    """
    stems = [strip for strip in strips.selected(scene, "SOUND") if strips.RECORD in strip]
    if not stems:
        raise StripError("no stem is selected; select sound strips that this panel made")
    return [_for_stem(scene, stem, replace, new_seed()) for stem in stems]


def land(place: Place, result: dict[str, Any]) -> None:
    """Put the stems of a result in their place.

    Raises:
        StripError: the scene is gone, or there are not enough free channels.
        OSError: a file cannot be read or written.
    """
    files = [stem["file"] for stem in result["stems"]]
    scene = bpy.data.scenes.get(place.scene)
    if scene is None:
        raise StripError(f"the scene {place.scene!r} is gone; the stems are in {os.path.dirname(files[0])}")
    try:
        _land(scene, place, result, files)
    except StripError as error:
        raise StripError(f"{error}; the stems are in {os.path.dirname(files[0])}") from error


def _land(scene: bpy.types.Scene, place: Place, result: dict[str, Any], files: list[str]) -> None:
    records = [_record(place, result, stem) for stem in result["stems"]]
    old = strips.strips(scene).get(place.stem) if place.stem is not None else None
    if old is not None and place.replace:
        strips.replace_sound(old, records[0], strips.playable(files[0], place.span.speed))
        return
    strips.add_stems(scene, place.frame, place.span.speed, records, files)
    if old is not None:
        old.mute = True


def _for_movie(scene: bpy.types.Scene, movie: Any, options: dict[str, Any]) -> Task:
    try:
        shown = strips.video_span(scene, movie)
        strips.channels_for(scene, shown.frame, shown.shown_s, len(options["prompts"]) * options["takes"])
    except StripError as error:
        raise StripError(f"{movie.name}: {error}") from error
    videos = (movie.filepath, os.path.realpath(bpy.path.abspath(movie.filepath)))
    place = Place(scene=scene.name, frame=shown.frame, videos=videos, span=shown)
    return Task(_request(scene, place, options), place)


def _for_stem(scene: bpy.types.Scene, stem: Any, replace: bool, seed: int) -> Task:
    try:
        record = stem[strips.RECORD].to_dict()
        shown = Span(
            frame=round(stem.frame_start),
            start_s=float(record["start_s"]),
            duration_s=float(record["duration_s"]),
            speed=float(record["speed"]),
        )
        options = {"prompts": [str(record["prompt"])], "seed": seed, "takes": 1, "steps": int(record["steps"])}
        if record["negative"]:
            options["negative"] = str(record["negative"])
        videos = (str(record["video"]), str(record["video_absolute"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StripError(f"{stem.name}: what it was made from is damaged") from error
    if not any(os.path.isfile(bpy.path.abspath(path)) for path in videos):
        raise StripError(f"{stem.name}: its video is not there: {bpy.path.abspath(videos[0])}")
    place = Place(scene=scene.name, frame=shown.frame, videos=videos, span=shown, stem=stem.name, replace=replace)
    return Task(_request(scene, place, options), place)


def _request(scene: bpy.types.Scene, place: Place, options: dict[str, Any]) -> dict[str, Any]:
    """Return the request for `job.submit`."""
    videos = [os.path.realpath(bpy.path.abspath(path)) for path in place.videos]
    return {
        "video": next(filter(os.path.isfile, videos), videos[0]),
        "out": _folder(scene.selva.out),
        "start_s": round(place.span.start_s, 6),
        "duration_s": round(place.span.duration_s, 6),
        **options,
    }


def _folder(chosen: str) -> str:
    if not chosen or (chosen.startswith("//") and not bpy.data.filepath):
        raise StripError("save the .blend file first, or choose a folder for the stems that does not begin with //")
    return os.path.realpath(bpy.path.abspath(chosen))


def _record(place: Place, result: dict[str, Any], stem: dict[str, Any]) -> dict[str, Any]:
    """Return what a stem's strip keeps: all that it takes to generate it again."""
    return {
        "prompt": stem["prompt"],
        "negative": result["negative"] or "",
        "seed": stem["seed"],
        "take": stem["take"],
        "steps": result["steps"],
        "video": place.videos[0],
        "video_absolute": place.videos[1],
        "start_s": place.span.start_s,
        "duration_s": place.span.duration_s,
        "speed": place.span.speed,
        "shown_s": stem["duration_s"] / place.span.speed,
    }
