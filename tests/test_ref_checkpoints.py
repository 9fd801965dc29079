"""Reading checkpoints: anything that is not exactly a set of fitting tensors is one clear error."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import selva_ref
from selva_ref import PRESETS, SYSTEM_PARTS
from selva_ref.errors import CheckpointError, CheckpointNotFoundError
from selva_ref.model.official import load_strict
from selva_ref.weights import random_weights
from selva_ref.weights.checkpoints import (
    RECORD,
    file_sha256,
    find_checkpoint,
    read_checkpoint,
)
from selva_ref.weights.loading import load_part, load_tokenizers
from selva_ref.weights.published import CHECKPOINTS, LICENCE_NOTICES

TENSORS = {"a.weight": torch.arange(600.0).reshape(20, 30), "a.bias": torch.arange(20.0), "count": torch.tensor(7)}


def assert_same(read: dict[str, Tensor], written: dict[str, Tensor] = TENSORS) -> None:
    assert read.keys() == written.keys()
    assert all(torch.equal(read[name], written[name]) for name in written)


def write(path: Path, content: object = TENSORS, *, legacy: bool = False) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.pt", "x.bin"])
def test_reads_every_format(tmp_path, name):
    assert_same(read_checkpoint(write(tmp_path / name)))
    assert_same(read_checkpoint(str(tmp_path / name)))


def test_reads_files_from_before_the_zip_format(tmp_path):
    assert_same(read_checkpoint(write(tmp_path / "x.pth", legacy=True)))


def test_parameters_come_as_plain_tensors(tmp_path):
    read = read_checkpoint(write(tmp_path / "x.pth", {"w": nn.Parameter(torch.ones(3))}))
    assert not read["w"].requires_grad


@pytest.mark.parametrize("nesting", ["generator", "state_dict", "model"])
def test_unwraps_the_known_nestings(tmp_path, nesting):
    assert_same(read_checkpoint(write(tmp_path / "x.pt", {nesting: TENSORS, "epoch": 3, "optimizer": {"lr": 0.1}})))


@pytest.mark.parametrize(
    "content",
    [
        {"model": TENSORS, "state_dict": TENSORS},  # which of the two?
        {"weights": TENSORS},
        {"model": {"encoder": TENSORS}},
        TENSORS | {"epoch": 3},
        {1: torch.ones(2)},
        [torch.ones(2)],
        torch.ones(2),
        {},
    ],
    ids=["two nestings", "unknown nesting", "deeper", "not only tensors", "key not text", "list", "tensor", "empty"],
)
def test_refuses_anything_but_named_tensors(tmp_path, content):
    path = write(tmp_path / "x.pth", content)
    with pytest.raises(CheckpointError, match=r"x\.pth: not a (flat )?set of named tensors") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("raw", [False, True], ids=["zip", "bare pickle"])
def test_runs_no_code_from_a_pickle(tmp_path, raw):
    path, victim = tmp_path / "x.pth", tmp_path / "victim"
    if raw:
        path.write_bytes(pickle.dumps(Malicious(victim)))
    else:
        write(path, {"w": Malicious(victim)})
    with pytest.raises(CheckpointError, match=r"x\.pth.*Python objects") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not victim.exists()


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "legacy.pth"])
def test_a_damaged_file_is_one_error(tmp_path, name):
    path = write(tmp_path / name, legacy=name == "legacy.pth")
    whole = path.read_bytes()
    for kept in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=re.escape(name)) as error:
            read_checkpoint(path)
        assert "\n" not in str(error.value)


def test_a_flipped_bit_in_a_zip_checkpoint_is_found(tmp_path):
    path = write(tmp_path / "x.pth")
    whole = path.read_bytes()
    where = whole.index(TENSORS["a.weight"].numpy().tobytes()) + 1000
    path.write_bytes(whole[:where] + bytes([whole[where] ^ 4]) + whole[where + 1 :])
    with pytest.raises(CheckpointError, match="checksum"):
        read_checkpoint(path)


def flips(path: Path) -> Iterator[None]:
    """Yields with `path` damaged at one place after another."""
    whole = path.read_bytes()
    for where in range(0, len(whole), 11):
        path.write_bytes(whole[:where] + bytes([whole[where] ^ 0x41]) + whole[where + 1 :])
        yield
    path.write_bytes(whole)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_a_flipped_bit_anywhere_in_a_recorded_file_is_found(tmp_path, name):
    path = write(tmp_path / name)
    (tmp_path / RECORD).write_text(json.dumps({"files": {name: {"sha256": file_sha256(path)}}}))
    for _ in flips(path):
        with pytest.raises(CheckpointError, match="SHA-256 differs"):
            read_checkpoint(path)
    assert_same(read_checkpoint(path))


def test_flipped_bits_in_a_zip_that_nobody_recorded_change_no_tensor(tmp_path):
    path = write(tmp_path / "x.pth")
    refused = 0
    for _ in flips(path):
        try:
            read = read_checkpoint(path)
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
        else:
            assert_same(read)  # the flip hit bytes that zip does not use
    assert refused > 0


def test_flipped_bits_in_a_safetensors_file_that_nobody_recorded_raise_nothing_untyped(tmp_path):
    """The format has no checksums: most flips give wrong numbers, which only a recorded hash can detect."""
    path = write(tmp_path / "x.safetensors")
    refused = 0
    for _ in flips(path):
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
    assert refused > 0  # those that hit the header


def test_a_recorded_file_must_be_as_recorded(tmp_path):
    (tmp_path / "tower").mkdir()
    for name in ("x.safetensors", "tower/x.safetensors"):
        path = write(tmp_path / name)
        (tmp_path / RECORD).write_text(json.dumps({"files": {name: {"sha256": file_sha256(path)}}}))
        assert_same(read_checkpoint(path))
        write(path, {"w": torch.zeros(4)})
        with pytest.raises(CheckpointError, match="SHA-256 differs"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    "record",
    [
        "",
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {"x.pth": {}}}',
        '{"files": {"x.pth": 3}}',
        '{"files": {"x.pth": {"sha256": 5}}}',
        '{"files": {"x.pth": {"sha256": "x"}}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_record_is_one_error(tmp_path, record):
    path = write(tmp_path / "x.pth")
    (tmp_path / RECORD).write_text(record)
    with pytest.raises(CheckpointError, match="not written by selva-fetch"):
        read_checkpoint(path)


def test_a_missing_file_is_a_file_not_found_too(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_checkpoint(tmp_path / "x.pth")
    with pytest.raises(CheckpointNotFoundError):
        read_checkpoint(tmp_path)


def small() -> nn.Module:
    return nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(2, 2)})


def test_load_strict_takes_a_fitting_checkpoint():
    module, tensors = small(), small().state_dict()
    load_strict(module, tensors | {"extra.x": torch.ones(1)}, ignore=("extra.*",))
    assert_same(module.state_dict(), tensors)


def test_load_strict_lists_all_problems_and_loads_nothing():
    module, tensors = small(), small().state_dict()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    del tensors["a.bias"], tensors["b.bias"]
    tensors |= {"b.weight": torch.ones(2, 5), "c": torch.tensor(1.0), "d": torch.ones(1)}
    with pytest.raises(CheckpointError) as error:
        load_strict(module, tensors)
    assert str(error.value).endswith(
        "missing: a.bias, b.bias; unexpected: c, d; wrong shape: b.weight (2x5, needs 2x2)"
    )
    assert_same(module.state_dict(), before)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_load_strict_refuses_whole_numbers_for_weights(dtype):
    module, tensors = small(), small().state_dict()
    tensors["a.bias"] = tensors["a.bias"].to(dtype)
    with pytest.raises(CheckpointError, match=rf"wrong type: a\.bias \({dtype}, needs torch\.float32\)$"):
        load_strict(module, tensors)
    for precision in (torch.float16, torch.bfloat16, torch.float64):
        load_strict(module, {name: value.to(precision) for name, value in small().state_dict().items()})


def test_load_strict_optional_names_keep_their_values():
    module, tensors = small(), small().state_dict()
    kept = module["b"].bias.detach().clone()
    del tensors["b.bias"]
    load_strict(module, tensors, optional=("b.*",))
    assert torch.equal(module["b"].bias, kept)
    assert torch.equal(module["a"].bias, tensors["a.bias"])


def test_load_strict_never_ignores_what_the_module_has():
    module, tensors = small(), small().state_dict()
    load_strict(module, tensors, ignore=("*",))
    assert_same(module.state_dict(), tensors)


def test_the_table_covers_every_preset():
    assert CHECKPOINTS.keys() == PRESETS.keys()
    for preset, parts in CHECKPOINTS.items():
        assert tuple(sorted(parts)) == tuple(sorted(SYSTEM_PARTS[PRESETS[preset].system]))
        for part, checkpoint in parts.items():
            assert checkpoint.part == part
            assert checkpoint.file.endswith(".safetensors")
            assert (checkpoint.repo is None) == (checkpoint.weights is None)
        assert len({checkpoint.file for checkpoint in parts.values()}) == len(parts), preset
    assert CHECKPOINTS["small_44k"]["vae"] is CHECKPOINTS["large_44k_v2"]["vae"]
    for notice in LICENCE_NOTICES.values():
        assert "non-commercial" in notice
        assert "\n" not in notice


def test_mmaudio_shares_with_selva_all_but_generator_and_image_tower():
    sizes = ("small_16k", "small_44k", "medium_44k", "large_44k", "large_44k_v2")
    for size in sizes:
        selva, mmaudio = CHECKPOINTS[size], CHECKPOINTS[f"mmaudio_{size}"]
        assert {part for part in mmaudio if mmaudio[part] is not selva.get(part)} == {"generator", "clip_image"}
        generator, image, text = mmaudio["generator"], mmaudio["clip_image"], mmaudio["text_clip"]
        assert (generator.repo, generator.weights.path) == ("hkchengrex/MMAudio", f"weights/mmaudio_{size}.pth")
        assert (image.repo, image.weights, image.revision) == (text.repo, text.weights, text.revision)
        assert (bool(text.companions), image.companions) == (True, ())
    assert len({CHECKPOINTS[f"mmaudio_{size}"]["generator"].weights.md5 for size in sizes} - {None}) == len(sizes)
    assert "SelVA" in LICENCE_NOTICES["selva"]
    assert not any(name in LICENCE_NOTICES["mmaudio"] for name in ("SelVA", "FLAN"))


def test_each_tower_keeps_its_half_of_the_official_file():
    towers = {part: CHECKPOINTS["mmaudio_small_16k"][part].unused for part in ("text_clip", "clip_image")}
    names = ["visual.proj", "visual.transformer.resblocks.0.ln_1.bias", "visual.positional_embedding"]
    text = ["token_embedding.weight", "positional_embedding", "transformer.resblocks.0.ln_1.bias", "ln_final.bias"]
    rest = ["text_projection", "logit_scale"]

    def kept(part: str) -> list[str]:
        return [n for n in names + text + rest if not any(fnmatchcase(n, pattern) for pattern in towers[part])]

    assert kept("text_clip") == text + rest
    assert kept("clip_image") == names


def test_the_demo_of_mmaudio_uses_files_of_the_demo(tmp_path):
    parts = CHECKPOINTS["demo_mmaudio"]
    for part in ("teacher", "vae", "vocoder", "text_clip"):
        assert parts[part] == CHECKPOINTS["demo"][part]
    assert parts["generator"].file == "bed_demo.safetensors"
    assert parts["clip_image"].file == "clip_image_demo.safetensors"
    tensors = random_weights.state_dict(selva_ref.build("clip_image", "demo_mmaudio"))
    tensors["visual.ln_post.bias"] += 1
    save_file(tensors, tmp_path / "clip_image_demo.safetensors")
    tower = load_part("clip_image", PRESETS["demo_mmaudio"], tmp_path)
    assert torch.equal(tower.visual.ln_post.bias, tensors["visual.ln_post.bias"])
    assert load_tokenizers(PRESETS["demo_mmaudio"], tmp_path).keys() == {"clip"}


@pytest.mark.parametrize("name", ["generator_small_16k_sup_5.safetensors", "generator_small_16k_sup_5.pth"])
def test_finds_converted_and_official_files(tmp_path, name):
    write(tmp_path / name)
    assert find_checkpoint(tmp_path, "generator", "small_16k") == tmp_path / name


def test_prefers_the_converted_file(tmp_path):
    for suffix in (".bin", ".safetensors", ".pth"):
        write(tmp_path / f"v1-16{suffix}")
    assert find_checkpoint(tmp_path, "vae", "small_16k").suffix == ".safetensors"


def test_finds_text_towers_in_their_folders(tmp_path):
    folder = tmp_path / "DFN5B-CLIP-ViT-H-14-384"
    folder.mkdir()
    path = write(folder / "pytorch_model.bin")
    assert find_checkpoint(tmp_path, "text_clip", "medium_44k") == path
    assert_same(read_checkpoint(path))


def test_finds_the_image_tower_in_the_official_file(tmp_path):
    folder = tmp_path / "DFN5B-CLIP-ViT-H-14-384"
    folder.mkdir()
    path = write(folder / "open_clip_pytorch_model.bin")
    assert find_checkpoint(tmp_path, "clip_image", "mmaudio_medium_44k") == path
    write(folder / "open_clip_pytorch_model.safetensors")  # selva-fetch's: only the text tower
    path.unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"image_tower\.safetensors"):
        find_checkpoint(tmp_path, "clip_image", "mmaudio_medium_44k")


def test_says_what_is_missing_and_how_to_get_it(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"no v1-44\.safetensors.*selva-fetch --preset large_44k --out"):
        find_checkpoint(tmp_path, "vae", "large_44k")
    with pytest.raises(CheckpointNotFoundError, match="--preset small_16k --with-teacher --out"):
        find_checkpoint(tmp_path / "nowhere", "teacher", "small_16k")
    with pytest.raises(CheckpointNotFoundError, match="--preset mmaudio_small_16k --out"):
        find_checkpoint(tmp_path / "nowhere", "teacher", "mmaudio_small_16k")
    with pytest.raises(CheckpointNotFoundError, match=r"generator_demo\.safetensors.*put your own there"):
        find_checkpoint(tmp_path, "generator", "demo")
    with pytest.raises(ValueError, match="unknown part 'decoder'; choose one of"):
        find_checkpoint(tmp_path, "decoder", "demo")
    with pytest.raises(ValueError, match="unknown preset 'tiny'"):
        find_checkpoint(tmp_path, "vae", "tiny")
