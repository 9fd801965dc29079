"""Clips kept out of training: their loss, and for some of them pictures and sounds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from selva_ref.model.flow_matching import euler
from selva_ref.model.presets import Preset
from selva_ref.training.examples.mixed import Batch, MixedClips
from selva_ref.training.precision import autocast
from selva_ref.training.report import Report, film_strip, mel_picture
from selva_ref.training.stages import FlowMatching, Stage, selected
from selva_ref.weights.loading import load_part

SHOWN = 4
"""Number of held-out clips that are shown; the loss is over all of them."""
STEPS = 25
GUIDANCE = 4.5


class Listener:
    """Turns a latent into sound with the VAE's decoder and the vocoder."""

    def __init__(self, preset: Preset, checkpoints: Path, device: torch.device) -> None:
        self.rate_hz = preset.audio.sample_rate_hz
        self.vae = load_part("vae", preset, checkpoints).to(device)
        self.vocoder = load_part("vocoder", preset, checkpoints).to(device)

    def mel(self, latent_BTZ: Tensor) -> Tensor:
        """Log-mel (bands, 2T) of the first item."""
        return self.vae.decode(latent_BTZ.mT)[0]

    def wave(self, mel: Tensor) -> Tensor:
        """Waveform (samples,) of a log-mel."""
        y: Tensor = self.vocoder(mel[None]).flatten()
        return y


class Validation:
    """Runs the stage on the held-out clips, with the same random numbers every time."""

    def __init__(self, stage: Stage, clips: MixedClips, device: torch.device, listener: Listener | None) -> None:
        self.stage, self.clips, self.device, self.listener = stage, clips, device, listener

    @torch.no_grad()
    def __call__(self, step: int, report: Report) -> None:
        """Writes the mean loss, the first clips' frames and, in stage 2, their stems next to the true sound."""
        losses = []
        for index in range(len(self.clips.held_out_rows)):
            batch, label = self.clips.held_out(index)
            batch = {name: value.to(self.device) for name, value in batch.items()}
            with autocast(self.device, self.clips.settings.precision):
                losses.append(float(self.stage(batch)))
                if index < SHOWN:
                    self._show(f"{index}, {label}", batch, step, report)
        if losses:
            report.curves(step, loss__validation=sum(losses) / len(losses))

    def _show(self, name: str, batch: Batch, step: int, report: Report) -> None:
        report.picture(f"mixed/{name}", film_strip(batch["frames"][0]), step)
        if self.listener is None or not isinstance(self.stage, FlowMatching):
            return
        made, true = (self.listener.mel(latent) for latent in (stem_latent(self.stage, batch), batch["latent"]))
        report.picture(f"mel, made above true/{name}", mel_picture(made, true), step)
        report.sound(f"made/{name}", self.listener.wave(made), self.listener.rate_hz, step)
        report.sound(f"true/{name}", self.listener.wave(true), self.listener.rate_hz, step)


def stem_latent(stage: FlowMatching, batch: Batch) -> Tensor:
    """Generates a latent (B, T, Z), on the VAE's scale, from the mixed video and the target's text."""
    generator, noise = stage.network, batch["noise"]
    sync = selected(stage.encoder, batch)
    clip = generator.empty_clip(len(noise), stage.visual_tokens)
    conditions = generator.prepare(sync, clip, batch["clip_text"], latent_length=noise.shape[1])
    empty = generator.prepare_empty(conditions, sync_length=sync.shape[1])

    def flow(t: float, x: Tensor) -> Tensor:
        return generator.guided_flow(x, torch.tensor([t], device=x.device), conditions, empty, GUIDANCE)

    return generator.unnormalize(euler(flow, noise, steps=STEPS))
