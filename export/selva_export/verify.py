"""Compares every graph with the reference on ONNX Runtime, through Polygraphy, before a bundle is finished."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.logger import G_LOGGER
from torch import nn

from selva_export.errors import ParityError
from selva_export.signatures import Signature

TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}
"""Largest allowed relative error ‖out − reference‖/‖reference‖ of an output; the reference is always float32."""

QUIET = {"audio": 1e-4}
"""RMS of an output below which an error counts as if the output had it: -80 dB of full scale.

Random latents may be silence to a trained decoder (the demo's: -100 dB). float32 itself is 4e-4 of that.
"""

# Sizes other than the traced ones: a single stem of a single segment, and several of everything.
VERIFY_AXES = (
    {"prompts": 1, "tokens": 3, "stems": 1, "segments": 1, "latent": 20, "clip": 5},
    {"prompts": 3, "tokens": 13, "stems": 3, "segments": 2, "latent": 33, "clip": 8},
)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far one output of one graph is from the reference, at the worst of the checked sizes."""

    graph: str
    output: str
    shape: tuple[int, ...]
    relative_error: float
    tolerance: float

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio that corresponds to the relative error."""
        return -20 * math.log10(max(self.relative_error, 1e-12))


def reference_outputs(module: nn.Module, signature: Signature, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The module's outputs in float32."""
    with torch.inference_mode():
        outputs = module(*(torch.from_numpy(feeds[port.name]) for port in signature.inputs))
    return [value.numpy() for value in (outputs if isinstance(outputs, tuple) else (outputs,))]


def compare(
    path: Path,
    signature: Signature,
    cases: Iterable[tuple[Mapping[str, np.ndarray], list[np.ndarray]]],
    tolerance: float,
) -> list[Parity]:
    """Compares the graph at `path` with (feeds, reference outputs) pairs.

    Raises:
        ParityError: an output is out of tolerance, not finite or of the wrong shape; names all of them. Also if the
            reference is not finite or all zero, because then the comparison means nothing.
    """
    worst: dict[str, Parity] = {}
    with G_LOGGER.verbosity(G_LOGGER.ERROR), OnnxrtRunner(SessionFromOnnx(str(path))) as runner:
        for feeds, references in cases:
            outputs = runner.infer(dict(feeds))
            for port, reference in zip(signature.outputs, references, strict=True):
                parity = _parity(signature.name, port.name, outputs[port.name], reference, tolerance)
                if port.name not in worst or parity.relative_error > worst[port.name].relative_error:
                    worst[port.name] = parity
    failed = [p for p in worst.values() if p.relative_error > tolerance]
    if failed:
        text = ", ".join(f"{p.output} {p.relative_error:.2e}" for p in failed)
        raise ParityError(f"graph {signature.name} differs from the reference by more than {tolerance:.0e}: {text}")
    return list(worst.values())


def _parity(graph: str, output: str, value: np.ndarray, reference: np.ndarray, tolerance: float) -> Parity:
    if value.shape != reference.shape:
        raise ParityError(f"graph {graph}: {output} has shape {value.shape}, the reference has {reference.shape}")
    size = float(np.linalg.norm(reference))
    if not 0 < size < math.inf:
        what = "not finite" if size else "all zero"
        raise ParityError(f"graph {graph}: the reference of {output} is {what}: check the weights for damage")
    size = max(size, QUIET.get(output, 0.0) * math.sqrt(reference.size))
    error = float(np.linalg.norm(value - reference) / size)
    error = error if math.isfinite(error) else math.inf  # comparing NaN would not make it the worst
    return Parity(graph=graph, output=output, shape=value.shape, relative_error=error, tolerance=tolerance)


def table(rows: Iterable[Parity]) -> str:
    """Formats the parities as aligned text."""
    lines = [f"{'graph':<18} {'output':<13} {'shape':<18} {'rel. error':>10} {'SNR, dB':>8} {'allowed':>8}"]
    for p in rows:
        shape = "x".join(map(str, p.shape))
        lines.append(
            f"{p.graph:<18} {p.output:<13} {shape:<18} {p.relative_error:>10.1e} {p.snr_db:>8.1f} {p.tolerance:>8.0e}"
        )
    return "\n".join(lines)
