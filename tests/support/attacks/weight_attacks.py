"""Attacks on checkpoints that `selva-fetch` recorded, and on `selva-fetch` by a hub."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import disable_progress_bars, logging
from safetensors.torch import save_file
from small_hub import FILES, HERE, TOWER_TENSORS, VAE_TENSORS, VOCABULARY, SmallHub, serving_small_preset

from attacks.damage import VALUES, attacks, changed, damaged, places, same
from selva_ref.errors import CheckpointError
from selva_ref.weights.checkpoints import RECORD, file_sha256, read_checkpoint
from selva_ref.weights.fetch import FetchError, fetch

TENSORS = {"a.weight": torch.arange(600.0).reshape(20, 30), "a.bias": torch.arange(20.0), "count": torch.tensor(7)}


def attack_checkpoints(count: int, folder: Path, seed: int = 0, first: int = 0) -> int:
    """Damages a recorded file, or the record, as text and value by value."""
    folder.mkdir(exist_ok=True)
    names = ("x.safetensors", "x.pth")
    save_file(TENSORS, folder / names[0])
    torch.save(TENSORS, folder / names[1])
    whole = {name: (folder / name).read_bytes() for name in names}
    record = {"files": {name: {"sha256": file_sha256(folder / name), "verified": True} for name in names}}
    path = folder / RECORD

    def attack(rng: random.Random) -> None:
        name, kind = rng.choice(names), rng.randrange(4)
        text = json.dumps(record).encode()
        if kind < 2:
            (folder / name).write_bytes(damaged(rng, whole[name]))
        elif kind == 2:
            text = rng.choice([damaged(rng, text), b"[" * 100_000])
        else:
            text = json.dumps(changed(record, rng.choice(places(record)), lambda _: rng.choice(VALUES))).encode()
        path.write_bytes(text)
        try:
            assert same(read_checkpoint(folder / name), TENSORS), "other tensors"
        finally:
            (folder / name).write_bytes(whole[name])

    return attacks(count, seed, first, attack, CheckpointError)


_HEADERS = ("X-Linked-Size", "X-Linked-ETag", "ETag", "Location", "X-Repo-Commit", "Content-Encoding")
_TEXTS = (
    None,
    "",
    "x",
    "-1",
    "0",
    "7",
    "1e9",
    str(1 << 50),
    "9" * 400,
    "a" * 40,
    "b" * 64,
    '"',
    "../..",
    "//",
    "/",
    "http:",
)
_PLACES = (
    "http://[::1",
    "http://x:port/",
    "http://127.0.0.1:1/",
    "file:///etc/hostname",
    "\\\\x",
    "http://a\xa0b",
    "?" * 9000,
)


def attack_fetch(count: int, folder: Path, seed: int = 0, first: int = 0) -> int:
    """Lets a hub send damaged, too much or too little content, or other headers or status codes."""
    disable_progress_bars()
    logging.set_verbosity_error()

    with pytest.MonkeyPatch.context() as patch, serving_small_preset(patch) as hub:

        def attack(rng: random.Random) -> None:
            _disarm(hub)
            shutil.rmtree(folder, ignore_errors=True)
            _arm(hub, rng, rng.choice([name for name in FILES if "teacher" not in name]))
            fetched = fetch("small_16k", folder / "out", endpoint=hub.url, cache_dir=folder / "cache")
            assert not any(hub.gets(name) for name in hub.endless), "a content without end was taken"
            assert [one.file for one in fetched] == [HERE[2], *HERE[:2]], "other files"
            for one in fetched:
                assert not one.verified or _is_right(folder / "out" / one.file), f"{one.file}: another content"

        return attacks(count, seed, first, attack, (FetchError, CheckpointError))


def _is_right(path: Path) -> bool:
    if path.suffix == ".json":
        return path.read_bytes() == VOCABULARY
    wanted = VAE_TENSORS if path.parent.name == "out" else {"ln_final.weight": TOWER_TENSORS["ln_final.weight"]}
    return same(read_checkpoint(path), wanted)


def _disarm(hub: SmallHub) -> None:
    hub.files, hub.cuts, hub.down, hub.sent_bytes = dict(FILES), [], False, 0
    hub.endless.clear()
    hub.answers.clear()
    hub.asked.clear()


def _arm(hub: SmallHub, rng: random.Random, name: str) -> None:
    kind = rng.randrange(5)
    if kind == 0:
        hub.files[name] = damaged(rng, FILES[name])
    elif kind == 1:
        hub.endless.add(name)
    elif kind == 2:
        hub.cuts += [rng.randrange(len(FILES[name])) for _ in range(rng.randrange(1, 9))]
    else:
        status = rng.choice([200, 204, 301, 302, 307, 404, 416, 429, 500, 599])
        headers = {header: rng.choice(_TEXTS + _PLACES) for header in rng.sample(_HEADERS, rng.randrange(1, 4))}
        hub.answers[name] = (status if rng.random() < 0.5 else 302, headers)
