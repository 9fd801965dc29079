"""The demo's counterpart of MMAudio: one mixed track of everything that sounds in the picture, an ambience bed.

It shares the text tower, autoencoder, vocoder and the teacher with the demo. Its own are the image tower and the
generator. Everything in the generator is trained, as MMAudio's is, on clips of one source and on scenes of two: the
teacher's features of the whole picture, visual tokens, a caption and the sound of all sources.
Shapes: N clips, B batch, S*8 sync features, D their width, C visual tokens, L text tokens, E width of both, T latent
length, Z latent width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import selva_ref
from selva_ref.demo.models.generator import NULL_SHARE, start_generator
from selva_ref.demo.models.image_tower import (
    TaughtImageTower,
    bank_tokens,
    draw_frames,
    image_loss,
    kind_vectors,
    shown_kinds,
)
from selva_ref.demo.run import BATCH, PRESET, DemoRun
from selva_ref.demo.selection import clean_features
from selva_ref.demo.world.clip_bank import ClipBank, pair_scenes
from selva_ref.demo.world.kinds import CAPTIONS, SCENES
from selva_ref.demo.world.scenes import Scene
from selva_ref.model.generator import Generator
from selva_ref.model.presets import PRESETS
from selva_ref.training.losses import flow_matching_loss
from selva_ref.weights.checkpoints import read_checkpoint

BED = PRESETS["demo_mmaudio"]
IMAGE_BATCH = 64
SOUND_ONLY = 0.3
"""Share of the examples with a caption of all that sounds and no picture. MMAudio learns most words from such data."""


@dataclass(frozen=True, kw_only=True)
class BedExamples:
    """The training data of the bed: one row per clip."""

    sync: Tensor
    """(N, S*8, D) the teacher's features of the whole picture."""
    clip: Tensor
    """(N, C, E) visual tokens."""
    mean: Tensor
    """(N, T, Z) posterior means of the latents of all that sounds."""
    deviation: Tensor
    """(N, T, Z) posterior deviations."""
    scenes: Sequence[Scene]
    """(N,) what the clip shows."""

    def __len__(self) -> int:
        return len(self.scenes)


def pair_bank(run: DemoRun) -> ClipBank:
    """The rendered scenes of two sources."""
    return ClipBank(pair_scenes(run.plan.pairs, run.seed), run.folder / "pairs.npy")


def train_image(run: DemoRun) -> None:
    """Trains the image tower on frames of both kinds of clips, half of each batch from either."""
    torch.manual_seed(run.seed + 8)
    taught = TaughtImageTower(selva_ref.build("clip_image", BED), kind_vectors(run.prompts, run.captions[1]))
    banks = [(bank, shown_kinds(bank)) for bank in (run.bank, pair_bank(run))]

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        drawn = [(shown, *draw_frames(bank, rng, IMAGE_BATCH // 2)) for bank, shown in banks]
        frames, labels = (torch.cat(parts) for parts in zip(*((f, shown[i]) for shown, f, i in drawn), strict=True))
        return image_loss(taught, frames, labels)

    run.fit("image", taught, loss, run.plan.image)
    run.save(taught.tower, "clip_image")


def train_bed(run: DemoRun) -> None:
    """Trains the generator of the mixed track."""
    torch.manual_seed(run.seed + 9)
    text = run.load(selva_ref.build("text_clip", PRESET), "text_clip")
    generator, examples = selva_ref.build("generator", BED), bed_examples(run)
    start_bed(generator, run.prompts.clip_features(text, [""])[0], read_checkpoint(run.file("mmaudio")))

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        rows = rng.integers(len(examples), size=BATCH)
        unseen = rng.random(len(rows)) < SOUND_ONLY
        captions = [draw_caption(rng, examples.scenes[row], whole) for row, whole in zip(rows, unseen, strict=True)]
        return bed_loss(generator, examples, rows, unseen, run.prompts.clip_features(text, captions), rng)

    run.fit("bed", generator, loss, run.plan.bed)
    run.save(generator, "bed")


@torch.no_grad()
def start_bed(generator: Generator, no_words_LE: Tensor, demo: Mapping[str, Tensor]) -> None:
    """Starts from a flow of zero, with two things given.

    The empty text is the text tower's features of "", and stays so, as in MMAudio. The latent's statistics are those of
    the demo's own generator: the decoder contains them, so that both models have the same one.
    """
    start_generator(generator)
    generator.empty_string_feat.copy_(no_words_LE)
    generator.empty_string_feat.requires_grad_(False)
    generator.latent_mean.copy_(demo["latent_mean"])
    generator.latent_std.copy_(demo["latent_std"])


def bed_examples(run: DemoRun) -> BedExamples:
    """The clips of one source, then the scenes of two."""
    pairs = pair_bank(run)
    teacher = run.load(selva_ref.build("teacher", PRESET), "teacher")
    tower = run.load(selva_ref.build("clip_image", BED), "clip_image")
    mean, deviation = run.latents
    pair_mean, pair_deviation = run.kept("pair_latents", lambda: run.posteriors(pairs))
    return BedExamples(
        sync=torch.cat((run.clean, run.kept("pair_clean", lambda: clean_features(teacher, pairs)))),
        clip=torch.cat((bank_tokens(tower, run.bank), bank_tokens(tower, pairs))),
        mean=torch.cat((mean, pair_mean)),
        deviation=torch.cat((deviation, pair_deviation)),
        scenes=[*run.bank.scenes, *pairs.scenes],
    )


def draw_caption(rng: np.random.Generator, scene: Scene, whole: bool = False) -> str:
    """Draws a caption in any order that names all the sounds (`whole`), or none, some or all, equally likely."""
    count = len(scene.sources) if whole else rng.integers(len(scene.sources) + 1)
    kinds = rng.permutation([source.kind for source in scene.sources])[:count]
    return ", ".join(str(rng.choice(SCENES)).format(rng.choice(CAPTIONS[kind])) for kind in kinds)


def bed_loss(
    generator: Generator,
    examples: BedExamples,
    rows: np.ndarray,
    unseen: np.ndarray,
    text_BLE: Tensor,
    rng: np.random.Generator,
) -> Tensor:
    """Flow matching loss on given rows, of which some are `unseen`; t = sigmoid(normal).

    Picture and text are also dropped at random, independently.
    """
    mean, deviation = examples.mean[rows], examples.deviation[rows]

    def normal(*size: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(size, dtype=np.float32))

    return flow_matching_loss(
        generator,
        generator.normalize(mean + deviation * normal(*mean.shape)),
        examples.sync[rows],
        text_BLE,
        clip_BCE=examples.clip[rows],
        noise=normal(*mean.shape),
        t_B=normal(len(rows)).sigmoid(),
        drop_video_B=torch.from_numpy(unseen | (rng.random(len(rows)) < NULL_SHARE)),
        drop_text_B=torch.from_numpy(rng.random(len(rows)) < NULL_SHARE),
    )
