"""Which weights a preset needs, where they are published, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from selva_ref import SYSTEM_PARTS

LICENCE_NOTICES = {
    "selva": (
        "Weights for non-commercial research; not legal advice. The SelVA code and weights state no licence. "
        "MMAudio weights: CC-BY-NC 4.0. DFN5B CLIP weights: Apple Machine Learning Research Model licence "
        "(apple-amlr), research only. FLAN-T5: Apache-2.0. Synchformer and BigVGAN: MIT."
    ),
    "mmaudio": (
        "Weights for non-commercial research; not legal advice. MMAudio weights: CC-BY-NC 4.0. DFN5B CLIP weights: "
        "Apple Machine Learning Research Model licence (apple-amlr), research only. Synchformer and BigVGAN: MIT."
    ),
}
"""By system: shown by the commands and included in every bundle made from official weights."""

_RAW_SUFFIXES = (".pth", ".pt", ".bin")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file in a model hub repository, and the hashes its publisher states."""

    path: str
    md5: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One network's weights: in the user's folder and on the model hub."""

    part: str
    file: str
    """Path under the user's folder, always `.safetensors`; the official file next to it is accepted too."""
    licence: str
    other_paths: tuple[str, ...] = ()
    """Other paths under the folder that may hold the same weights, as in a clone of the hub's repository."""
    repo: str | None = None
    """None: no file is known to be published, so the user has to supply it."""
    weights: HubFile | None = None
    revision: str | None = None
    """Commit; None: unknown, so `main` is downloaded and its commit recorded."""
    companions: tuple[HubFile, ...] = ()
    """Tokenizer files, kept unchanged in the same folder as the weights."""
    unused: tuple[str, ...] = ()
    """Patterns of tensors that no network here needs; they are dropped when the file is converted."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every path under the folder where the weights may be, preferred one first."""
        stem = PurePosixPath(self.file)
        return (self.file, *(str(stem.with_suffix(suffix)) for suffix in _RAW_SUFFIXES), *self.other_paths)


REPOS = {"selva": "jnwnlee/SelVA", "mmaudio": "hkchengrex/MMAudio"}
"""Each system's own repository. We do not know their commits; the hashes pin the files."""


def _own(part: str, path: str, licence: str, md5: str | None = None, *, system: str = "selva") -> Checkpoint:
    """A checkpoint from a system's own repository."""
    return Checkpoint(
        part=part,
        file=f"{PurePosixPath(path).stem}.safetensors",
        licence=licence,
        repo=REPOS[system],
        weights=HubFile(path=path, md5=md5),
    )


_VIDEO_ENCODER = _own(
    "video_encoder", "weights/video_enc_sup_5.pth", "none stated (SelVA)", "ff09a6dc36148536ee4db97eba081d05"
)
_TEACHER = _own(
    "teacher",
    "ext_weights/synchformer_state_dict.pth",
    "MIT (Synchformer)",
    "5b2f5594b0730f70e41e549b7c94390c",
)
_MMAUDIO_LICENCE = "CC-BY-NC 4.0 (MMAudio)"
_VAE_16K = _own("vae", "ext_weights/v1-16.pth", _MMAUDIO_LICENCE, "69f56803f59a549a1a507c93859fd4d7")
_VAE_44K = _own(
    "vae",
    "ext_weights/v1-44.pth",
    _MMAUDIO_LICENCE,
    "fab020275fa44c6589820ce025191600",
)
_VOCODER_16K = _own(
    "vocoder",
    "ext_weights/best_netG.pt",
    "MIT (BigVGAN)",
    "eeaf372a38a9c31c362120aba2dde292",
)
_VOCODER_44K = Checkpoint(
    part="vocoder",
    file="bigvgan_generator.safetensors",
    licence="MIT (BigVGAN)",
    repo="nvidia/bigvgan_v2_44khz_128band_512x",
    revision="95a9d1dcb12906c03edd938d77b9333d6ded7dfb",
    weights=HubFile(
        path="bigvgan_generator.pt", sha256="d9fe7ec6bd0b44ed9d66973d5012d8181c1570b01e5c72df51973e241dccd357"
    ),
)
_TEXT_T5 = Checkpoint(
    part="text_t5",
    file="flan-t5-base/model.safetensors",
    other_paths=("flan-t5-base/pytorch_model.bin",),
    licence="Apache-2.0 (FLAN-T5)",
    repo="google/flan-t5-base",
    revision="7bcac572ce56db69c1ea7c8af255c5d7c9672fc2",
    weights=HubFile(path="model.safetensors"),
    companions=(HubFile(path="tokenizer.json"),),
    unused=("decoder.block.*", "lm_head.*"),
)
_TEXT_CLIP = Checkpoint(
    part="text_clip",
    file="DFN5B-CLIP-ViT-H-14-384/open_clip_pytorch_model.safetensors",
    other_paths=("DFN5B-CLIP-ViT-H-14-384/model.safetensors", "DFN5B-CLIP-ViT-H-14-384/pytorch_model.bin"),
    licence="apple-amlr, research only (DFN5B CLIP)",
    # The hub renamed it to ...-378 and redirects. The published code asks for this name, so its cache is found under
    # it.
    repo="apple/DFN5B-CLIP-ViT-H-14-384",
    revision="01b771ed0d1395ca5ffdd279897d665ebe00dfd2",
    weights=HubFile(
        path="open_clip_pytorch_model.bin",
        sha256="c07a17b547d461c60a3cce5062b26bf8545b13de602c4c59d8490361eb716033",
    ),
    companions=(HubFile(path="vocab.json"), HubFile(path="merges.txt")),
    unused=("visual.*",),
)

# The other half of the same file, converted to a file of its own: bundles of SelVA do without its 2.5 GB.
_CLIP_IMAGE = replace(
    _TEXT_CLIP,
    part="clip_image",
    file="DFN5B-CLIP-ViT-H-14-384/image_tower.safetensors",
    other_paths=("DFN5B-CLIP-ViT-H-14-384/open_clip_pytorch_model.bin", *_TEXT_CLIP.other_paths),
    companions=(),
    unused=("token_embedding.*", "positional_embedding", "transformer.*", "ln_final.*", "text_projection", "logit_*"),
)

_GENERATORS = {
    "small_16k": ("generator_small_16k_sup_5", "1cb0f0deec52de37f67b1fd9965337d0"),
    "small_44k": ("generator_small_44khz_sup_5", None),
    "medium_44k": ("generator_medium_44khz_sup_5", None),
    "large_44k": ("generator_large_44khz_sup_5", None),
}
_GENERATOR_LICENCE = "none stated (SelVA); MMAudio, which it starts from, is CC-BY-NC 4.0"


_MMAUDIO_GENERATORS = {
    "small_16k": "af93cde404179f58e3919ac085b8033b",
    "small_44k": "babd74c884783d13701ea2820a5f5b6d",
    "medium_44k": "5a56b6665e45a1e65ada534defa903d0",
    "large_44k": "fed96c325a6785b85ce75ae1aafd2673",
    "large_44k_v2": "01ad4464f049b2d7efdaa4c1a59b8dfe",
}


def _family(name: str, generator: Checkpoint, vae: Checkpoint, vocoder: Checkpoint) -> dict[str, Checkpoint]:
    student = _user_supplied("student", f"student_{name}.safetensors")
    parts = (_VIDEO_ENCODER, _TEACHER, generator, student, vae, vocoder, _TEXT_T5, _TEXT_CLIP)
    return {checkpoint.part: checkpoint for checkpoint in parts}


def _mmaudio_family(size: str, md5: str) -> dict[str, Checkpoint]:
    """Only the generator and the image tower are not SelVA's too."""
    generator = _own("generator", f"weights/mmaudio_{size}.pth", _MMAUDIO_LICENCE, md5, system="mmaudio")
    audio = (_VAE_16K, _VOCODER_16K) if size == "small_16k" else (_VAE_44K, _VOCODER_44K)
    parts = (_TEACHER, generator, *audio, _TEXT_CLIP, _CLIP_IMAGE)
    return {checkpoint.part: checkpoint for checkpoint in parts}


def _user_supplied(part: str, file: str) -> Checkpoint:
    """Weights that are not known to be published anywhere."""
    return Checkpoint(part=part, file=file, licence="your own")


CHECKPOINTS: dict[str, dict[str, Checkpoint]] = {
    name: _family(
        name,
        _own("generator", f"weights/{stem}.pth", _GENERATOR_LICENCE, md5),
        *((_VAE_16K, _VOCODER_16K) if name == "small_16k" else (_VAE_44K, _VOCODER_44K)),
    )
    for name, (stem, md5) in _GENERATORS.items()
}
CHECKPOINTS["large_44k_v2"] = _family(
    "large_44k_v2",
    _user_supplied("generator", "generator_large_44khz_v2_sup_5.safetensors"),
    _VAE_44K,
    _VOCODER_44K,
)
for _name, _md5 in _MMAUDIO_GENERATORS.items():
    CHECKPOINTS[f"mmaudio_{_name}"] = _mmaudio_family(_name, _md5)
CHECKPOINTS["demo"] = {part: _user_supplied(part, f"{part}_demo.safetensors") for part in SYSTEM_PARTS["selva"]}
CHECKPOINTS["demo_mmaudio"] = {
    part: _user_supplied(part, "bed_demo.safetensors" if part == "generator" else f"{part}_demo.safetensors")
    for part in SYSTEM_PARTS["mmaudio"]
}
"""What each preset needs: preset name -> part -> checkpoint."""
