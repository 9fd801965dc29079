"""What a benchmark works on: a bundle with random weights, and a video of the requested length.

The bundle is exported once and cached, because at full size that takes minutes and gigabytes. The video is real
footage, which is often too short, so it is repeated.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av
from av.video.frame import VideoFrame

from selva_bench.options import BenchError
from selva_bundle.ports import BEST

EXAMPLE = Path(__file__).parents[2] / "examples" / "street.mp4"
"""Only exists in a checkout, not in an installed package."""
_EXPORTERS = ("selva_export", "selva_ref")
_SPARE_FRAMES = 2


def export_if_outdated(bundle: Path, preset: str, precision: str, *, quality: str = BEST, quiet: bool) -> None:
    """Exports a bundle with random weights if it does not exist or is older than the code that makes it."""
    newest_s = _newest_source_s()
    manifest = bundle / "manifest.json"
    if manifest.is_file() and manifest.stat().st_mtime >= newest_s:
        return
    manifest.unlink(missing_ok=True)
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".selva-bench-", dir=bundle.parent) as folder:
        _export(preset, precision, quality, Path(folder) / "bundle", quiet=quiet)
        (Path(folder) / "bundle").rename(bundle)


def _export(preset: str, precision: str, quality: str, out: Path, *, quiet: bool) -> None:
    """Exports in a separate process, so that PyTorch's memory and threads do not stay in the one that measures."""
    from selva_ref.model.presets import PRESETS

    if preset not in PRESETS:
        raise BenchError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    options = ["--preset", preset, "--precision", precision, "--quality", quality, "--random-weights"]
    exporter = subprocess.run(
        [sys.executable, "-c", "from selva_export.cli import main; main()", *options, "--out", str(out)],
        stdout=subprocess.DEVNULL if quiet else sys.stderr,
        stderr=subprocess.PIPE if quiet else None,
        check=False,
    )
    if exporter.returncode:
        said = (exporter.stderr or b"").decode(errors="replace").strip().splitlines()
        raise BenchError(f"selva-export failed: {said[-1] if said else 'its own message is above'}")


def _newest_source_s() -> float:
    newest_s = 0.0
    for package in _EXPORTERS:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise BenchError("--preset exports a bundle, which needs more packages: pip install 'selva-deploy[export]'")
        for root in spec.submodule_search_locations:
            newest_s = max(newest_s, *(path.stat().st_mtime for path in Path(root).rglob("*.py")))
    return newest_s


def video_lasting(duration_s: float, video: Path, folder: Path) -> Path:
    """Returns `video` if it lasts `duration_s`, else a copy in `folder` that repeats its frames, without sound."""
    if not video.is_file():
        raise BenchError(f"{video} is not there; give a video with --video FILE")
    try:
        return video if _lasts(video, duration_s) else _repeated(video, duration_s, folder / "video.mp4")
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise BenchError(f"{video} cannot be used ({error}); give another --video") from error


def _repeated(video: Path, duration_s: float, out: Path) -> Path:
    with av.open(str(video)) as source:
        stream = source.streams.video[0]
        rate = Fraction(stream.average_rate or 25)
        width, height = stream.width // 2 * 2, stream.height // 2 * 2
    with av.open(str(out), "w") as target:
        made = target.add_stream("libx264", rate=rate, width=width, height=height, pix_fmt="yuv420p")
        for number, original in zip(range(int(duration_s * rate) + _SPARE_FRAMES), _forever(video), strict=False):
            frame = original.reformat(width, height, "yuv420p")
            frame.time_base, frame.pts = 1 / rate, number
            target.mux(made.encode(frame))
        target.mux(made.encode(None))
    return out


def _lasts(video: Path, duration_s: float) -> bool:
    """Whether the header states enough. A file without a duration counts as too short; a copy of it works as well."""
    with av.open(str(video)) as source:
        stream = source.streams.video[0]
        if stream.duration and stream.time_base:
            return bool(stream.duration * stream.time_base >= duration_s)
        return source.duration is not None and source.duration / av.time_base >= duration_s


def _forever(video: Path) -> Iterator[VideoFrame]:
    while True:
        with av.open(str(video)) as source:
            frame = None
            for frame in source.decode(video=0):
                yield frame
        if frame is None:
            raise BenchError(f"{video} has no frames; give another --video")
