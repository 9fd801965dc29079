"""Clips of moving frames, and short calls of a session."""

import numpy as np

from selva_bundle.ports import GUIDED_STEP
from selva_runtime import Clip, Session, Stem
from selva_runtime.flow import Held

SAMPLE_RATE_HZ = 16000


def moving_frames(count: int, size: int) -> np.ndarray:
    """A bright bar that moves over noise."""
    frames = np.random.default_rng(5).integers(0, 100, (count, 3, size, size), dtype=np.uint8)
    for i in range(count):
        frames[i, :, :, i % size] = 255
    return frames


def encode(session: Session, duration_s: float = 1.0) -> Clip:
    """Encodes moving frames of the bundle's size."""
    frames = moving_frames(int(25 * duration_s + 1e-6), session.info.image_size)
    return session.encode_frames(frames, duration_s)


def few_steps(session: Session, clip: Clip, prompts: list[str], **options: object) -> list[Stem]:
    """Generates in three steps, unless `options` says otherwise."""
    return session.generate(clip, prompts, **{"steps": 3, **options})


def flow_inputs(session: Session, duration_s: float = 1.0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Noise (1, T, Z) and conditions of a stem, as a session on a CPU gives them to the flow."""
    run, found = session._executor.run, {}

    def listen(name, feeds, cancel=None):
        if name == GUIDED_STEP:
            found.update(feeds)
        return run(name, feeds, cancel)

    session._executor.run = listen
    try:
        few_steps(session, encode(session, duration_s), ["rain"], steps=1)
    finally:
        del session._executor.run
    noise = found.pop("latents")
    return noise, {name: values for name, values in found.items() if name not in ("t", "dt", "guidance")}


def ramp(noise: np.ndarray, steps: int, seed: int) -> Held:
    """Random latents that are held at the beginning, free at the end (where they are NaN), and blended between."""
    values = np.random.default_rng(seed).standard_normal((steps, *noise.shape), np.float32)
    weights = np.clip(np.linspace(2, -1, noise.shape[1], dtype=np.float32), 0, 1)
    values[:, :, weights == 0] = np.nan
    return Held(values=values, weights=weights)


def least_snr_db(sounds: np.ndarray, references: np.ndarray) -> float:
    """The smallest signal-to-noise ratio of the stems (B, samples)."""
    assert sounds.shape == references.shape
    signal, noise = (np.square(values.astype(np.float64)).sum(1) for values in (references, sounds - references))
    return float(10 * np.log10(signal / (noise + 1e-30)).min())
