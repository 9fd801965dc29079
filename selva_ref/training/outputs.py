"""Trained checkpoints under the official names, in a folder that the export can use directly."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from selva_bundle.atomic import atomic_write
from selva_ref.model.presets import Preset
from selva_ref.weights.checkpoints import find_checkpoint, get_checkpoint

UNTRAINED = ("vae", "vocoder", "text_t5", "text_clip")


def write_checkpoint(out: Path, part: str, preset: Preset, network: nn.Module, trained: Mapping[str, Tensor]) -> Path:
    """Writes the whole network with `trained` in place of its own values, and returns the path."""
    path = out / get_checkpoint(preset.name, part).file
    own = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    tensors = {name: value.float().contiguous().clone() for name, value in (own | dict(trained)).items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"source": "selva-train"})
    return path


def link_parts(out: Path, checkpoints: Path, preset: Preset, parts: Iterable[str]) -> None:
    """Adds parts that were not trained to the trained ones, as hard links if the disk supports them."""
    for part in parts:
        source = find_checkpoint(checkpoints, part, preset.name)
        wanted = [source.relative_to(checkpoints)]
        if source.parent != checkpoints:  # a text tower comes with its tokenizer
            wanted = [found.relative_to(checkpoints) for found in source.parent.iterdir() if found.is_file()]
        for name in wanted:
            _link(checkpoints / name, out / name)


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one without hard links
        with atomic_write(target) as temporary:
            shutil.copyfile(source, temporary)
