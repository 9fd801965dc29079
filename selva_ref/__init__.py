"""The SelVA networks in PyTorch, under the official parameter names.

Example:
    import selva_ref
    encoder = selva_ref.build("video_encoder", "small_16k").load_official(state_dict)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, overload

from selva_ref.model.presets import PRESETS, Preset, get_preset

if TYPE_CHECKING:
    from selva_ref.model.generator import Generator
    from selva_ref.model.official import OfficialModule
    from selva_ref.model.text import ClipTower, T5Tower
    from selva_ref.model.vae import VAE
    from selva_ref.model.video_encoder import Teacher, VideoEncoder
    from selva_ref.model.vocoder import Vocoder

PARTS = ("video_encoder", "teacher", "generator", "vae", "vocoder", "text_t5", "text_clip")

__all__ = ["PARTS", "PRESETS", "Preset", "build", "get_preset"]


@overload
def build(part: Literal["video_encoder"], preset: str | Preset) -> VideoEncoder: ...
@overload
def build(part: Literal["teacher"], preset: str | Preset) -> Teacher: ...
@overload
def build(part: Literal["generator"], preset: str | Preset) -> Generator: ...
@overload
def build(part: Literal["vae"], preset: str | Preset) -> VAE: ...
@overload
def build(part: Literal["vocoder"], preset: str | Preset) -> Vocoder: ...
@overload
def build(part: Literal["text_t5"], preset: str | Preset) -> T5Tower: ...
@overload
def build(part: Literal["text_clip"], preset: str | Preset) -> ClipTower: ...
@overload
def build(part: str, preset: str | Preset) -> OfficialModule: ...
def build(part: str, preset: str | Preset) -> OfficialModule:
    """Makes one network with untrained weights; use `.load_official(state_dict)` to fill it.

    Args:
        part: one of `PARTS`.
        preset: a name in `PRESETS`, or a `Preset` of your own.

    Raises:
        ValueError: there is no such part or preset.
    """
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
        "vae": lambda: VAE(config.audio),
        "vocoder": lambda: Vocoder(config.audio),
        "text_t5": lambda: T5Tower(config.text),
        "text_clip": lambda: ClipTower(config.text),
    }
    if part not in makers:
        raise ValueError(f"unknown part {part!r}; choose one of {', '.join(PARTS)}")
    return makers[part]().eval()
