"""The paper's ablations on the demo: each changes one part of the recipe, to measure its effect.

A variant is a way to make sync features and a generator. Each is trained as long as the full recipe. The joint one
takes as many steps as the first stage, and each of its steps costs as much as a step of both stages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

import selva_ref
from selva_ref.demo.evaluation.scores import Features
from selva_ref.demo.models.generator import generator_loss_on
from selva_ref.demo.run import BATCH, PRESET, DemoRun
from selva_ref.demo.selection import pooled
from selva_ref.model.generator import Generator
from selva_ref.training.initial import fresh_encoder
from selva_ref.training.parameters import STAGE1, STAGE2, trainable

NO_SUP = replace(PRESET, video=replace(PRESET.video, sup_tokens=0))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table."""

    name: str
    encoder: str | None
    """File of the trained encoder; None: the teacher's features of everything in the picture."""
    generator: str
    sup: bool = True


VARIANTS = (
    Variant(name="full", encoder="video_encoder", generator="generator"),
    Variant(name="without video encoder training", encoder=None, generator="generator_no_encoder"),
    Variant(name="without generator training", encoder="video_encoder", generator="mmaudio"),
    Variant(name="without silence", encoder="video_encoder_no_silence", generator="generator_no_silence"),
    Variant(name="without [SUP]", encoder="video_encoder_no_sup", generator="generator_no_sup", sup=False),
    Variant(name="joint, one stage", encoder="video_encoder_joint", generator="generator_joint"),
    Variant(name="no selection", encoder=None, generator="mmaudio"),
)


def train_no_encoder(run: DemoRun) -> None:
    """Trains stage 2 on the teacher's features of the mixed clips."""
    teacher, rows = run.load(selva_ref.build("teacher", PRESET), "teacher"), np.arange(0, len(run.mixes), 2)
    with torch.no_grad():
        each = torch.cat([pooled(teacher, run.mixes.tokens_of(rows[i : i + 16])) for i in range(0, len(rows), 16)])
    quiet, asked = run.absent_rows(np.random.default_rng([run.seed, 3]), run.plan.absent)
    seen, targets = each.repeat_interleave(2, dim=0), run.mixes.targets(np.arange(len(run.mixes)))
    run.adapt("generator_no_encoder", run.examples(seen, targets, (seen[quiet], asked)))


def train_no_sup(run: DemoRun) -> None:
    """Trains both stages without supplementary tokens."""
    if not run.file("video_encoder_no_sup").exists():
        run.stage1("video_encoder_no_sup", NO_SUP)
    run.stage2("generator_no_sup", "video_encoder_no_sup", NO_SUP)


def train_no_silence(run: DemoRun) -> None:
    """Trains both stages without texts for what is absent, from the same base generator."""
    name = "video_encoder_no_silence"
    if not run.file(name).exists():
        run.stage1(name, absent=0.0)
    run.adapt("generator_no_silence", run.selections(name, absent=0.0))


def train_joint(run: DemoRun) -> None:
    """Trains encoder and generator together on the flow loss alone: no teacher, no first stage."""
    student = fresh_encoder(PRESET, run.file("teacher"), run.seed + 7)
    generator = run.load(selva_ref.build("generator", PRESET), "mmaudio")
    trainable(student, STAGE1)
    trainable(generator, STAGE2)
    quiet, asked = run.absent_rows(np.random.default_rng([run.seed, 3]), run.plan.absent)
    rows = np.concatenate((np.arange(len(run.mixes)), quiet))
    none = torch.empty(0)  # the features come from the encoder
    examples = run.examples(none, run.mixes.targets(rows[: len(run.mixes)]), (none, asked))
    t5, clip = run.captions

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        drawn = rng.integers(len(rows), size=BATCH)
        captions = run.prompts.draw(rng, examples.kinds[drawn])
        sync = student.select(run.mixes.tokens_of(rows[drawn]), t5[captions], run.prompts.t5_mask[captions])
        return generator_loss_on(generator, examples, drawn, sync, clip[captions], rng)

    run.fit("joint", nn.ModuleList([student, generator]), loss, run.plan.stage1)
    run.save(student, "video_encoder_joint")
    run.save(generator, "generator_joint")


def features_of(run: DemoRun, variant: Variant) -> Features:
    """Returns how the variant makes sync features from backbone tokens and a caption."""
    if variant.encoder is None:
        teacher = run.load(selva_ref.build("teacher", PRESET), "teacher")
        return lambda tokens, captions: pooled(teacher, tokens)
    student = run.load(selva_ref.build("video_encoder", PRESET if variant.sup else NO_SUP), variant.encoder)
    t5, mask = run.captions[0], run.prompts.t5_mask
    return lambda tokens, captions: student.select(tokens, t5[captions], mask[captions])


def generator_of(run: DemoRun, variant: Variant) -> Generator:
    """The variant's generator."""
    return run.load(selva_ref.build("generator", PRESET), variant.generator)
