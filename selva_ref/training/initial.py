"""Initial weights: Synchformer for the encoder, MMAudio for the generator, the generator for the student."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import selva_ref
from selva_ref.errors import CheckpointNotFoundError
from selva_ref.model.average import AverageGenerator
from selva_ref.model.generator import Generator
from selva_ref.model.presets import Preset
from selva_ref.model.video_encoder import VideoEncoder
from selva_ref.weights.checkpoints import read_checkpoint

CROSS_GAIN = 0.1
"""Initial share of a token that cross-attention adds: large enough for a gradient, small otherwise."""


def fresh_encoder(preset: Preset, teacher: Path, seed: int) -> VideoEncoder:
    """Takes the teacher's backbone and spatial pooling, and puts a new cross-attention block near the identity between.

    The network normalises queries, keys and the attention's output, so only the layers after the last norm set the
    block's scale: `norm1` starts at 0.1 and the feed-forward part at zero.

    Raises:
        CheckpointError: the teacher's file does not fit.
    """
    visual = selva_ref.build("teacher", preset).load_official(read_checkpoint(teacher))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = selva_ref.build("video_encoder", preset)
        nn.init.trunc_normal_(encoder.sup_text_feat, std=0.02)
    for block in encoder.synch_text_cross_blocks:
        nn.init.constant_(block.get_parameter("norm1.weight"), CROSS_GAIN)
        nn.init.zeros_(block.get_parameter("ffn.w2.weight"))
    encoder.load_state_dict(encoder.state_dict() | visual.state_dict())
    return encoder


def base_generator(preset: Preset, path: Path) -> Generator:
    """Loads MMAudio's generator, or any other of this preset.

    Raises:
        CheckpointError: it does not fit.
    """
    return selva_ref.build("generator", preset).load_official(read_checkpoint(path))


def fresh_student(generator: Generator, preset: Preset, seed: int) -> AverageGenerator:
    """Copies the generator, without its guidance; the embeddings of span and strength start without effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = selva_ref.build("student", preset)
    student.load_state_dict(student.state_dict() | generator.state_dict())
    return student


def find_base(checkpoints: Path, preset: Preset) -> Path:
    """Finds MMAudio's generator of this preset among the checkpoints.

    Raises:
        CheckpointNotFoundError: it does not exist; the message says how to get it.
    """
    stem = f"mmaudio_{preset.name}"
    for folder in (checkpoints, checkpoints / "weights"):
        for suffix in (".safetensors", ".pth"):
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    raise CheckpointNotFoundError(
        f"{checkpoints}: no {stem}.pth, the generator that stage 2 starts from; get it with: "
        f"selva-fetch --preset {stem} --out {checkpoints}, or name another with --base"
    )
