"""The generator: a multimodal diffusion transformer (MMAudio, arXiv 2412.15322) that predicts the latent's flow.

`prepare` computes everything that does not depend on the latent once (`Conditions`), so that each step only runs
`flow`.
Shapes: B batch, T latent length, C clip tokens, L text tokens, D width, H heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from selva_bundle.lengths import shown_indices
from selva_ref.model.generator_blocks import FinalLayer, FusedBlock, JointBlock, TimeEmbedding, rotation_table
from selva_ref.model.layers import Conv1d, GatedMLP
from selva_ref.model.official import OfficialModule
from selva_ref.model.presets import GeneratorConfig


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Everything the flow needs besides the latent and the time."""

    sync_f: Tensor
    """(B, T, D) projected sync features at the latent's rate. Used by `flow`, not by `velocity`."""
    clip_f: Tensor
    """(B, C, D) projected visual tokens."""
    text_f: Tensor
    """(B, L, D) projected text tokens."""
    global_f: Tensor
    """(B, D) pooled visual and text condition, before the time is added."""
    latent_rope: Tensor
    """(T, 2, d/2) float32 cosines and sines of the latent positions."""
    clip_rope: Tensor
    """(C, 2, d/2) float32 cosines and sines of the clip positions."""


class Generator(OfficialModule):
    """Predicts the flow of the audio latent from visual, sync and text conditions."""

    ignored_names = ("t_embed.freqs", "latent_rot", "clip_rot")

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.heads
        self.latent_mean = nn.Parameter(torch.zeros(1, 1, config.latent_width), requires_grad=False)
        self.latent_std = nn.Parameter(torch.ones(1, 1, config.latent_width), requires_grad=False)
        self.empty_string_feat = nn.Parameter(torch.zeros(config.text_tokens, config.text_width))
        self.empty_clip_feat = nn.Parameter(torch.zeros(1, config.clip_width))
        self.empty_sync_feat = nn.Parameter(torch.zeros(1, config.sync_width))
        self.sync_pos_emb = nn.Parameter(torch.zeros(1, 1, 8, config.sync_width))
        self._build_projections(config)
        self.joint_blocks = nn.ModuleList(
            JointBlock(width, heads, last=i == config.joint_blocks - 1) for i in range(config.joint_blocks)
        )
        self.fused_blocks = nn.ModuleList(FusedBlock(width, heads) for _ in range(config.fused_blocks))
        self.final_layer = FinalLayer(width, config.latent_width)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights; the latent's mean and deviation are always float32."""
        return self.empty_clip_feat.dtype

    def _build_projections(self, config: GeneratorConfig) -> None:
        width, hidden = config.width, 4 * config.width
        act = nn.SiLU if config.v2 else nn.SELU
        between = [nn.SiLU()] if config.v2 else []
        self.audio_input_proj = nn.Sequential(
            Conv1d(config.latent_width, width, 7), act(), GatedMLP(width, hidden, kernel=7)
        )
        self.clip_input_proj = nn.Sequential(
            nn.Linear(config.clip_width, width), *between, GatedMLP(width, hidden, kernel=3)
        )
        self.sync_input_proj = nn.Sequential(
            Conv1d(config.sync_width, width, 7), act(), GatedMLP(width, hidden, kernel=3)
        )
        self.text_input_proj = nn.Sequential(nn.Linear(config.text_width, width), *between, GatedMLP(width, hidden))
        self.clip_cond_proj = nn.Linear(width, width)
        self.text_cond_proj = nn.Linear(width, width)
        self.global_cond_mlp = GatedMLP(width, hidden)
        rate = 10000.0 if config.v2 else 1.0
        self.t_embed = TimeEmbedding(width, config.time_table_width, rate)

    # -- conditions -----------------------------------------------------------------------------------------------

    def empty_sync(self, batch: int, length: int) -> Tensor:
        """The learned replacement for missing sync features, (B, length, sync width)."""
        return self.empty_sync_feat.expand(batch, length, -1)

    def empty_clip(self, batch: int, length: int) -> Tensor:
        """The learned replacement for missing CLIP image features, (B, length, clip width)."""
        return self.empty_clip_feat.expand(batch, length, -1)

    def empty_text(self, batch: int) -> Tensor:
        """The learned replacement for missing CLIP text features, (B, L, text width)."""
        return self.empty_string_feat.expand(batch, -1, -1)

    def prepare(self, sync: Tensor, clip: Tensor, text: Tensor, *, latent_length: int) -> Conditions:
        """Turns the features of a clip into `Conditions`.

        Args:
            sync: (B, 8S, sync width) sync features, or `empty_sync`.
            clip: (B, C, clip width) visual tokens; SelVA only uses `empty_clip`.
            text: (B, L, text width) CLIP text features, or `empty_text`.
            latent_length: T of the latent.
        """
        device, clip_length = sync.device, clip.shape[1]
        index = self._sync_index(sync.shape[1], latent_length).to(device)
        latent_positions = torch.arange(latent_length, dtype=torch.float32, device=device)
        clip_positions = torch.arange(clip_length, dtype=torch.float32, device=device) * (latent_length / clip_length)
        clip_f, text_f, global_f = self.project_tokens(clip, text)
        return Conditions(
            sync_f=self.project_sync(sync)[:, index],
            clip_f=clip_f,
            text_f=text_f,
            global_f=global_f,
            latent_rope=self.rope(latent_positions),
            clip_rope=self.rope(clip_positions),
        )

    def _sync_index(self, sync_length: int, latent_length: int) -> Tensor:
        """Index of the sync feature that each latent vector uses, (latent_length,) int64."""
        if self.config.frames_per_latent is None:
            return nearest_exact_index(sync_length, latent_length)
        return torch.from_numpy(shown_indices(sync_length, latent_length, self.config.frames_per_latent))

    def project_sync(self, sync: Tensor) -> Tensor:
        """Sync features (B, 8S, sync width) → (B, 8S, D), still at their own rate."""
        # add a position embedding to the 8 features of each segment
        sync = rearrange(sync.to(self.dtype), "b (s j) d -> b s j d", j=8) + self.sync_pos_emb
        y: Tensor = self.sync_input_proj(rearrange(sync, "b s j d -> b (s j) d"))
        return y

    def project_tokens(self, clip: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Visual and text tokens → `clip_f`, `text_f` and `global_f` of `Conditions`."""
        clip_f = self.clip_input_proj(clip.to(self.dtype))
        text_f = self.text_input_proj(text.to(self.dtype))
        pooled = self.clip_cond_proj(mean_token(clip_f)) + self.text_cond_proj(mean_token(text_f))
        return clip_f, text_f, self.global_cond_mlp(pooled)

    def rope(self, positions: Tensor) -> Tensor:
        """Rotary table for the positions of a stream."""
        return rotation_table(positions, self.config.width // self.config.heads)

    def prepare_empty(self, like: Conditions, *, sync_length: int, negative_text: Tensor | None = None) -> Conditions:
        """Conditions for guidance's other side; `negative_text` (B, L, text width) replaces the empty text."""
        batch, latent_length = like.sync_f.shape[:2]
        return self.prepare(
            self.empty_sync(batch, sync_length),
            self.empty_clip(batch, like.clip_f.shape[1]),
            self.empty_text(batch) if negative_text is None else negative_text,
            latent_length=latent_length,
        )

    # -- flow -----------------------------------------------------------------------------------------------------

    def flow(self, latent_BTZ: Tensor, t: Tensor, c: Conditions) -> Tensor:
        """Velocity (B, T, Z), float32, of the normalised latent at time `t`, (1,) or (B,), in [0, 1]."""
        g, latent = self.global_at(t, c), self.audio_input_proj(latent_BTZ.to(self.dtype))
        return self.velocity(latent, F.silu(g + c.sync_f), F.silu(g), c)

    def global_at(self, t: Tensor, c: Conditions) -> Tensor:
        """Global condition plus the time embedding, (B, 1, D)."""
        y: Tensor = (c.global_f + self.t_embed(t)).unsqueeze(1)
        return y

    def velocity(self, latent: Tensor, latent_mod: Tensor, g_mod: Tensor, c: Conditions) -> Tensor:
        """Runs `flow` from the projected latent (B, T, D) and activated modulation vectors.

        `latent_mod` (B, T, D) modulates the latent stream, `g_mod` (B, 1, D) everything else.
        """
        clip, text = c.clip_f, c.text_f
        for block in self.joint_blocks:
            latent, clip, text = block(latent, clip, text, latent_mod, g_mod, c.latent_rope, c.clip_rope)
        for block in self.fused_blocks:
            latent = block(latent, latent_mod, c.latent_rope)
        y: Tensor = self.final_layer(latent, g_mod).float()
        return y

    def guided_flow(self, latent: Tensor, t: Tensor, c: Conditions, empty: Conditions, guidance: float) -> Tensor:
        """s v(cond) + (1 - s) v(empty), or only v(cond) if s < 1  (classifier-free guidance, arXiv 2207.12598)."""
        v = self.flow(latent, t, c)
        return v if guidance < 1 else guidance * v + (1 - guidance) * self.flow(latent, t, empty)

    def normalize(self, latent: Tensor) -> Tensor:
        """VAE latent (B, T, Z) → zero mean, unit deviation per channel."""
        return (latent - self.latent_mean) / self.latent_std

    def unnormalize(self, latent: Tensor) -> Tensor:
        """Inverse of `normalize`, in float32."""
        return latent.float() * self.latent_std.float() + self.latent_mean.float()


def mean_token(x_BND: Tensor) -> Tensor:
    """Mean over the tokens, (B, D), summed in float32."""
    return x_BND.float().mean(1).to(x_BND.dtype)


def nearest_exact_index(n_in: int, n_out: int) -> Tensor:
    """Source index for each output of `interpolate(mode="nearest-exact")`, (n_out,) int64."""
    source = torch.arange(n_in, dtype=torch.float32)[None, None]
    return F.interpolate(source, size=n_out, mode="nearest-exact")[0, 0].long()
