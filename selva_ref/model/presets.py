"""The sizes of every network, by preset name.

The official presets match the published checkpoints. `demo` uses the same classes with smaller widths, so that
everything runs in seconds on a laptop. Changing a number here changes which checkpoints fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from selva_bundle.ports import SYSTEMS


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Text-conditioned video encoder and its teacher (divided space-time Motionformer)."""

    image_size: int = 224
    """Height and width of a frame, pixels."""
    patch: int = 16
    """Height and width of a patch, pixels; a patch spans two frames in time."""
    width: int = 768
    depth: int = 12
    heads: int = 12
    text_width: int = 768
    """Width of the T5 features."""
    sup_tokens: int = 5
    """Number of learned supplementary tokens before the text."""
    segment_frames: int = 16
    segment_step: int = 8

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch

    @property
    def time_tokens(self) -> int:
        """Tokens in time per segment; also the number of sync features per segment."""
        return self.segment_frames // 2


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """CLIP's image tower (ViT), which makes MMAudio's visual tokens."""

    image_size: int = 384
    """Height and width of a frame, pixels."""
    patch: int = 14
    """Height and width of a patch, pixels. Pixels beyond the last whole patch are not seen."""
    width: int = 1280
    depth: int = 32
    heads: int = 16
    output: int = 1024
    """Width of a frame's feature."""

    def __post_init__(self) -> None:
        if self.image_size < self.patch:
            raise ValueError(f"image_size {self.image_size} is smaller than patch {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Multimodal diffusion transformer (MMAudio) that predicts the flow of the latent."""

    width: int = 448
    heads: int = 7
    joint_blocks: int = 4
    fused_blocks: int = 8
    latent_width: int = 20
    sync_width: int = 768
    clip_width: int = 1024
    text_width: int = 1024
    text_tokens: int = 77
    frames_per_latent: float | None = None
    """Video frames per latent vector: each vector uses the feature of its own moment, so that a small model need not
    learn the drift. None: sync features are spread evenly over the latent, as in the official weights.
    """
    v2: bool = False
    """Second version: SiLU in the input projections, a wide time embedding, and times scaled by 10,000."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    @property
    def time_table_width(self) -> int:
        """Width of the sinusoidal time embedding before its MLP."""
        return self.width if self.v2 else 256


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """Sampling rate, mel spectrogram, VAE and vocoder: one set per sampling rate."""

    sample_rate_hz: int
    n_fft: int
    hop: int
    mel_bands: int
    mel_fmax_hz: float
    log10: bool
    """True: log10 of the mel magnitude; False: natural logarithm."""
    latent_width: int
    vae_width: int
    vocoder_width: int = 1536
    vocoder_rates: tuple[int, ...]
    vocoder_kernels: tuple[int, ...]
    vocoder_tanh: bool
    """True: tanh at the end and a bias in the last convolution; False: clamp to [-1, 1] and no bias."""
    mel_statistics: str | None
    """Name of the stored per-band mean and deviation under `data/`; None: zeros and ones until trained."""

    def __post_init__(self) -> None:
        product = 1
        for rate in self.vocoder_rates:
            product *= rate
        if product != self.hop:
            raise ValueError(f"vocoder rates {self.vocoder_rates} multiply to {product}, not to the hop {self.hop}")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The two text towers. `t5_*` is a T5 v1.1 encoder (gated GELU), `clip_*` a CLIP text transformer (QuickGELU)."""

    t5_vocabulary: int = 32128
    t5_width: int = 768
    t5_depth: int = 12
    t5_heads: int = 12
    t5_head_width: int = 64
    t5_mlp: int = 2048
    t5_max_tokens: int = 512
    clip_vocabulary: int = 49408
    clip_width: int = 1024
    clip_depth: int = 24
    clip_heads: int = 16
    clip_mlp: int = 4096
    clip_tokens: int = 77


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Everything `build` and the export need to know about a model."""

    name: str
    generator: GeneratorConfig
    audio: AudioConfig
    video: VideoConfig = field(default_factory=VideoConfig)
    text: TextConfig = field(default_factory=TextConfig)
    system: str = "selva"
    """"selva": the one sound of a text prompt; "mmaudio": all sounds of a video."""
    image: ImageConfig | None = None
    """The image tower of MMAudio; None: SelVA has none."""
    fps: int = 25
    """Frame rate of the video encoder's input, frames per second."""
    clip_fps: int = 8
    """CLIP tokens per second in the generator's visual stream (in SelVA, all of them the learned empty token)."""
    duration_s: float = 8.0
    """Length of the clips the model was trained on, and so of the windows of a longer video."""
    anchor_segments: int = 6
    """Segments of a window that repeat the begin of the video: see `selva_runtime.windows`."""
    overlap_segments: int = 3
    """Segments that a window has in common with the one before."""

    def __post_init__(self) -> None:
        if self.system not in SYSTEMS:
            raise ValueError(f"preset {self.name}: unknown system {self.system!r}; choose one of {', '.join(SYSTEMS)}")
        if (self.image is None) == (self.system == "mmaudio"):
            raise ValueError(f"preset {self.name}: mmaudio has an image tower, selva has none")
        if self.image is not None and self.image.output != self.generator.clip_width:
            raise ValueError(f"preset {self.name}: generator and image tower disagree on the width of visual tokens")
        if self.generator.latent_width != self.audio.latent_width:
            raise ValueError(f"preset {self.name}: generator and VAE disagree on the latent width")
        span = self.fps * 2 * self.audio.hop / self.audio.sample_rate_hz
        if self.generator.frames_per_latent not in (None, span):
            raise ValueError(f"preset {self.name}: a latent vector spans {span} frames")

    @property
    def is_demo(self) -> bool:
        """Whether it is one of the project's own toy models."""
        return self.name in ("demo", "demo_mmaudio")


AUDIO_16K = AudioConfig(
    sample_rate_hz=16000,
    n_fft=1024,
    hop=256,
    mel_bands=80,
    mel_fmax_hz=8000.0,
    log10=True,
    latent_width=20,
    vae_width=384,
    vocoder_rates=(4, 4, 2, 2, 2, 2),
    vocoder_kernels=(8, 8, 4, 4, 4, 4),
    vocoder_tanh=True,
    mel_statistics="mel_statistics_16k",
)
AUDIO_44K = AudioConfig(
    sample_rate_hz=44100,
    n_fft=2048,
    hop=512,
    mel_bands=128,
    mel_fmax_hz=22050.0,
    log10=False,
    latent_width=40,
    vae_width=512,
    vocoder_rates=(8, 4, 2, 2, 2, 2),
    vocoder_kernels=(16, 8, 4, 4, 4, 4),
    vocoder_tanh=False,
    mel_statistics="mel_statistics_44k",
)

_SMALL = GeneratorConfig()
_MEDIUM = GeneratorConfig(width=896, heads=14, latent_width=40)
_LARGE = replace(_MEDIUM, joint_blocks=7, fused_blocks=14)

_DEMO = Preset(
    name="demo",
    generator=GeneratorConfig(
        width=96,
        heads=3,
        joint_blocks=2,
        fused_blocks=2,
        latent_width=20,
        sync_width=96,
        clip_width=64,
        text_width=64,
        text_tokens=32,
        frames_per_latent=0.8,
    ),
    audio=replace(
        AUDIO_16K,
        vae_width=32,
        vocoder_width=32,
        vocoder_rates=(256,),  # one level with filters of two frames: four levels did not learn to make tones
        vocoder_kernels=(512,),
        mel_statistics=None,
    ),
    video=VideoConfig(image_size=64, width=96, depth=3, heads=3, text_width=64),
    text=TextConfig(
        t5_vocabulary=512,
        t5_width=64,
        t5_depth=2,
        t5_heads=2,
        t5_head_width=32,
        t5_mlp=128,
        t5_max_tokens=128,
        clip_vocabulary=640,
        clip_width=64,
        clip_depth=2,
        clip_heads=2,
        clip_mlp=256,
        clip_tokens=32,
    ),
    duration_s=4.16,
    anchor_segments=5,
    overlap_segments=2,
)

_OFFICIAL = (
    Preset(name="small_16k", generator=_SMALL, audio=AUDIO_16K),
    Preset(name="small_44k", generator=replace(_SMALL, latent_width=40), audio=AUDIO_44K),
    Preset(name="medium_44k", generator=_MEDIUM, audio=AUDIO_44K),
    Preset(name="large_44k", generator=_LARGE, audio=AUDIO_44K),
    Preset(name="large_44k_v2", generator=replace(_LARGE, v2=True), audio=AUDIO_44K),
)
_DEMO_MMAUDIO = replace(
    _DEMO,
    name="demo_mmaudio",
    system="mmaudio",
    image=ImageConfig(image_size=64, patch=8, width=64, depth=2, heads=2, output=64),
    generator=replace(_DEMO.generator, joint_blocks=1, fused_blocks=2),
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        *_OFFICIAL,
        _DEMO,
        *(replace(p, name=f"mmaudio_{p.name}", system="mmaudio", image=ImageConfig()) for p in _OFFICIAL),
        _DEMO_MMAUDIO,
    )
}


def get_preset(name: str) -> Preset:
    """Returns the preset called `name`.

    Raises:
        ValueError: there is no such preset; lists the names.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
