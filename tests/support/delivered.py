"""Runs of `selva-generate` for the tests of what it delivers."""

import json
import threading
from pathlib import Path

import av
from click.testing import CliRunner, Result
from clips import numbered, write_video

from selva_runtime.backends.executor import check_cancel
from selva_runtime.command.cli import main
from selva_runtime.command.deliver import generate_files
from selva_runtime.command.records import GenerateReport, GenerateRequest


def generate(bundle: Path, video: Path, out: Path, *arguments: object, steps: int = 2) -> tuple[Result, dict]:
    """Runs the command in this process. Returns its result and its report."""
    common = [video, "-o", out, "--bundle", bundle, "--threads", 1, "--steps", steps, "--json"]
    result = CliRunner().invoke(main, [*map(str, (*common, *arguments))])
    return result, json.loads(result.stdout)


def cancelled_after_a_window(request: GenerateRequest) -> GenerateReport:
    """Runs until the first window was written, then cancels. Returns the report."""
    cancel, steps = threading.Event(), []

    def progress(stage, done, total):
        check_cancel(cancel)  # as the command's own progress does
        steps.append(stage)
        if stage == "step" and "vocode" in steps:
            cancel.set()

    return generate_files(request, progress=progress, cancel=cancel)


def timed_video(path: Path, timecode: str, rate=25, frames: int = 60) -> Path:
    """Writes a video whose file says the timecode of its first frame."""
    plain = write_video(path.with_name("plain.mov"), map(numbered, range(frames)), rate=rate)
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        target.metadata["timecode"] = timecode
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    return path
