"""The stages as modules whose forward pass is their loss, because that is what PyTorch's DDP wraps.

The shapes are those of `examples`.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from selva_ref.model.average import AverageGenerator
from selva_ref.model.generator import Conditions, Generator
from selva_ref.model.video_encoder import VideoEncoder, segment
from selva_ref.pipeline import preprocess
from selva_ref.training.examples.mixed import Batch
from selva_ref.training.losses import distillation_loss, flow_matching_loss
from selva_ref.training.parameters import STAGE1, STAGE2, STUDENT, trainable
from selva_ref.training.paths import guided_path, path_loss


class Distillation(nn.Module):
    """Stage 1: compares the student (two mixed videos, the target's text) with the teacher (the target alone).

    For a text that neither video shows, the teacher sees a still picture of the scene. `encoder` is a fresh one, whose
    pooling is the teacher's.
    """

    part = "video_encoder"

    def __init__(self, encoder: VideoEncoder) -> None:
        super().__init__()
        self.network = encoder
        self.teacher_pooling = deepcopy(encoder.vfeat_extractor.spatial_attn_agg).requires_grad_(False)
        self.trained = trainable(encoder, STAGE1)

    def forward(self, batch: Batch) -> Tensor:
        """frames uint8 (B, T, 3, H, W), absent (B,), t5, t5_mask, teacher → loss ()."""
        target, absent = batch["teacher"], batch["absent"]
        if absent.any():
            target = torch.where(absent[:, None, None], self.still(batch["frames"], target.shape[1]), target)
        return distillation_loss(selected(self.network, batch), target)

    @torch.no_grad()
    def still(self, frames_BT3HW: Tensor, length: int) -> Tensor:
        """The teacher's features (B, length, D) of the first frame, held for the whole clip: nothing happens."""
        config = self.network.config
        frames = frames_BT3HW[:, :1].expand(-1, config.segment_frames, -1, -1, -1)
        video = preprocess(frames.flatten(0, 1), config.image_size).unflatten(0, frames.shape[:2])
        tokens_BND = self.network.backbone(segment(video, config))
        steps = rearrange(tokens_BND, "b (t p) d -> (b t) p d", t=config.time_tokens)
        pooled: Tensor = self.teacher_pooling(steps)
        return repeat(pooled, "(b t) d -> b (s t) d", t=config.time_tokens, s=length // config.time_tokens)


class FlowMatching(nn.Module):
    """Stage 2: the generator learns to use the encoder of stage 1, which stays fixed."""

    part = "generator"

    def __init__(self, generator: Generator, encoder: VideoEncoder, visual_tokens: int) -> None:
        super().__init__()
        self.network = generator
        self.encoder = encoder.requires_grad_(False)
        self.visual_tokens = visual_tokens
        self.trained = trainable(generator, STAGE2)

    def forward(self, batch: Batch) -> Tensor:
        """frames uint8 (B, T, 3, H, W) and everything from `flow_targets` → loss ()."""
        with torch.no_grad():
            sync = selected(self.encoder, batch)
        return flow_matching_loss(
            self.network,
            self.network.normalize(batch["latent"]),
            sync,
            batch["clip_text"],
            noise=batch["noise"],
            t_B=batch["t"],
            drop_video_B=batch["drop_video"],
            drop_text_B=batch["drop_text"],
            visual_tokens=self.visual_tokens,
        )


class PathRegression(nn.Module):
    """The student learns the mean velocities on paths of the guided generator, which stays fixed with its encoder."""

    part = "student"

    def __init__(
        self, student: AverageGenerator, teacher: Generator, encoder: VideoEncoder, *, steps: int, visual_tokens: int
    ) -> None:
        super().__init__()
        self.network = student
        self.teacher = teacher.requires_grad_(False)
        self.encoder = encoder.requires_grad_(False)
        self.steps = steps
        self.visual_tokens = visual_tokens
        self.trained = trainable(student, STUDENT)

    def forward(self, batch: Batch) -> Tensor:
        """frames uint8 (B, T, 3, H, W) and everything from `student_targets` → loss ()."""
        noise, strength = batch["noise"], batch["strength"]
        with torch.no_grad():
            sync = selected(self.encoder, batch)
            both = guidance(self.teacher, sync, batch, self.visual_tokens)
        states = guided_path(self.teacher, noise, strength, *both, self.steps)
        own = conditions(self.network, sync, batch, self.visual_tokens)
        return path_loss(self.network, states, batch["t"], batch["r"], strength, own)


Stage = Distillation | FlowMatching | PathRegression


def conditions(generator: Generator, sync: Tensor, batch: Batch, visual_tokens: int) -> Conditions:
    """The generator's conditions from sync features (B, N, D) and the target's text."""
    clip = generator.empty_clip(len(sync), visual_tokens)
    return generator.prepare(sync, clip, batch["clip_text"], latent_length=batch["noise"].shape[1])


def guidance(generator: Generator, sync: Tensor, batch: Batch, visual_tokens: int) -> tuple[Conditions, Conditions]:
    """Both sides of guidance: the conditions, and the empty ones."""
    real = conditions(generator, sync, batch, visual_tokens)
    return real, generator.prepare_empty(real, sync_length=sync.shape[1])


def selected(encoder: VideoEncoder, batch: Batch) -> Tensor:
    """Sync features (B, N, D) of the mixed frames with the target's text; the backbone is never trained."""
    frames, config = batch["frames"], encoder.config
    with torch.no_grad():
        video = preprocess(frames.flatten(0, 1), config.image_size).unflatten(0, frames.shape[:2])
        tokens = encoder.backbone(segment(video, config))
    return encoder.select(tokens, batch["t5"], batch["t5_mask"])
