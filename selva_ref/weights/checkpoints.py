"""Which weights a preset needs, where they are, and how to read them safely.

Checkpoints come from model hubs and from other people's disks. So nothing here unpickles objects, loads part of a
network, or guesses. A file is a flat set of named tensors that fits exactly; anything else is a `CheckpointError`.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import torch
from safetensors.torch import load_file
from torch import Tensor

from selva_ref import SYSTEM_PARTS, get_preset
from selva_ref.errors import CheckpointError, CheckpointNotFoundError

LICENCE_NOTICE = (
    "Weights for non-commercial research; not legal advice. The SelVA code and weights state no licence. "
    "MMAudio weights: CC-BY-NC 4.0. DFN5B CLIP weights: Apple Machine Learning Research Model licence (apple-amlr), "
    "research only. FLAN-T5: Apache-2.0. Synchformer and BigVGAN: MIT."
)
"""Shown by the commands and included in every bundle made from official weights."""

RECORD = "checkpoints.json"
"""Written by `selva-fetch` next to the files: the source and SHA-256 of each."""

_RAW_SUFFIXES = (".pth", ".pt", ".bin")
_NESTINGS = ("generator", "state_dict", "model")


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


def _selva(part: str, path: str, licence: str, md5: str | None = None) -> Checkpoint:
    """A checkpoint from SelVA's own repository. We do not know its commit; its hashes pin it."""
    return Checkpoint(
        part=part,
        file=f"{PurePosixPath(path).stem}.safetensors",
        licence=licence,
        repo="jnwnlee/SelVA",
        weights=HubFile(path=path, md5=md5),
    )


_VIDEO_ENCODER = _selva(
    "video_encoder", "weights/video_enc_sup_5.pth", "none stated (SelVA)", "ff09a6dc36148536ee4db97eba081d05"
)
_TEACHER = _selva(
    "teacher",
    "ext_weights/synchformer_state_dict.pth",
    "MIT (Synchformer)",
    "5b2f5594b0730f70e41e549b7c94390c",
)
_VAE_LICENCE = "CC-BY-NC 4.0 (MMAudio)"
_VAE_16K = _selva("vae", "ext_weights/v1-16.pth", _VAE_LICENCE, "69f56803f59a549a1a507c93859fd4d7")
_VAE_44K = _selva(
    "vae",
    "ext_weights/v1-44.pth",
    _VAE_LICENCE,
    "fab020275fa44c6589820ce025191600",
)
_VOCODER_16K = _selva(
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

_CLIP_IMAGE = replace(  # the other half of the same file
    _TEXT_CLIP,
    part="clip_image",
    file="DFN5B-CLIP-ViT-H-14-384/image_tower.safetensors",
    other_paths=(
        "DFN5B-CLIP-ViT-H-14-384/open_clip_pytorch_model.bin",
        *_TEXT_CLIP.other_paths,
    ),
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


def _family(generator: Checkpoint, vae: Checkpoint, vocoder: Checkpoint) -> dict[str, Checkpoint]:
    parts = (_VIDEO_ENCODER, _TEACHER, generator, vae, vocoder, _TEXT_T5, _TEXT_CLIP)
    return {checkpoint.part: checkpoint for checkpoint in parts}


def _mmaudio_family(size: str, md5: str) -> dict[str, Checkpoint]:
    generator = Checkpoint(
        part="generator",
        file=f"mmaudio_{size}.safetensors",
        licence=_VAE_LICENCE,
        repo="hkchengrex/MMAudio",
        weights=HubFile(path=f"weights/mmaudio_{size}.pth", md5=md5),
    )
    audio = (_VAE_16K, _VOCODER_16K) if size == "small_16k" else (_VAE_44K, _VOCODER_44K)
    parts = (_TEACHER, generator, *audio, _TEXT_CLIP, _CLIP_IMAGE)
    return {checkpoint.part: checkpoint for checkpoint in parts}


def _user_supplied(part: str, file: str) -> Checkpoint:
    """Weights that are not known to be published anywhere."""
    return Checkpoint(part=part, file=file, licence="your own")


CHECKPOINTS: dict[str, dict[str, Checkpoint]] = {
    name: _family(
        _selva("generator", f"weights/{stem}.pth", _GENERATOR_LICENCE, md5),
        *((_VAE_16K, _VOCODER_16K) if name == "small_16k" else (_VAE_44K, _VOCODER_44K)),
    )
    for name, (stem, md5) in _GENERATORS.items()
}
CHECKPOINTS["large_44k_v2"] = _family(
    _user_supplied("generator", "generator_large_44khz_v2_sup_5.safetensors"), _VAE_44K, _VOCODER_44K
)
for _name, _md5 in _MMAUDIO_GENERATORS.items():
    CHECKPOINTS[f"mmaudio_{_name}"] = _mmaudio_family(_name, _md5)
CHECKPOINTS["demo"] = {part: _user_supplied(part, f"{part}_demo.safetensors") for part in SYSTEM_PARTS["selva"]}
CHECKPOINTS["demo_mmaudio"] = {
    part: _user_supplied(part, "bed_demo.safetensors" if part == "generator" else f"{part}_demo.safetensors")
    for part in SYSTEM_PARTS["mmaudio"]
}
"""What each preset needs: preset name -> part -> checkpoint."""


def get_checkpoint(preset_name: str, part: str) -> Checkpoint:
    """Returns the entry of `CHECKPOINTS` for a preset and a part.

    Raises:
        ValueError: there is no such preset or part; lists the names.
    """
    parts = CHECKPOINTS[get_preset(preset_name).name]
    if part not in parts:
        raise ValueError(f"unknown part {part!r}; choose one of {', '.join(parts)}")
    return parts[part]


def find_checkpoint(directory: str | Path, part: str, preset_name: str) -> Path:
    """Path of a part's weights under `directory`; a text tower's tokenizer files are in the same folder.

    Raises:
        CheckpointNotFoundError: the file does not exist; the message says how to get it.
    """
    checkpoint = get_checkpoint(preset_name, part)
    for name in checkpoint.names:
        path = Path(directory) / name
        if path.is_file():
            return path
    if checkpoint.repo is None:
        fix = "no published file is known: train one, or put your own there"
    else:
        teacher = " --with-teacher" if part == "teacher" else ""
        fix = f"get it with: selva-fetch --preset {preset_name}{teacher} --out {directory}"
    raise CheckpointNotFoundError(f"{directory}: no {checkpoint.file} (the {part} of preset {preset_name}); {fix}")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Reads the named tensors of a `.safetensors`, `.pth`, `.pt` or `.bin` file on the CPU, memory-mapped if possible.

    A file that `selva-fetch` recorded must still have the recorded SHA-256. Without a record, zip files (`.pth`) are
    checked against their own checksums. `.safetensors` and older pickles have no checksums, so damage may go unnoticed
    and give wrong numbers.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointError: the file is damaged, was changed, holds Python objects, or is not a flat set of named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path}: no such file")
    recorded = _recorded_sha256(path)
    if recorded and file_sha256(path) != recorded:
        raise CheckpointError(
            f"{path}: SHA-256 differs from {RECORD}: run selva-fetch again, or delete the entry if the file is yours"
        )
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except Exception as error:  # a damaged file can make the readers raise almost anything
        raise CheckpointError(f"{path}: not a readable checkpoint ({_reason(error)})") from error
    return _flat_tensors(path, content)


def _read_pickle(path: Path) -> object:
    is_zip = zipfile.is_zipfile(path)  # files from before PyTorch 1.6 are not, and cannot be mapped
    if is_zip:
        with zipfile.ZipFile(path) as archive:  # torch.load does not check the checksums itself
            if damaged := archive.testzip():
                raise CheckpointError(f"checksum of {damaged} is wrong: download the file again")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _reason(error: Exception) -> str:
    if "weights_only" in str(error).lower() or "Weights only" in str(error):
        return "it is damaged, or holds Python objects other than tensors, which are never loaded"
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _flat_tensors(path: Path, content: object) -> dict[str, Tensor]:
    """Returns `content`, or the one mapping of tensors nested in it under a well-known name."""
    if _is_flat(content):
        return {name: tensor.detach() for name, tensor in content.items()}
    if isinstance(content, Mapping):
        nested = [inner for key in _NESTINGS if _is_flat(inner := content.get(key))]
        if len(nested) == 1:
            return {name: tensor.detach() for name, tensor in nested[0].items()}
        held = ", ".join(f"{key!s:.40} ({type(value).__name__})" for key, value in list(content.items())[:5])
        raise CheckpointError(f"{path}: not a flat set of named tensors; it holds {held or 'nothing'}")
    raise CheckpointError(f"{path}: not a set of named tensors but a {type(content).__name__}")


def _is_flat(content: object) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())
    )


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(directory: str | Path) -> dict[str, dict[str, Any]]:
    """Reads what `selva-fetch` recorded about `directory`: path -> sha256, bytes, source. Empty if none."""
    path = Path(directory) / RECORD
    try:
        files: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["files"]
        for entry in files.values():
            if not re.fullmatch("[0-9a-f]{64}", entry["sha256"]) or entry.get("verified") not in (True, False, None):
                raise ValueError("a field has the wrong type")
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not written by selva-fetch; delete it and run selva-fetch again") from error
    return files


def _recorded_sha256(path: Path) -> str | None:
    for folder in path.parents[:2]:
        entry = read_record(folder).get(path.relative_to(folder).as_posix())
        if entry:
            return str(entry["sha256"])
    return None
