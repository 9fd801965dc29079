"""Clips of moving frames, and short calls of a session."""

import numpy as np

from selva_runtime import Clip, Session, Stem

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
