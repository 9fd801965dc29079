"""Measures what a solver costs in sound with few steps: stems of the demo bundle, compared with 100 Euler steps.

    python -m selva_bench.solvers --out benchmarks/results/solvers.json

All runs start from the same noise. A step of either solver evaluates the network once. The scenes are the composed test
set of the demo. The latent error is relative (L2); log10-mel distance and event scores are those of `quality`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import selva_runtime
from selva_bench import machine
from selva_bench.quality import Sounds, compared, scored
from selva_bundle.atomic import atomic_write
from selva_bundle.ports import DECODER
from selva_ref.demo.evaluation.report import TEST_SEED
from selva_ref.demo.evaluation.scores import TestScene, composed_tests
from selva_ref.demo.world.kinds import prompt
from selva_ref.demo.world.scenes import DURATION_S
from selva_ref.model.mel import MelSpectrogram
from selva_ref.model.presets import PRESETS
from selva_runtime import Clip, Session
from selva_runtime.flow import EULER, SOLVERS

REFERENCE_STEPS = 100
STEPS = (4, 8, 12, 16, 25)
Latents = npt.NDArray[np.float32]


@contextmanager
def decoded(session: Session) -> Iterator[list[Latents]]:
    """Collects the latents (1, T, Z) that the session decodes meanwhile."""
    executor, found = session._executor, []
    run = executor.run

    def listen(name: str, feeds: Any, cancel: Any = None) -> Any:
        if name == DECODER:
            found.append(np.asarray(feeds["latents"]))
        return run(name, feeds, cancel)

    executor.run = listen  # type: ignore[method-assign]
    try:
        yield found
    finally:
        executor.run = run  # type: ignore[method-assign]


def stems(
    session: Session, clips: list[Clip], tests: list[TestScene], solver: str, steps: int
) -> tuple[Sounds, Latents]:
    """Returns the stems (2 * scenes, samples) of every scene's two sources, and their latents (2 * scenes, T, Z)."""
    sounds = []
    with decoded(session) as latents:
        for index, (clip, test) in enumerate(zip(clips, tests, strict=True)):
            prompts = [prompt(source.kind) for source in test.sources]
            found = session.generate(clip, prompts, seed=index, solver=solver, steps=steps)
            sounds += [stem.audio for stem in found]
    return np.stack(sounds), np.concatenate(latents)


def rows(session: Session, tests: list[TestScene]) -> Iterator[tuple[str, int, dict[str, float | None]]]:
    """Yields solver, steps and numbers: first those of the reference, then of each solver."""
    mel = MelSpectrogram(PRESETS["demo"].audio)
    clips = [session.encode_frames(test.frames.numpy(), DURATION_S) for test in tests]
    reference, exact = stems(session, clips, tests, EULER, REFERENCE_STEPS)
    for solver, steps in [(EULER, REFERENCE_STEPS), *((solver, steps) for solver in SOLVERS for steps in STEPS)]:
        is_reference = steps == REFERENCE_STEPS
        sounds, latents = (reference, exact) if is_reference else stems(session, clips, tests, solver, steps)
        found = scored(tests, sounds)
        yield (
            solver,
            steps,
            {
                "latent_error": float(np.linalg.norm(latents - exact) / np.linalg.norm(exact)),
                "log10_mel_l1": compared(sounds, reference, mel)["log10_mel_l1"],
                "f1": found.f1,
                "leak": found.leak,
                "offset_ms": found.offset_ms,
            },
        )


def line(solver: str, steps: int, numbers: dict[str, float | None]) -> str:
    """Formats a row of the Markdown table."""
    return (
        f"| {solver} | {steps} | {numbers['latent_error']:.3f} | {numbers['log10_mel_l1']:.3f} | {numbers['f1']:.3f} "
        f"| {numbers['leak']:.3f} | {numbers['offset_ms']:.1f} |"
    )


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path, exists=True, file_okay=False), help="[default: the demo's]")
@click.option("--scenes", type=click.IntRange(1), default=8, show_default=True, help="Scenes, of two stems each.")
@click.option("--backend", default="openvino", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also kept as JSON.")
def main(bundle: Path | None, scenes: int, backend: str, out: Path | None) -> None:
    """Stems of the demo bundle by each solver in few steps: how far from many steps, and what is heard in them."""
    session = Session(bundle or Path(selva_runtime.__file__).with_name("demo_bundle"), backend=backend)
    click.echo("| solver | steps | latent error | log-mel L1 | F1 | leak | offset, ms |\n|---|---|---|---|---|---|---|")
    found = []
    for solver, steps, numbers in rows(session, composed_tests(scenes, TEST_SEED)):
        found.append({"solver": solver, "steps": steps, **numbers})
        click.echo(line(solver, steps, numbers))
    if out is not None:
        setting = {"command": "python -m selva_bench.solvers", "scenes": scenes, "backend": backend}
        with atomic_write(out) as temporary:
            temporary.write_text(
                json.dumps({**setting, "machine": machine.describe(), "rows": found}, indent=1) + "\n", encoding="utf-8"
            )


if __name__ == "__main__":
    main()
