"""Measures what faster arithmetic costs in sound: stems of the demo bundle, compared with ONNX Runtime in float32.

    python -m selva_bench.quality --out benchmarks/results/cpu_quality.json

The scenes are the demo's test sets. Signal-to-noise ratio and log10-mel distance (mean absolute error) compare sounds.
The event scores compare the heard events with the times at which the sources truly sounded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch

import selva_runtime
from selva_bench import machine
from selva_bench.statistics import snr_db
from selva_bundle.atomic import atomic_write
from selva_ref.demo.evaluation.events import Score, score
from selva_ref.demo.evaluation.report import TEST_SEED
from selva_ref.demo.evaluation.scores import TestScene, composed_tests, mixed_tests
from selva_ref.demo.world.kinds import prompt
from selva_ref.demo.world.scenes import DURATION_S
from selva_ref.model.mel import MelSpectrogram
from selva_ref.model.presets import PRESETS
from selva_runtime import BackendError, Session
from selva_runtime.backends.executor import BF16, EXACT, INT8

WAYS = (("cpu", EXACT), ("openvino", EXACT), ("openvino", BF16), ("openvino", INT8))
"""Backend and arithmetic; the others are compared with the first."""
Sounds = npt.NDArray[np.float32]


def stems(session: Session, tests: list[TestScene]) -> Sounds:
    """Returns (2 * scenes, samples): the stems of every scene's two sources."""
    found = []
    for index, test in enumerate(tests):
        clip = session.encode_frames(test.frames.numpy(), DURATION_S)
        prompts = [prompt(source.kind) for source in test.sources]
        found += [stem.audio for stem in session.generate(clip, prompts, seed=index)]
    return np.stack(found)


def scored(tests: list[TestScene], sounds: Sounds) -> Score:
    """Scores all stems of a test set together, without judging the kind of sound."""
    return Score.total(
        [
            score(sound, tests[i // 2].sources[i % 2].events_s, tests[i // 2].sources[1 - i % 2].events_s, True)
            for i, sound in enumerate(sounds)
        ]
    )


def compared(sounds: Sounds, reference: Sounds, mel: MelSpectrogram) -> dict[str, float | None]:
    """Distance from the reference sounds: over all samples, and averaged over the mel spectrogram."""
    distance = (mel(torch.from_numpy(sounds)) - mel(torch.from_numpy(reference))).abs().mean()
    return {"snr_db": snr_db(sounds.reshape(-1), reference.reshape(-1)), "log10_mel_l1": float(distance)}


def rows(bundle: Path, tests: dict[str, list[TestScene]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the label of each way that can run here, and its numbers by test set."""
    mel = MelSpectrogram(PRESETS["demo"].audio)
    references: dict[str, Sounds] = {}
    for backend, arithmetic in WAYS:
        label = f"{backend} {arithmetic}"
        try:
            session = Session(bundle, backend=backend, precision=arithmetic, cache="none")
        except BackendError as error:
            yield label, {"unavailable": str(error)}
            continue
        row: dict[str, dict[str, float | None]] = {}
        for name, scenes in tests.items():
            sounds = stems(session, scenes)
            found = scored(scenes, sounds)
            row[name] = {"f1": found.f1, "leak": found.leak, "offset_ms": found.offset_ms}
            if name in references:
                row[name] |= compared(sounds, references[name], mel)
            references.setdefault(name, sounds)
        yield label, row


def line(label: str, name: str, numbers: dict[str, Any]) -> str:
    """Formats a row of the table."""
    apart = "reference"
    if "snr_db" in numbers:
        ratio = math.inf if numbers["snr_db"] is None else numbers["snr_db"]
        apart = f"{ratio:5.1f} dB, log-mel {numbers['log10_mel_l1']:.4f}"
    return (
        f"{label:<16}{name:<10}F1 {numbers['f1']:.3f}  leak {numbers['leak']:.3f}  "
        f"offset {numbers['offset_ms']:4.1f} ms  {apart}"
    )


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path, exists=True, file_okay=False), help="[default: the demo's]")
@click.option("--scenes", type=click.IntRange(1), default=48, show_default=True, help="Scenes in each test set.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also kept as JSON.")
def main(bundle: Path | None, scenes: int, out: Path | None) -> None:
    """Stems of the demo bundle on each CPU backend and arithmetic: how far apart, and what is heard in them."""
    bundle = bundle or Path(selva_runtime.__file__).with_name("demo_bundle")
    tests = {"mixed": mixed_tests(scenes, TEST_SEED), "composed": composed_tests(scenes, TEST_SEED)}
    found = {}
    for label, row in rows(bundle, tests):
        found[label] = row
        if "unavailable" in row:
            click.echo(f"{label} is not available here: {row['unavailable']}")
            continue
        for name, numbers in row.items():
            click.echo(line(label, name, numbers))
    if out is not None:
        setting = {"command": "python -m selva_bench.quality", "scenes": scenes, "machine": machine.describe()}
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps({**setting, "ways": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
