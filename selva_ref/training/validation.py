"""Clips kept out of training: their loss, and for some of them pictures and sounds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from selva_ref.model.average import jumps
from selva_ref.model.flow_matching import euler
from selva_ref.model.generator import Generator
from selva_ref.model.presets import Preset
from selva_ref.training.examples.mixed import Batch, MixedClips
from selva_ref.training.precision import autocast
from selva_ref.training.report import Report, film_strip, mel_picture
from selva_ref.training.stages import Distillation, FlowMatching, PathRegression, Stage, conditions, guidance, selected
from selva_ref.weights.loading import load_part

SHOWN = 4
"""Number of held-out clips that are shown; the loss is over all of them."""
STEPS = 25
EVALUATIONS = 4
"""The student's evaluations for a stem; its teacher takes `STEPS`, of two each."""
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
        """Writes the mean loss, the first clips' frames and, after stage 1, their stems next to the true sound."""
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
        if self.listener is None or isinstance(self.stage, Distillation):
            return
        latents = stem_latents(self.stage, batch) | {"true": batch["latent"]}
        mels = {made_by: self.listener.mel(latent) for made_by, latent in latents.items()}
        report.picture(f"mel, {' above '.join(mels)}/{name}", mel_picture(*mels.values()), step)
        for made_by, mel in mels.items():
            report.sound(f"{made_by}/{name}", self.listener.wave(mel), self.listener.rate_hz, step)


def stem_latents(stage: FlowMatching | PathRegression, batch: Batch) -> dict[str, Tensor]:
    """Latents (B, T, Z), on the VAE's scale, from the mixed video and the target's text, by what made them."""
    sync = selected(stage.encoder, batch)
    if isinstance(stage, FlowMatching):
        return {"made": _guided(stage.network, sync, batch, stage.visual_tokens)}
    taught = _guided(stage.teacher, sync, batch, stage.visual_tokens)
    return {"made": _jumped(stage, sync, batch), "teacher": taught}


def _guided(generator: Generator, sync: Tensor, batch: Batch, visual_tokens: int) -> Tensor:
    real, empty = guidance(generator, sync, batch, visual_tokens)

    def flow(t: float, x: Tensor) -> Tensor:
        return generator.guided_flow(x, torch.tensor([t], device=x.device), real, empty, GUIDANCE)

    return generator.unnormalize(euler(flow, batch["noise"], steps=STEPS))


def _jumped(stage: PathRegression, sync: Tensor, batch: Batch) -> Tensor:
    student, own = stage.network, conditions(stage.network, sync, batch, stage.visual_tokens)
    strength = torch.full((1,), GUIDANCE, device=sync.device)
    made = jumps(lambda x, t, r: student.average(x, t, r, strength, own), batch["noise"], steps=EVALUATIONS)
    return student.unnormalize(made)
