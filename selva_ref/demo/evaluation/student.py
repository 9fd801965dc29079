"""What the student costs in sound: its stems, compared with those of 25 guided steps from the same noise.

Half of the stems are of mixed scenes and half of composed ones. Log-mel L1 is the mean distance of the log10-mel
spectrograms of the stems. The Fréchet distance is that of normal distributions fitted to all latent vectors of the
stems, as normalised for the generator: |m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½), with the trace of the root as the
sum of the roots of the eigenvalues of C_a C_b. An evaluation is one pass of the network; a guided step takes two.
Shapes: B stems, T latent length, Z latent width, R seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

import selva_ref
from selva_bundle.atomic import atomic_write
from selva_ref.demo.evaluation import cases
from selva_ref.demo.evaluation.ablations import VARIANTS, features_of
from selva_ref.demo.evaluation.case_report import (
    ABSENT_BAR,
    UNKNOWN_BAR,
    Measure,
    measure_numbers,
    measure_table,
    silent,
    stems_by,
)
from selva_ref.demo.evaluation.cases import Stems
from selva_ref.demo.evaluation.events import Score
from selva_ref.demo.evaluation.report import TEST_SEED, EvaluationData, numbers
from selva_ref.demo.evaluation.scores import BATCH, Judge, TestScene, score_stems
from selva_ref.demo.run import PRESET, DemoRun
from selva_ref.demo.sampling import guided, heard, noise_like, prepared
from selva_ref.demo.world.kinds import KINDS
from selva_ref.demo.world.scenes import SAMPLES
from selva_ref.model.average import AverageGenerator, jumps
from selva_ref.model.flow_matching import ab2, euler
from selva_ref.model.generator import Generator

SCENES = 16
"""Scenes of each test set, of two stems each."""
GUIDANCE, STEPS = 4.5, 25
JUMPS = (1, 2, 4, 8)
DRAFT = 4
"""How many of them the bars are for."""
SEEDS, VARIED = 4, 16
"""How many seeds of how many stems the diversity compares."""

Sample = Callable[[Tensor, Tensor, int], Tensor]
"""Sync features (B, S*8, D), text features (B, L, E) and a seed → normalised latents (B, T, Z)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A way to make latents, and what it gives."""

    name: str
    evaluations: int
    log_mel_l1: float
    frechet: float
    score: Score


def evaluate_student(run: DemoRun) -> str:
    """Scores the run's student, writes `student_evaluation.{json,md}` and returns the table."""
    court = EvaluationData.of(run)
    tests = [scene for scenes in court.tests.values() for scene in scenes[:SCENES]]
    tokens = torch.cat([each[:SCENES] for each in court.tokens.values()])
    kinds = np.array([KINDS.index(source.kind) for test in tests for source in test.sources])
    captions = run.prompts.plain(kinds)
    with torch.no_grad():
        sync = features_of(run, VARIANTS[0])(tokens.repeat_interleave(2, dim=0), captions)
    text = court.judge.text_features[captions]
    teacher = run.load(selva_ref.build("generator", PRESET), "generator")
    student = run.load(selva_ref.build("student", PRESET), "student")
    rows = student_rows(court.judge, teacher, student, tests, sync, text, run.seed)
    length = court.judge.latent_length
    spaced = slice(None, None, max(1, len(kinds) // VARIED))
    spread = [
        diversity(torch.stack([sample(sync[spaced], text[spaced], run.seed + k) for k in range(SEEDS)]))
        for sample in (guided_sample(teacher, length, euler, STEPS), jump_sample(student, length, DRAFT))
    ]
    bars = measure_numbers([*closeness(rows), *silence(run, court.judge, student), _ratio(spread)])
    report = {
        "command": "selva-train demo --only evaluate",
        "seed": run.seed,
        "stems": len(kinds),
        "guidance": GUIDANCE,
        "rows": {
            row.name: {
                "evaluations": row.evaluations,
                "log10_mel_l1": round(row.log_mel_l1, 4),
                "latent_frechet": round(row.frechet, 4),
                **numbers(row.score),
            }
            for row in rows
        },
        "bars": bars,
        "diversity": {"teacher": round(spread[0], 4), f"student, {DRAFT} jumps": round(spread[1], 4)},
    }
    table = f"{student_table(rows)}\n\n{measure_table(bars)}"
    for name, content in (("json", json.dumps(report, indent=1)), ("md", table)):
        with atomic_write(run.folder / f"student_evaluation.{name}") as temporary:
            temporary.write_text(content + "\n", encoding="utf-8")
    return table


def student_rows(
    judge: Judge,
    teacher: Generator,
    student: AverageGenerator,
    tests: list[TestScene],
    sync_BND: Tensor,
    text_BLD: Tensor,
    seed: int,
) -> list[Row]:
    """Compares all ways with the teacher's `STEPS` guided steps, which are the first row."""
    length = judge.latent_length
    ways: dict[str, tuple[int, Sample]] = {
        f"teacher, Euler {STEPS}": (2 * STEPS, guided_sample(teacher, length, euler, STEPS)),
        "teacher, Euler 8": (16, guided_sample(teacher, length, euler, 8)),
        "teacher, Euler 4": (8, guided_sample(teacher, length, euler, 4)),
        "teacher, AB2 4": (8, guided_sample(teacher, length, ab2, 4)),
        **{_jumps_name(n): (n, jump_sample(student, length, n)) for n in JUMPS},
    }
    rows: list[Row] = []
    for name, (evaluations, sample) in ways.items():
        parts = [slice(start, start + BATCH) for start in range(0, len(sync_BND), BATCH)]
        latents = torch.cat([sample(sync_BND[part], text_BLD[part], seed + part.start) for part in parts])
        with torch.inference_mode():
            stems = np.concatenate(
                [heard(teacher, judge.vae, judge.vocoder, latents[part])[:, :SAMPLES] for part in parts]
            )
            mels = judge.mel(torch.from_numpy(stems))
        if not rows:
            exact, exact_mels = latents, mels
        rows.append(
            Row(
                name=name,
                evaluations=evaluations,
                log_mel_l1=float((mels - exact_mels).abs().mean()),
                frechet=frechet(latents, exact),
                score=score_stems(judge, tests, stems),
            )
        )
    return rows


def closeness(rows: list[Row]) -> list[Measure]:
    """The bars of `DRAFT` jumps: what they may cost beside the teacher's steps, and that they beat undistilled ones."""
    by_name = {row.name: row for row in rows}
    exact, ab2_4, draft = rows[0], by_name["teacher, AB2 4"], by_name[_jumps_name(DRAFT)]
    late_ms = draft.score.offset_ms - exact.score.offset_ms
    found = [
        ("log-mel L1", draft.log_mel_l1, 0.05, True),
        ("log-mel L1, by that of AB2 4", draft.log_mel_l1 / ab2_4.log_mel_l1, 1.0, True),
        ("latent Fréchet", draft.frechet, 0.05, True),
        ("latent Fréchet, by that of AB2 4", draft.frechet / ab2_4.frechet, 1.0, True),
        ("mean offset, ms more than the teacher", late_ms, 0.5, True),
        ("F1, more than the teacher", draft.score.f1 - exact.score.f1, 0.0, False),
        ("right kind, more than the teacher", draft.score.kind - exact.score.kind, 0.0, False),
        ("evaluations, by the teacher's", draft.evaluations / exact.evaluations, 0.1, True),
    ]
    return [Measure(case=draft.name, name=name, value=v, bar=bar, at_most=most) for name, v, bar, most in found]


def silence(run: DemoRun, judge: Judge, student: AverageGenerator) -> list[Measure]:
    """Whether the student too is silent when asked for what is not shown or unknown."""
    jump, seed = jump_sample(student, judge.latent_length, DRAFT), run.seed + TEST_SEED

    def sample(sync_BND: Tensor, text_BLD: Tensor, seed: int) -> Stems:
        return heard(student, judge.vae, judge.vocoder, jump(sync_BND, text_BLD, seed))

    make, normal_db = stems_by(run, sample), cases.normal_levels(seed)
    return [
        Measure(
            case=f"{_jumps_name(DRAFT)}, {case}",
            name="silent",
            value=silent(cases.answers(judge, ask(run.plan.tests, seed), make, normal_db, run.seed)),
            bar=bar,
        )
        for case, ask, bar in (
            ("a known kind that is not shown", cases.absent_questions, ABSENT_BAR),
            ("a word for something unknown", cases.unknown_questions, UNKNOWN_BAR),
        )
    ]


def _ratio(spread: list[float]) -> Measure:
    return Measure(case=_jumps_name(DRAFT), name="diversity, by the teacher's", value=spread[1] / spread[0], bar=0.9)


def _jumps_name(count: int) -> str:
    return f"student, {count} jump{'s' * (count > 1)}"


def guided_sample(generator: Generator, length: int, solver: Callable[..., Tensor], steps: int) -> Sample:
    """Samples with guided steps of a solver."""

    @torch.inference_mode()
    def sample(sync_BND: Tensor, text_BLD: Tensor, seed: int) -> Tensor:
        conditions = prepared(generator, sync_BND, text_BLD, length)
        flow = guided(generator, conditions, sync_BND.shape[1], GUIDANCE)
        return solver(flow, noise_like(conditions, generator, seed), steps=steps)

    return sample


def jump_sample(student: AverageGenerator, length: int, steps: int) -> Sample:
    """Samples with jumps of the student, which has the guidance inside."""

    @torch.inference_mode()
    def sample(sync_BND: Tensor, text_BLD: Tensor, seed: int) -> Tensor:
        conditions = prepared(student, sync_BND, text_BLD, length)
        strength = torch.full((len(sync_BND),), GUIDANCE)
        noise = noise_like(conditions, student, seed)
        return jumps(lambda x, t, r: student.average(x, t, r, strength, conditions), noise, steps=steps)

    return sample


def frechet(a_BTZ: Tensor, b_BTZ: Tensor) -> float:
    """Fréchet distance of the latent vectors of two sets of stems; see the module."""
    a, b = (x.flatten(0, -2).double() for x in (a_BTZ, b_BTZ))
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root)


def diversity(latents_RBTZ: Tensor) -> float:
    """Mean L2 distance between the latents of one stem from two seeds, over all pairs of seeds and all stems."""
    pairs = combinations(latents_RBTZ.flatten(2), 2)
    return float(torch.stack([(a - b).norm(dim=-1) for a, b in pairs]).mean())


def student_table(rows: list[Row]) -> str:
    """Formats a Markdown table."""
    lines = [
        "| way | evaluations of the network | log-mel L1 ↓ | latent Fréchet ↓ | target onsets F1 ↑ "
        "| other source's onsets heard ↓ | mean offset, ms ↓ | right kind ↑ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        s = row.score
        lines.append(
            f"| {row.name} | {row.evaluations} | {row.log_mel_l1:.3f} | {row.frechet:.3f} | {s.f1:.2f} | {s.leak:.2f} "
            f"| {s.offset_ms:.1f} | {s.kind:.2f} |"
        )
    return "\n".join(lines)
