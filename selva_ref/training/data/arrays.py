"""The arrays of extracted features: their types and shapes, and how to open one safely."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from selva_ref.model.presets import Preset
from selva_ref.pipeline import sequence_rules
from selva_ref.training.errors import TrainingError

Shape = tuple[int | None, ...]
"""None: any size."""


def layout(
    preset: Preset, duration_s: float, clips: int, labels: int
) -> dict[str, tuple[type, tuple[int | None, ...]]]:
    """Array name → its type and shape."""
    rules = sequence_rules(preset)
    lengths, text, width = rules.lengths(duration_s), preset.generator, preset.video.text_width
    return {
        "posterior": (np.float32, (clips, 2, lengths.latent, rules.latent_width)),
        "teacher": (np.float16, (clips, lengths.sync, preset.video.width)),
        "text_t5": (np.float32, (labels, None, width)),
        "text_t5_tokens": (np.int64, (labels,)),
        "text_clip": (np.float32, (labels, text.text_tokens, text.text_width)),
    }


def open_array(path: Path, dtype: type, shape: Shape, mode: str = "r") -> np.memmap:
    """Opens a `.npy` file memory-mapped.

    Raises:
        TrainingError: the file is incomplete, or has another type or shape.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # first read-only: "r+" would extend a file that is too short
    except OSError:
        raise
    except Exception as error:  # a damaged header can make NumPy raise almost anything
        raise TrainingError(f"{path}: damaged ({error}); extract into a new folder") from error
    fits = len(array.shape) == len(shape) and all(n in (have, None) for n, have in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        wanted = f"{np.dtype(dtype)} ({', '.join('any' if n is None else str(n) for n in shape)})"
        raise TrainingError(f"{path}: {array.dtype} {array.shape}, not {wanted}; extract into a new folder")
    return array if mode == "r" else np.lib.format.open_memmap(path, mode=mode)
