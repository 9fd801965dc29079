"""The inputs and outputs of each graph: names, types, and shapes with named dynamic axes.

The exporter (dynamic axes, example inputs), the comparison with the reference, and the manifest that the runtime checks
its feeds against all use this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from selva_bundle.ports import (
    AVERAGE_CONDITIONS,
    AVERAGE_STEP,
    CONDITIONS,
    DECODER,
    FLOWS,
    MMAUDIO,
    PORTS,
    TEXT_CLIP,
    TEXT_T5,
    VIDEO_BACKBONE,
    VIDEO_CLIP,
    VIDEO_POOL,
    VIDEO_SELECT,
    Port,
    Size,
)
from selva_ref.model.presets import Preset


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The ports of a graph."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def _float(name: str, *shape: Size) -> Port:
    return Port(name=name, dtype="float32", shape=shape)


def signatures(preset: Preset) -> dict[str, Signature]:
    """The graphs that a preset's bundle can have, by name, in the order they run."""
    return {s.name: s for s in (*_text(preset), *_video(preset), *_generation(preset))}


def _text(preset: Preset) -> tuple[Signature, ...]:
    text = preset.text
    ids = Port(name="ids", dtype="int64", shape=("prompts", "tokens"))
    mask = Port(name="mask", dtype="bool", shape=("prompts", "tokens"))
    clip_ids = Port(name="ids", dtype="int64", shape=("prompts", text.clip_tokens))
    t5_features = _float("features", "prompts", "tokens", text.t5_width)
    clip_features = _float("features", "prompts", text.clip_tokens, text.clip_width)
    t5 = Signature(name=TEXT_T5, inputs=(ids, mask), outputs=(t5_features,))
    clip = Signature(name=TEXT_CLIP, inputs=(clip_ids,), outputs=(clip_features,))
    return (clip,) if preset.system == MMAUDIO else (t5, clip)


def _video(preset: Preset) -> tuple[Signature, ...]:
    video, size = preset.video, preset.video.image_size
    frames = Port(name="segments", dtype="uint8", shape=("segments", video.segment_frames, 3, size, size))
    tokens = _float("tokens", "segments", video.time_tokens * video.grid**2, video.width)
    text = _float("text", "stems", "tokens", video.text_width)
    mask = Port(name="mask", dtype="bool", shape=("stems", "tokens"))
    sync = _float("sync", "stems", f"{video.time_tokens}*segments", video.width)
    backbone = Signature(name=VIDEO_BACKBONE, inputs=(frames,), outputs=(tokens,))
    if preset.image is None:
        return backbone, Signature(name=VIDEO_SELECT, inputs=(tokens, text, mask), outputs=(sync,))
    pooled = _float("sync", "segments", video.time_tokens, video.width)
    pictures = Port(name="frames", dtype="uint8", shape=("clip", 3, preset.image.image_size, preset.image.image_size))
    return (
        backbone,
        Signature(name=VIDEO_POOL, inputs=(tokens,), outputs=(pooled,)),
        Signature(name=VIDEO_CLIP, inputs=(pictures,), outputs=(_float("features", "clip", preset.image.output),)),
    )


def _generation(preset: Preset) -> tuple[Signature, ...]:
    g, video = preset.generator, preset.video
    half_head = g.width // g.heads // 2
    conditions = (
        _float("sync_f", "stems", f"{video.time_tokens}*segments", g.width),
        _float("clip_f", "2*stems", "clip", g.width),
        _float("text_f", "2*stems", g.text_tokens, g.width),
        _float("global_f", "2*stems", g.width),
        _float("latent_rope", "latent", 2, half_head),
        _float("clip_rope", "clip", 2, half_head),
    )
    latents = _float("latents", "stems", "latent", g.latent_width)
    features = (
        _float("sync", "stems", f"{video.time_tokens}*segments", g.sync_width),
        _float("text", "stems", g.text_tokens, g.text_width),
        _float("negative_text", 1, g.text_tokens, g.text_width),
        Port(name="use_negative", dtype="bool", shape=(1,)),
        *_seen(preset),
        _float("latent_positions", "latent"),
        _float("clip_positions", "clip"),
    )
    state = (
        latents,
        *(_float(scalar, 1) for scalar in ("t", "dt", "guidance")),
        Port(name="sync_row", dtype="int64", shape=("2*stems", "latent")),
        *conditions,
    )
    next_latents = _float("next_latents", "stems", "latent", g.latent_width)
    audio = _float("audio", "stems", f"{2 * preset.audio.hop}*latent")
    found = []
    for prepare, step in FLOWS.values():
        if step in PORTS[preset.system]:
            found.append(Signature(name=prepare, inputs=features, outputs=conditions))
            found.append(Signature(name=step, inputs=state, outputs=(next_latents,)))
    return (*found, Signature(name=DECODER, inputs=(latents,), outputs=(audio,)))


def _seen(preset: Preset) -> tuple[Port, ...]:
    """What the conditions of MMAudio take besides those of SelVA."""
    if preset.image is None:
        return ()
    use_sync, use_clip = (Port(name=name, dtype="bool", shape=(1,)) for name in ("use_sync", "use_clip"))
    return use_sync, _float("clip", "stems", "clip", preset.image.output), use_clip


def example_inputs(signature: Signature, preset: Preset, axes: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Inputs of the right kind and scale for a graph: pixels, token ids, unit-normal features, positions."""
    rng = np.random.default_rng(seed)
    feeds = {port.name: _example(port, port.sizes(axes), preset, axes, rng) for port in signature.inputs}
    if signature.name == AVERAGE_STEP:  # it jumps far, and knows no rows of empty features
        feeds["dt"] = np.array([0.25], dtype=np.float32)
        feeds["sync_row"] %= axes["stems"] * axes["segments"] * preset.video.time_tokens
    if signature.name in (CONDITIONS, AVERAGE_CONDITIONS):
        for name in {"text", "negative_text", "clip"} & feeds.keys():  # CLIP features have unit length
            feeds[name] /= np.linalg.norm(feeds[name], axis=-1, keepdims=True)
        feeds["clip_positions"] *= np.float32(axes["latent"] / axes["clip"])
    return feeds


def _example(
    port: Port, shape: tuple[int, ...], preset: Preset, axes: Mapping[str, int], rng: np.random.Generator
) -> np.ndarray:
    if port.name.endswith("_positions"):
        return np.arange(shape[0], dtype=np.float32)
    if port.name == "sync_row":  # any row of any stem, or one of the four kinds of empty segment
        return rng.integers(0, (axes["stems"] * axes["segments"] + 4) * preset.video.time_tokens, shape)
    if port.name.endswith("_rope"):
        angles = np.arange(shape[0])[:, None] * np.geomspace(1.0, 1e-4, shape[2])
        return np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)
    if port.dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if port.dtype == "int64":
        vocabulary = min(preset.text.t5_vocabulary, preset.text.clip_vocabulary)
        return rng.integers(0, vocabulary, shape, dtype=np.int64)
    if port.dtype == "bool":
        mask = np.ones(shape, dtype=bool)
        if port.name == "mask":
            mask[-1, -1] = False  # hide the last token of the last prompt
        return mask
    scalars = {"t": 0.37, "dt": 0.04, "guidance": 4.5}
    if port.name in scalars:
        return np.array([scalars[port.name]], dtype=np.float32)
    return rng.standard_normal(shape, dtype=np.float32)
