"""A bundle with random weights for a preset, exported once and cached: at full size it takes minutes and gigabytes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from selva_bench.errors import BenchError

_EXPORTERS = ("selva_export", "selva_ref")


def random_bundle(preset: str, precision: str, cache: Path, *, quiet: bool) -> Path:
    """Returns the bundle in `cache`. Exports it if it does not exist or is older than the code that makes it."""
    newest_s = _newest_source_s()
    bundle = cache / f"selva-bench-{preset}-{precision}"
    manifest = bundle / "manifest.json"
    if manifest.is_file() and manifest.stat().st_mtime >= newest_s:
        return bundle
    manifest.unlink(missing_ok=True)
    shutil.rmtree(bundle, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".selva-bench-", dir=cache) as folder:
        _export(preset, precision, Path(folder) / "bundle", quiet=quiet)
        (Path(folder) / "bundle").rename(bundle)
    return bundle


def _export(preset: str, precision: str, out: Path, *, quiet: bool) -> None:
    """Exports in a separate process, so that PyTorch's memory and threads do not stay in the one that measures."""
    from selva_ref.model.presets import PRESETS

    if preset not in PRESETS:
        raise BenchError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    options = ["--preset", preset, "--precision", precision, "--random-weights", "--out", str(out)]
    exporter = subprocess.run(
        [sys.executable, "-c", "from selva_export.cli import main; main()", *options],
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
            raise BenchError("--preset exports a bundle, which needs more: pip install 'selva-deploy[export]'")
        for root in spec.submodule_search_locations:
            newest_s = max(newest_s, *(path.stat().st_mtime for path in Path(root).rglob("*.py")))
    return newest_s
