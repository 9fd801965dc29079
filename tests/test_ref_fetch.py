"""`selva-fetch` with a small local model hub: right, wrong, cut, offline, already there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import constants, hf_hub_download
from platforms import needs_posix
from safetensors import safe_open
from small_hub import (
    CHUNK_BYTES,
    COMMIT,
    FILES,
    HERE,
    TABLE,
    VAE_TENSORS,
    VOCABULARY,
    SmallHub,
    pth,
    serving_small_preset,
)

from selva_ref.errors import CheckpointError
from selva_ref.weights.checkpoints import RECORD, find_checkpoint, read_checkpoint
from selva_ref.weights.fetch import FetchError, fetch, main
from selva_ref.weights.published import CHECKPOINTS, LICENCE_NOTICES


@pytest.fixture
def hub(monkeypatch):
    with serving_small_preset(monkeypatch) as small:
        yield small


@pytest.fixture
def get(hub, tmp_path):
    """Runs `fetch` for a small preset into `tmp_path/out`, from the small hub, with its own cache."""

    def get(preset="small_16k", **options):
        return fetch(preset, tmp_path / "out", endpoint=hub.url, cache_dir=tmp_path / "cache", **options)

    return get


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_fetches_checks_converts_and_records(hub, get, tmp_path):
    fetched = get()
    out = tmp_path / "out"
    assert listing(out) == sorted([RECORD, *HERE])  # no partial files, no teacher
    assert {one.file: one.status for one in fetched} == dict.fromkeys(HERE, "fetched")
    read = read_checkpoint(out / "v1-16.safetensors")
    assert all(torch.equal(read[name], VAE_TENSORS[name]) for name in VAE_TENSORS)
    assert read.keys() == VAE_TENSORS.keys()
    assert read_checkpoint(out / "clip/tower.safetensors").keys() == {"ln_final.weight"}  # unused tensors are dropped
    assert (out / "clip/vocab.json").read_bytes() == VOCABULARY
    source = json.loads((out / RECORD).read_text())["files"]["v1-16.safetensors"]["source"]
    with safe_open(out / "v1-16.safetensors", "pt") as file:
        assert json.loads(file.metadata()["source"]) == source
    content = FILES["jnwnlee/SelVA/ext_weights/v1-16.pth"]
    assert (source["repo"], source["revision"]) == ("jnwnlee/SelVA", COMMIT)
    assert (source["md5"], source["sha256"]) == (TABLE["vae"].weights.md5, hashlib.sha256(content).hexdigest())


def test_tensors_that_share_memory_are_kept_apart(hub, get, tmp_path):
    shared, name = torch.arange(10.0), "jnwnlee/SelVA/ext_weights/teacher.pth"
    hub.files[name] = hub.stated[name] = pth({"x": shared, "y": shared, "tail": shared[3:]})
    get(with_teacher=True)
    read = read_checkpoint(tmp_path / "out/teacher.safetensors")
    assert torch.equal(read["y"], shared)
    assert torch.equal(read["tail"], shared[3:])


def test_a_second_run_verifies_without_the_hub(hub, get, tmp_path):
    get()
    hub.asked.clear()
    assert {one.status for one in get()} == {"already there"}
    assert hub.asked == []


def test_a_damaged_file_is_fetched_again(hub, get, tmp_path):
    get()
    path = tmp_path / "out/v1-16.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    lines: list[str] = []
    assert [one.status for one in get(say=lines.append)].count("fetched") == 1
    assert path.read_bytes() == whole  # byte for byte: conversion is deterministic
    assert any("differs from what was fetched" in line for line in lines)


def test_somebody_elses_file_is_kept(hub, get, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/v1-16.safetensors").write_bytes(b"fine-tuned")
    statuses = {one.file: one.status for one in get()}
    assert statuses["v1-16.safetensors"] == "kept"
    assert (tmp_path / "out/v1-16.safetensors").read_bytes() == b"fine-tuned"


@pytest.mark.parametrize(
    "name", ["jnwnlee/SelVA/ext_weights/v1-16.pth", "apple/new-name/tower.bin", "apple/new-name/vocab.json"]
)
def test_wrong_content_is_not_used_and_downloaded_again(hub, get, tmp_path, name):
    """Checks against the publisher's MD5, the hub's SHA-256 and the hub's Git hash."""
    hub.files[name] = hub.files[name][:-1] + b"x"
    with pytest.raises(FetchError, match=r"wrong content: (MD5|SHA-256|Git hash) \w+ instead of \w+; removed it"):
        get()
    assert not [file for file in listing(tmp_path / "out") if Path(name).stem in file]
    hub.files[name] = FILES[name]
    get()
    assert listing(tmp_path / "out") == sorted([RECORD, *HERE])
    assert set(hub.gets(name)) <= {None}  # from the beginning, not resumed


def test_a_file_that_is_no_checkpoint_is_one_error(hub, get, tmp_path):
    name = "apple/new-name/tower.bin"
    hub.files[name] = hub.stated[name] = b"<html>"
    with pytest.raises(CheckpointError, match=r"tower\.bin: not a readable checkpoint"):
        get()
    assert "clip/tower.safetensors" not in listing(tmp_path / "out")


def test_a_cut_connection_is_resumed(hub, get):
    hub.cuts += [100_000, 50_000]
    get()
    assert hub.gets("jnwnlee/SelVA/ext_weights/v1-16.pth") == [None, "bytes=100000-", "bytes=150000-"]


def test_the_next_run_resumes_where_this_one_stopped(hub, get, tmp_path):
    hub.cuts, hub.dies = [70_000], True
    with pytest.raises(FetchError, match=rf"missing from .* cache: {', '.join([HERE[2], *HERE[:2]])}$"):
        get()
    assert not [file for file in listing(tmp_path / "out") if file in HERE]
    hub.down = hub.dies = False
    hub.asked.clear()
    get()
    assert hub.gets("jnwnlee/SelVA/ext_weights/v1-16.pth") == ["bytes=70000-"]
    assert listing(tmp_path / "out") == sorted([RECORD, *HERE])


def test_a_partial_file_that_is_too_long_is_dropped(hub, get, tmp_path):
    hub.cuts, hub.dies = [70_000], True
    with pytest.raises(FetchError):
        get()
    (partial,) = (tmp_path / "out/.download").iterdir()
    partial.write_bytes(bytes(300_000))
    hub.down = hub.dies = False
    get()
    assert listing(tmp_path / "out") == sorted([RECORD, *HERE])


def test_a_refusal_is_final(hub, get):
    del hub.files["apple/new-name/vocab.json"]
    with pytest.raises(FetchError, match=r"apple/old-name/vocab\.json: .*404"):
        get()
    assert len([path for _, path, _ in hub.asked if path.endswith("new-name/resolve/" + COMMIT + "/vocab.json")]) == 1


def test_the_hubs_cache_is_used(hub, get, tmp_path):
    hf_hub_download("jnwnlee/SelVA", "ext_weights/v1-16.pth", endpoint=hub.url, cache_dir=tmp_path / "cache")
    hub.asked.clear()
    assert {one.file: one.source["revision"] for one in get()}["v1-16.safetensors"] == COMMIT
    assert not [path for _, path, _ in hub.asked if "v1-16" in path]


def test_a_damaged_file_in_the_hubs_cache_is_removed(hub, get, tmp_path):
    link = hf_hub_download(
        "apple/old-name", "vocab.json", revision=COMMIT, endpoint=hub.url, cache_dir=tmp_path / "cache"
    )
    blob = Path(link).resolve()
    blob.write_bytes(b"{}")
    with pytest.raises(FetchError, match="Git hash"):
        get()
    assert not blob.exists()
    get()
    assert (tmp_path / "out/clip/vocab.json").read_bytes() == VOCABULARY


def test_official_files_put_there_by_hand_need_no_hub(hub, get, tmp_path):
    (tmp_path / "out/clip").mkdir(parents=True)
    (tmp_path / "out/v1-16.pth").write_bytes(FILES["jnwnlee/SelVA/ext_weights/v1-16.pth"])
    (tmp_path / "out/clip/tower.bin").write_bytes(FILES["apple/new-name/tower.bin"])
    (tmp_path / "out/clip/vocab.json").write_bytes(VOCABULARY)
    statuses = {one.file: one.status for one in get()}
    assert statuses == {HERE[0]: "fetched", HERE[1]: "kept", HERE[2]: "fetched"}
    assert hub.asked == []


def test_a_wrong_file_put_there_by_hand_is_one_error(hub, get, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/v1-16.pth").write_bytes(pth({"w": torch.ones(1)}))
    with pytest.raises(FetchError, match=r"v1-16\.pth is not the official file"):
        get()
    assert (tmp_path / "out/v1-16.pth").exists()


def test_another_revision_is_fetched_again_and_trusts_the_hub(hub, get):
    get()
    name = "jnwnlee/SelVA/ext_weights/v1-16.pth"
    hub.files[name] = hub.stated[name] = pth({"w": torch.ones(1)})
    statuses = {one.file: one.status for one in get(revision="better")}
    assert statuses == {HERE[0]: "already there", HERE[1]: "already there", HERE[2]: "fetched"}
    assert any(path.endswith("/resolve/better/ext_weights/v1-16.pth") for _, path, _ in hub.asked)


MMAUDIO = ["mmaudio_small_16k.safetensors", "teacher.safetensors", "clip/image_tower.safetensors"]
"""What MMAudio needs besides the files of SelVA."""


def test_mmaudio_gets_its_teacher_and_both_towers_from_one_download(hub, get, tmp_path):
    lines: list[str] = []
    assert {one.file: one.status for one in get("mmaudio_small_16k", say=lines.append)} == dict.fromkeys(
        [*HERE, *MMAUDIO], "fetched"
    )
    out = tmp_path / "out"
    assert listing(out) == sorted([RECORD, *HERE, *MMAUDIO])
    assert hub.gets("apple/new-name/tower.bin") == [None]
    assert read_checkpoint(out / "clip/tower.safetensors").keys() == {"ln_final.weight"}
    assert read_checkpoint(out / "clip/image_tower.safetensors").keys() == {"visual.proj"}
    assert not any("needed again" in line for line in lines)
    assert {one.status for one in get("small_16k")} == {"already there"}


def test_a_run_that_stops_between_the_towers_downloads_nothing_twice(hub, get, tmp_path):
    (tmp_path / "out/clip").mkdir(parents=True)
    (tmp_path / "out/clip/image_tower.safetensors").mkdir()
    with pytest.raises(FetchError, match=r"image_tower\.safetensors: cannot be written"):
        get("mmaudio_small_16k")
    (tmp_path / "out/clip/image_tower.safetensors").rmdir()
    get("mmaudio_small_16k")
    assert hub.gets("apple/new-name/tower.bin") == [None]
    assert listing(tmp_path / "out") == sorted([RECORD, *HERE, *MMAUDIO])


def test_a_folder_of_selva_lacks_what_mmaudio_needs_and_is_told_so(hub, get, tmp_path):
    get("small_16k")
    out, lines = tmp_path / "out", []
    with pytest.raises(
        CheckpointError, match=r"no clip/image_tower\.safetensors.*selva-fetch --preset mmaudio_small_16k"
    ):
        find_checkpoint(out, "clip_image", "mmaudio_small_16k")
    statuses = {one.file: one.status for one in get("mmaudio_small_16k", say=lines.append)}
    assert statuses == dict.fromkeys(HERE, "already there") | dict.fromkeys(MMAUDIO, "fetched")
    why = "not kept when clip/tower.safetensors was made from tower.bin; that is needed again"
    assert lines[0] == f"clip/image_tower.safetensors: {why}"
    assert find_checkpoint(out, "clip_image", "mmaudio_small_16k") == out / "clip/image_tower.safetensors"


def test_a_revision_is_one_of_the_systems_own_repository(hub, get):
    get("mmaudio_small_16k", revision="better")
    asked = {path for method, path, _ in hub.asked if method == "HEAD"}
    assert "/hkchengrex/MMAudio/resolve/better/weights/mmaudio_small_16k.pth" in asked
    assert "/jnwnlee/SelVA/resolve/main/ext_weights/v1-16.pth" in asked


def test_no_room_for_the_download(hub, get, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(FetchError, match=r"no space for .*v1-16\.pth: \d+ bytes needed, 1000 free"):
        get()


def test_no_room_for_the_converted_file(hub, get, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("selva_ref.weights.fetch.save_file", full)
    with pytest.raises(FetchError, match=r"v1-16\.safetensors: cannot be written: .*No space left"):
        get()
    assert not [file for file in listing(tmp_path / "out") if "safetensors" in file]


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_an_unwritable_folder_is_one_error_before_any_download(hub, tmp_path, where):
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match="cannot be written"):
        fetch("small_16k", tmp_path / where, endpoint=hub.url, cache_dir=tmp_path / "cache")
    assert hub.asked == []


def test_presets_without_published_weights(tmp_path, hub):
    for preset in ("demo", "demo_mmaudio"):
        with pytest.raises(FetchError, match=f"preset {preset} has no official weights: there is nothing to fetch"):
            fetch(preset, tmp_path)
    with pytest.raises(CheckpointError, match="no published file is known"):
        fetch("large_44k_v2", tmp_path)


def test_the_commands_own_mistakes():
    for preset, system in (("demo", "selva"), ("demo_mmaudio", "mmaudio")):
        result = CliRunner().invoke(main, ["--preset", preset, "--out", "x"])
        assert result.exit_code == 2
        assert result.stderr.splitlines() == [
            LICENCE_NOTICES[system],
            f"error: preset {preset} has no official weights: there is nothing to fetch",
        ]
    assert CliRunner().invoke(main, ["--preset", "tiny", "--out", "x"]).exit_code == 2


COMMAND = "import sys; sys.path.append('support'); import test_ref_fetch; test_ref_fetch.run_command()"


def run_command() -> None:
    """Runs the command with the small table in a separate process."""
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    CHECKPOINTS["small_16k"] = TABLE
    main()


def start(hub: SmallHub, tmp_path: Path, *options: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "--preset", "small_16k", "--out", str(tmp_path / "out"), *options],
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), **env},
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.02)
    pytest.fail("waited for ten seconds")


@needs_posix
def test_the_command_interrupted_then_run_again(hub, tmp_path):
    hub.stall = threading.Event()
    process = start(hub, tmp_path)
    assert hub.stall.wait(30)
    until(lambda: sum(path.stat().st_size for path in (tmp_path / "out").rglob("*")) > 95_000)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.startswith(LICENCE_NOTICES["selva"])
    assert errors.endswith(
        "notice: run the same command again to resume\nerror: interrupted: no partial file was left\n"
    )
    assert len(listing(tmp_path / "out")) == 1  # the partial download
    hub.stall = None
    process = start(hub, tmp_path, "--json")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert [one["file"] for one in json.loads(output)["files"]] == [HERE[2], *HERE[:2]]
    assert hub.gets("jnwnlee/SelVA/ext_weights/v1-16.pth") == [None, "bytes=100000-"]


def test_the_command_offline_lists_what_is_missing(hub, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/v1-16.pth").write_bytes(FILES["jnwnlee/SelVA/ext_weights/v1-16.pth"])
    process = start(hub, tmp_path, HF_HUB_OFFLINE="1")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "HF_HUB_OFFLINE" in errors.splitlines()[-1]
    assert errors.splitlines()[-1].endswith(
        f"missing from {tmp_path / 'out'} and the hub's cache: {HERE[0]}, {HERE[1]}"
    )
    assert hub.asked == []
    assert listing(tmp_path / "out") == [RECORD, "v1-16.pth", "v1-16.safetensors"]
