"""Networks and tokenizers of a preset, with weights from a folder of checkpoints or deterministic random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, overload

from tokenizers import Tokenizer

import selva_ref
from selva_ref.model.average import AverageGenerator
from selva_ref.model.clip_image import ClipImageTower
from selva_ref.model.generator import Generator
from selva_ref.model.official import OfficialModule
from selva_ref.model.presets import Preset
from selva_ref.model.text import ClipTower, T5Tower
from selva_ref.model.text_tokenizers import DEMO, clip_tokenizer, t5_tokenizer
from selva_ref.model.vae import VAE
from selva_ref.model.video_encoder import Teacher, VideoEncoder
from selva_ref.model.vocoder import Vocoder
from selva_ref.weights import random_weights
from selva_ref.weights.checkpoints import find_checkpoint, read_checkpoint


@overload
def load_part(part: Literal["video_encoder"], preset: Preset, checkpoints: Path | None) -> VideoEncoder: ...
@overload
def load_part(part: Literal["teacher"], preset: Preset, checkpoints: Path | None) -> Teacher: ...
@overload
def load_part(part: Literal["generator"], preset: Preset, checkpoints: Path | None) -> Generator: ...
@overload
def load_part(part: Literal["student"], preset: Preset, checkpoints: Path | None) -> AverageGenerator: ...
@overload
def load_part(part: Literal["vae"], preset: Preset, checkpoints: Path | None) -> VAE: ...
@overload
def load_part(part: Literal["vocoder"], preset: Preset, checkpoints: Path | None) -> Vocoder: ...
@overload
def load_part(part: Literal["text_t5"], preset: Preset, checkpoints: Path | None) -> T5Tower: ...
@overload
def load_part(part: Literal["text_clip"], preset: Preset, checkpoints: Path | None) -> ClipTower: ...
@overload
def load_part(part: Literal["clip_image"], preset: Preset, checkpoints: Path | None) -> ClipImageTower: ...
@overload
def load_part(part: str, preset: Preset, checkpoints: Path | None) -> OfficialModule: ...
def load_part(part: str, preset: Preset, checkpoints: Path | None) -> OfficialModule:
    """Loads a network from `checkpoints`. If that is None, it gets random weights that depend only on parameter names.

    Raises:
        CheckpointError: the file is missing, damaged or does not fit.
    """
    network = selva_ref.build(part, preset)
    if checkpoints is None:
        return network.load_official(random_weights.state_dict(network))
    return network.load_official(read_checkpoint(find_checkpoint(checkpoints, part, preset.name)))


def load_tokenizers(preset: Preset, checkpoints: Path | None) -> dict[str, Tokenizer]:
    """Loads the tokenizers "t5" (SelVA only) and "clip". Without checkpoints, the demo's, which fit any text tower."""
    makers = {"t5": t5_tokenizer, "clip": clip_tokenizer} if preset.system == "selva" else {"clip": clip_tokenizer}
    if checkpoints is None or preset.is_demo:
        return {name: make(DEMO, preset.text) for name, make in makers.items()}
    return {
        name: make(find_checkpoint(checkpoints, f"text_{name}", preset.name).parent, preset.text)
        for name, make in makers.items()
    }
