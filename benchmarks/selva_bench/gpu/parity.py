"""Every graph and two stems on a GPU backend against ONNX Runtime on the CPU, from the same inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from selva_bench.gpu.setting import Emit, Setting, open_session, tried
from selva_bench.options import BenchError
from selva_bench.statistics import snr_db
from selva_runtime.session import Session

LEAST_SNR_DB = 35.0
MOST_ERROR = {"fp32": 1e-3, "fp16": 2e-2}
"""Largest relative error of a graph's outputs, by the bundle's precision."""
_PARITY_S = 1.0
_PROMPTS = ("dog barking", "rain on a tin roof")


def parity(setting: Setting, emit: Emit, backend: str, precision: str) -> None:
    """Every graph and two stems against ONNX Runtime on the CPU, in float32 if there is such a bundle."""
    exact = setting.bundles.get("fp32", Path())
    exact = exact if (exact / "manifest.json").is_file() else setting.bundles[precision]
    session = open_session(setting, setting.bundles[precision], backend)
    truth = open_session(setting, exact, "cpu")
    emit("backend", session.info.backend_reason)
    calls = _calls_of(truth)
    expected = _sounds(truth, setting.steps)
    for name, (feeds, outputs) in calls.items():
        tried(emit, name, lambda f=feeds, o=outputs, n=name: _error(session, n, f, o, MOST_ERROR[precision]))  # type: ignore[misc]
    tried(emit, "stem", lambda: _least_snr(_sounds(session, setting.steps), expected))


def _calls_of(session: Session) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Fills while the session works: graph → inputs and outputs of its first run."""
    calls: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    executor: Any = session._executor
    run = executor.run

    def kept(name: str, feeds: dict[str, Any], cancel: Any = None) -> dict[str, Any]:
        outputs: dict[str, Any] = run(name, feeds, cancel)
        calls.setdefault(name, (dict(feeds), outputs))
        return outputs

    executor.run = kept
    return calls


def _sounds(session: Session, steps: int) -> list[np.ndarray]:
    size, frames = session.info.image_size, int(np.ceil(_PARITY_S * session.info.fps)) + 1
    video = np.random.default_rng(0).integers(0, 256, (frames, 3, size, size), np.uint8)
    clip = session.encode_frames(video, _PARITY_S)
    return [stem.audio for stem in session.generate(clip, _PROMPTS, steps=steps)]


def _error(
    session: Session, name: str, feeds: dict[str, Any], outputs: dict[str, Any], most: float
) -> dict[str, float | bool]:
    found = session._executor.run(name, feeds)
    worst = max(_relative_error(np.asarray(found[port]), values) for port, values in outputs.items())
    if not np.isfinite(worst):
        raise BenchError("some values are not finite")
    return {"ok": worst <= most, "relative_error": worst, "most": most}


def _relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    apart = float(np.linalg.norm((found.astype(np.float64) - wanted).reshape(-1)))
    return apart / max(float(np.linalg.norm(wanted.astype(np.float64).reshape(-1))), 1e-30)


def _least_snr(sounds: list[np.ndarray], expected: list[np.ndarray]) -> dict[str, float | bool | None]:
    different = [pair for pair in zip(sounds, expected, strict=True) if not np.array_equal(*pair)]
    ratios = [snr_db(*pair) for pair in different]
    least = min((ratio for ratio in ratios if ratio is not None), default=None)
    return {
        "ok": None not in ratios and (least is None or least >= LEAST_SNR_DB),
        "snr_db": least,
        "least": LEAST_SNR_DB,
    }
