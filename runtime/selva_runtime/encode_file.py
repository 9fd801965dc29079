"""Encode a part of a video file for one model or several, which is decoded once for all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any

from selva_runtime.clip_cache import ClipCache, file_identity
from selva_runtime.clip_encoder import ClipEncoder, EncodingJob
from selva_runtime.progress import Progress
from selva_runtime.request import check_span
from selva_runtime.results import Clip
from selva_runtime.video_part import VideoPart, cut_frames

if TYPE_CHECKING:
    from selva_runtime.media.masks.mask import MaskFile
    from selva_runtime.media.video import VideoClip, VideoFile


def encode_file(
    encoders: Sequence[ClipEncoder],
    path: Any,
    part: VideoPart,
    *,
    progress: Progress | None,
    cancel: Event | None,
) -> list[Clip]:
    """Encode a part of a video by several encoders, with one decoding. The errors are those of `Session.encode`.

    Only the first encoder sees the video through the mask.
    """
    from selva_runtime.media.masks.mask import mask_of
    from selva_runtime.media.video import VideoFile

    check_span(part.start_s, part.duration_s, max(encoder.rules.min_duration_s for encoder in encoders))
    part = replace(part, start_s=float(part.start_s), duration_s=part.duration_s and float(part.duration_s))
    mask = mask_of(part.mask, part.mask_fill, invert=part.mask_invert)
    with path if isinstance(path, VideoFile) else VideoFile(path) as video, ExitStack() as opened:
        files = [video.path] if mask is None else [video.path, *mask.files()]
        unread = [file_identity(file) for file in files]
        key: dict[str, object] = {
            "start_s": part.start_s,
            "duration_s": part.duration_s,
            "frame_rule": part.frame_rule,
        }
        clips: dict[int, Clip] = {}
        jobs: dict[int, EncodingJob] = {}
        for number, encoder in enumerate(encoders):
            shown = cut_frames(encoder.rules, part.cuts, part.start_s)
            if encoder.cache is not None and "video" not in key:
                key["video"] = _fingerprint(video, part, cancel)
            own = {**key, "cuts": shown, **encoder.encodes_with()}
            if encoder.cache is not None and mask is not None and number == 0:
                own["mask"] = mask.content(cancel)
            cached = ClipCache(encoder.cache, own)
            found = cached.find(path, pictures=encoder.sees_pictures)
            if found is not None and (ready := encoder.ready(found, cancel)) is not None:
                clips[number] = ready
            else:
                jobs[number] = EncodingJob(encoder, cached, opened, shown, progress, cancel)
        if jobs:
            read = _read(video, encoders, jobs, part, mask, progress, cancel)
            store = [file_identity(file) for file in files] == unread
            for number, job in jobs.items():
                clips[number] = job.finish(read[number], os.fspath(path), store=store)
        return [clips[number] for number in range(len(encoders))]


def _read(
    video: VideoFile,
    encoders: Sequence[ClipEncoder],
    jobs: dict[int, EncodingJob],
    part: VideoPart,
    mask: MaskFile | None,
    progress: Progress | None,
    cancel: Event | None,
) -> dict[int, VideoClip]:
    """Read the frames for all jobs, and return what was read for each."""
    from selva_runtime.media.video import read_views

    views = [(number, view) for number in jobs for view in encoders[number].views(masked=number == 0)]
    consumers = [consumer for job in jobs.values() for consumer in job.consumers]

    def decoded(done: int, total: int) -> None:
        for job in jobs.values():
            job.expect(total)
        if progress is not None and all(job.encoding.fits(total) for job in jobs.values()):
            progress("decode", done, total)  # in a long video the segments are counted, not the frames

    read = read_views(
        video,
        [view for _, view in views],
        start_s=part.start_s,
        duration_s=part.duration_s,
        min_duration_s=max(encoders[number].rules.min_duration_s for number in jobs),
        frame_rule=part.frame_rule,
        keep_frames=False,
        mask=mask if 0 in jobs else None,
        on_progress=decoded,
        on_rows=lambda number, frames: consumers[number](frames),
        cancelled=cancel,
    )
    return {number: clip for (number, _), clip in zip(views, read, strict=True)}


def _fingerprint(video: VideoFile, part: VideoPart, cancel: Event | None) -> object:
    from selva_runtime.media.fingerprint import fingerprint

    return fingerprint(video, start_s=part.start_s, duration_s=part.duration_s, cancelled=cancel)
