"""The networks of SelVA and MMAudio in PyTorch, under the official parameter names.

Example:
    import selva_ref
    encoder = selva_ref.build("video_encoder", "small_16k").load_official(state_dict)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, overload

from selva_ref.model.presets import PRESETS, Preset, get_preset

if TYPE_CHECKING:
    from selva_ref.model.average import AverageGenerator
    from selva_ref.model.clip_image import ClipImageTower
    from selva_ref.model.generator import Generator
    from selva_ref.model.official import OfficialModule
    from selva_ref.model.text import ClipTower, T5Tower
    from selva_ref.model.vae import VAE
    from selva_ref.model.video_encoder import Teacher, VideoEncoder
    from selva_ref.model.vocoder import Vocoder

SYSTEM_PARTS = {
    "selva": ("video_encoder", "teacher", "generator", "student", "vae", "vocoder", "text_t5", "text_clip"),
    "mmaudio": ("teacher", "generator", "vae", "vocoder", "text_clip", "clip_image"),
}
"""The networks of each system. SelVA only trains with its teacher; MMAudio's sync features come from it.

The student is optional: it makes in four evaluations what the generator makes in 25 guided steps."""
PARTS = (*SYSTEM_PARTS["selva"], "clip_image")

__all__ = ["PARTS", "PRESETS", "SYSTEM_PARTS", "Preset", "build", "get_preset"]


@overload
def build(part: Literal["video_encoder"], preset: str | Preset) -> VideoEncoder: ...
@overload
def build(part: Literal["teacher"], preset: str | Preset) -> Teacher: ...
@overload
def build(part: Literal["generator"], preset: str | Preset) -> Generator: ...
@overload
def build(part: Literal["student"], preset: str | Preset) -> AverageGenerator: ...
@overload
def build(part: Literal["vae"], preset: str | Preset) -> VAE: ...
@overload
def build(part: Literal["vocoder"], preset: str | Preset) -> Vocoder: ...
@overload
def build(part: Literal["text_t5"], preset: str | Preset) -> T5Tower: ...
@overload
def build(part: Literal["text_clip"], preset: str | Preset) -> ClipTower: ...
@overload
def build(part: Literal["clip_image"], preset: str | Preset) -> ClipImageTower: ...
@overload
def build(part: str, preset: str | Preset) -> OfficialModule: ...
def build(part: str, preset: str | Preset) -> OfficialModule:
    """Makes one network with untrained weights; use `.load_official(state_dict)` to fill it.

    Args:
        part: one of `PARTS`.
        preset: a name in `PRESETS`, or a `Preset` of your own.

    Raises:
        ValueError: there is no such part or preset, or the preset has no image tower.
    """
    from selva_ref.model.average import AverageGenerator
    from selva_ref.model.generator import Generator
    from selva_ref.model.text import ClipTower, T5Tower
    from selva_ref.model.vae import VAE
    from selva_ref.model.video_encoder import Teacher, VideoEncoder
    from selva_ref.model.vocoder import Vocoder

    config = get_preset(preset) if isinstance(preset, str) else preset
    makers: dict[str, Callable[[], OfficialModule]] = {
        "video_encoder": lambda: VideoEncoder(config.video),
        "teacher": lambda: Teacher(config.video),
        "generator": lambda: Generator(config.generator),
        "student": lambda: AverageGenerator(config.generator),
        "vae": lambda: VAE(config.audio),
        "vocoder": lambda: Vocoder(config.audio),
        "text_t5": lambda: T5Tower(config.text),
        "text_clip": lambda: ClipTower(config.text),
        "clip_image": lambda: _image_tower(config),
    }
    if part not in makers:
        raise ValueError(f"unknown part {part!r}; choose one of {', '.join(PARTS)}")
    return makers[part]().eval()


def _image_tower(preset: Preset) -> ClipImageTower:
    from selva_ref.model.clip_image import ClipImageTower

    if preset.image is None:
        raise ValueError(f"preset {preset.name} has no image tower: only the presets of MMAudio have one")
    return ClipImageTower(preset.image)
