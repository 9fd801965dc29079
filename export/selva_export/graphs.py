"""The graphs of a bundle, as modules that torch can export.

Each wraps parts of `selva_ref` with the inputs and outputs of the runtime: float32 and integers outside, the weights'
own precision inside. Everything that does not depend on the latent is in `Conditions`, so that `GuidedStep`, which runs
once per step, does not repeat it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from selva_ref.model.average import AverageGenerator
from selva_ref.model.clip_image import ClipImageTower
from selva_ref.model.generator import Conditions, Generator
from selva_ref.model.layers import Conv1d, GatedMLP
from selva_ref.model.text import ClipTower, T5Tower
from selva_ref.model.vae import VAE
from selva_ref.model.video_encoder import Teacher, VideoEncoder
from selva_ref.model.vocoder import Vocoder


class TextT5(nn.Module):
    """Token ids and mask → T5 features."""

    def __init__(self, tower: T5Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        y: Tensor = self.tower(ids, mask).float()
        return y


class TextClip(nn.Module):
    """Token ids → CLIP features, each token normalised to length 1."""

    def __init__(self, tower: ClipTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.tower(ids).float()
        return y


class VideoBackbone(nn.Module):
    """Segments of 8-bit frames (N, 16, 3, H, W) → tokens (N, 8*P, D). Without text, so once per video."""

    def __init__(self, encoder: VideoEncoder | Teacher) -> None:
        super().__init__()
        self.extractor = encoder.vfeat_extractor

    def forward(self, segments: Tensor) -> Tensor:
        pixels = (segments.float() / 255 - 0.5) / 0.5
        dtype = self.extractor.cls_token.dtype
        return self.extractor.tokens(rearrange(pixels, "n t c h w -> n c t h w").to(dtype)).float()


class VideoSelect(nn.Module):
    """Tokens of N segments (N, 8*P, D) and T5 features of B stems → sync features (B, 8N, D)."""

    def __init__(self, encoder: VideoEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        # one clip for all stems: the batch size of the tokens is one and broadcasts over the texts
        return self.encoder.select(tokens.to(self.encoder.dtype).flatten(0, 1)[None], text, mask).float()


class VideoPool(nn.Module):
    """Tokens of N segments (N, 8*P, D) → sync features (N, 8, D), of everything that is seen."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.teacher.vfeat_extractor.pool(tokens.to(self.teacher.dtype)).float()
        return y


class VideoClip(nn.Module):
    """8-bit frames (C, 3, H, W) → CLIP image features (C, W), each normalised to length 1."""

    def __init__(self, tower: ClipImageTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, frames: Tensor) -> Tensor:
        y: Tensor = self.tower((frames.float() / 255).to(self.tower.dtype)).float()
        return y


class PrepareConditions(nn.Module):
    """Features → everything the flow needs besides latent and time: B conditional rows, then B empty ones.

    Only the sync features have no empty rows. Those are the same for every clip, so they are part of `GuidedStep`.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(
        self,
        sync: Tensor,
        text: Tensor,
        negative_text: Tensor,
        use_negative: Tensor,
        latent_positions: Tensor,
        clip_positions: Tensor,
    ) -> tuple[Tensor, ...]:
        empty_clip = self.generator.empty_clip(1, clip_positions.shape[0])
        against = torch.where(use_negative, negative_text, self.generator.empty_text(1).float())
        return self.prepare(sync, empty_clip, empty_clip, text, against, latent_positions, clip_positions)

    def prepare(
        self,
        sync: Tensor,
        clip: Tensor,
        empty_clip: Tensor,
        text: Tensor,
        against: Tensor,
        latent_positions: Tensor,
        clip_positions: Tensor,
    ) -> tuple[Tensor, ...]:
        """Project the features. `clip` (B, C, W) or (1, C, W), `empty_clip` (1, C, W)."""
        g, batch = self.generator, sync.shape[0]
        asked = g.project_tokens(clip.expand(batch, -1, -1), text)
        empty = g.project_tokens(empty_clip, against)
        both = (
            torch.cat((rows, repeat(row, "1 ... -> b ...", b=batch))) for rows, row in zip(asked, empty, strict=True)
        )
        values = (g.project_sync(sync), *both, g.rope(latent_positions), g.rope(clip_positions))
        return tuple(value.float() for value in values)


class PrepareMMAudioConditions(PrepareConditions):
    """`PrepareConditions` with CLIP image features, and the learned empty features where there is no video."""

    def forward(  # type: ignore[override]
        self,
        sync: Tensor,
        text: Tensor,
        negative_text: Tensor,
        use_negative: Tensor,
        use_sync: Tensor,
        clip: Tensor,
        use_clip: Tensor,
        latent_positions: Tensor,
        clip_positions: Tensor,
    ) -> tuple[Tensor, ...]:
        g = self.generator
        empty_clip = g.empty_clip(1, clip_positions.shape[0])
        against = torch.where(use_negative, negative_text, g.empty_text(1).float())
        seen = torch.where(use_clip, clip, empty_clip.float())
        sync = torch.where(use_sync, sync, g.empty_sync(1, 1).float())
        return self.prepare(sync, seen, empty_clip, text, against, latent_positions, clip_positions)


class Step(nn.Module):
    """A step of the flow. `sync_row` holds the row of sync features of each latent vector.

    The rows of every stem come first, then the 32 rows that empty features can have.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def velocity(self, latent: Tensor, mods_RD: Tensor, g_mod: Tensor, c: Conditions, rows_BT: Tensor) -> Tensor:
        """`Generator.velocity` from one modulation vector per row; `rows_BT` holds the row of each latent vector."""
        return self.generator.velocity(latent, F.embedding(rows_BT, mods_RD), g_mod, c)


class GuidedStep(Step):
    """One Euler step of all stems: x + dt * (s v(cond) + (1 - s) v(empty)), with both velocities in one batch."""

    def __init__(self, generator: Generator) -> None:
        super().__init__(generator)
        self.empty_rows = nn.Buffer(empty_sync_rows(generator).detach())

    def forward(
        self,
        latents: Tensor,
        t: Tensor,
        dt: Tensor,
        guidance: Tensor,
        sync_row: Tensor,
        sync_f: Tensor,
        clip_f: Tensor,
        text_f: Tensor,
        global_f: Tensor,
        latent_rope: Tensor,
        clip_rope: Tensor,
    ) -> Tensor:
        generator, stems = self.generator, latents.shape[0]
        dtype = generator.dtype
        c = Conditions(
            sync_f=sync_f.to(dtype),
            clip_f=clip_f.to(dtype),
            text_f=text_f.to(dtype),
            global_f=global_f.to(dtype),
            latent_rope=latent_rope,
            clip_rope=clip_rope,
        )
        g = generator.global_at(t, c)
        rows = torch.cat(((c.sync_f + g[:stems]).flatten(0, 1), self.empty_rows + g[-1]))  # one text for all stems
        latent = generator.audio_input_proj(latents.to(dtype))  # once: both halves share it
        both = self.velocity(torch.cat((latent, latent)), F.silu(rows), F.silu(g), c, sync_row)
        v, v_empty = both[:stems], both[stems:]
        return latents + dt * (guidance * v + (1 - guidance) * v_empty)


class AverageStep(Step):
    """One jump of all stems: x + dt * u(x, t, t + dt, s). It takes what `GuidedStep` does and leaves the empty half."""

    generator: AverageGenerator

    def forward(
        self,
        latents: Tensor,
        t: Tensor,
        dt: Tensor,
        guidance: Tensor,
        sync_row: Tensor,
        sync_f: Tensor,
        clip_f: Tensor,
        text_f: Tensor,
        global_f: Tensor,
        latent_rope: Tensor,
        clip_rope: Tensor,
    ) -> Tensor:
        student, stems = self.generator, latents.shape[0]
        dtype = student.dtype
        c = Conditions(
            sync_f=sync_f.to(dtype),
            clip_f=clip_f[:stems].to(dtype),
            text_f=text_f[:stems].to(dtype),
            global_f=global_f[:stems].to(dtype),
            latent_rope=latent_rope,
            clip_rope=clip_rope,
        )
        g = student.global_over(t, dt, guidance, c)
        latent = student.audio_input_proj(latents.to(dtype))
        rows = F.silu((c.sync_f + g).flatten(0, 1))
        return latents + dt * self.velocity(latent, rows, F.silu(g), c, sync_row[:stems])


def empty_sync_rows(generator: Generator) -> Tensor:
    """Every distinct row of the projected empty sync features, (32, D). They are the same for any clip length.

    The input repeats from segment to segment. A row sees at most 5 rows on either side (3 through the first
    convolution, 1 through each of the MLP's two convolutions), which reaches no further than the neighbouring segments.
    A row therefore depends only on which neighbours exist. In order: 8 rows of a first, a middle, a last and an only
    segment.
    """
    conv, _, mlp = generator.sync_input_proj
    assert isinstance(conv, Conv1d)
    assert isinstance(mlp, GatedMLP)
    assert conv.kernel_size[0] // 2 + 2 * (mlp.kernel // 2) <= 8
    return torch.cat([generator.project_sync(generator.empty_sync(1, 8 * segments))[0] for segments in (3, 1)])


class Decode(nn.Module):
    """Normalised latents (B, T, Z) → waveform (B, T * 2 * hop)."""

    def __init__(self, generator: Generator, vae: VAE, vocoder: Vocoder) -> None:
        super().__init__()
        self.latent_mean = nn.Buffer(generator.latent_mean.detach().float())
        self.latent_std = nn.Buffer(generator.latent_std.detach().float())
        self.vae = vae
        self.vocoder = vocoder

    def forward(self, latents: Tensor) -> Tensor:
        z = latents * self.latent_std.float() + self.latent_mean.float()
        y: Tensor = self.vocoder(self.vae.decode(z.transpose(1, 2))).squeeze(1)
        return y
