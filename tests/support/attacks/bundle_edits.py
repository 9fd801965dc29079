"""Damage to a copy of a bundle: to its manifest, to its files, and to its files while they are in use."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from attacks.json_edits import Document, Place, edited, nudged

HARMLESS, ANOTHER_SOUND, USELESS = "the same sound", "any whole sound", "an error"
"""The best possible outcome of an edit; one of our errors is always acceptable."""

_NUMBERS = ("sequence", "defaults", "text")
"""Sections of the manifest whose values affect the computation."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What was done to a bundle, and the outcomes that are acceptable."""

    what: str
    allows: str
    swap: dict[str, Any] | None = None
    """An edit to make while the bundle is in use; see `bundle_worker.Swap`."""


def copy_bundle(base: Path, to: Path) -> Path:
    """Makes a copy that shares its files with `base` until `write` edits them."""
    return Path(shutil.copytree(base, to, copy_function=os.link))


def write(path: Path, data: bytes) -> None:
    """Writes new content to a new file, which is not shared."""
    path.unlink()
    path.write_bytes(data)


def edit_manifest(bundle: Path, random: Random) -> Edit:
    """Replaces any value of the manifest."""
    manifest = _manifest(bundle)
    names = (*manifest["files"], *manifest["graphs"])
    document = edited(manifest, random, within=("graphs", *_NUMBERS), extra=names)
    write(bundle / "manifest.json", document.text())
    return Edit(what=f"manifest: {_text(document)}", allows=ANOTHER_SOUND if _matters(document.touched) else HARMLESS)


def edit_numbers(bundle: Path, random: Random) -> Edit:
    """Replaces a number that the runtime computes with by a plausible one."""
    document = nudged(_manifest(bundle), random, within=_NUMBERS)
    write(bundle / "manifest.json", document.text())
    return Edit(what=f"manifest: {_text(document)}", allows=ANOTHER_SOUND)


def edit_ports(bundle: Path, random: Random) -> Edit:
    """Makes the manifest describe other ports or other sizes than the graphs have."""
    manifest = _manifest(bundle)
    graph, side = random.choice(list(manifest["graphs"])), random.choice(("inputs", "outputs"))
    ports = manifest["graphs"][graph][side]
    number = random.randrange(len(ports))
    port = ports[number]
    shape = port["shape"]
    axis = random.randrange(len(shape))

    def sizes(*values: Any) -> Callable[[], None]:
        return lambda: shape.__setitem__(axis, random.choice(values))

    changes: dict[str, Callable[[], None]] = {
        "added": lambda: ports.append({"name": "more", "dtype": "float32", "shape": [1]}),
        "removed": lambda: ports.pop(number),
        "doubled": lambda: ports.append(dict(port)),
        "renamed": lambda: port.update(name=random.choice(("other", "", "text", "sync", port["name"] + "\0"))),
        "one axis more": lambda: shape.insert(axis, random.choice((1, "stems"))),
        "one axis less": lambda: shape.pop(axis),
        "no axes": shape.clear,
        "another axis": sizes(0, 1, 7, 2**40, "other", "3*stems", "*", "x*stems", "1.5*stems", "²*stems", "stems*2"),
        "another type": lambda: port.update(
            dtype=random.choice(("float16", "float64", "int32", "uint9", "O", "f4,i4"))
        ),
    }
    change = random.choice(list(changes))
    changes[change]()
    write(bundle / "manifest.json", json.dumps(manifest).encode())
    return Edit(what=f"manifest: graphs.{graph}.{side}.{number} ({port['name']!r}) {change}: {port}", allows=HARMLESS)


def damage_file(bundle: Path, random: Random) -> Edit:
    """Flips bits of a file or cuts off its end, without updating the manifest."""
    name = random.choice(list(_manifest(bundle)["files"]))
    data = (bundle / name).read_bytes()
    how, damaged = _damaged(data, random, same_size=random.random() < 0.7)
    write(bundle / name, damaged)
    return Edit(what=f"{name}: {how}", allows=USELESS)


def damage_manifest(bundle: Path, random: Random) -> Edit:
    """Flips or cuts the manifest's own bytes."""
    how, damaged = _damaged((bundle / "manifest.json").read_bytes(), random)
    write(bundle / "manifest.json", damaged)
    return Edit(what=f"manifest.json: {how}", allows=ANOTHER_SOUND)


def damage_graph(bundle: Path, random: Random) -> Edit:
    """Damages a graph and updates its hash in the manifest, so that ONNX Runtime gets the damaged file."""
    name = random.choice([name for name in _manifest(bundle)["files"] if name.endswith(".onnx")])
    how, damaged = _damaged((bundle / name).read_bytes(), random)
    relist(bundle, name, damaged)
    return Edit(what=f"{name}, its hash listed: {how}", allows=ANOTHER_SOUND)


def edit_tokenizer(bundle: Path, random: Random) -> Edit:
    """Edits a tokenizer and updates its hash in the manifest, so that the tokenizers library gets the edited file."""
    name = random.choice(("tokenizers/t5.json", "tokenizers/clip.json"))
    data = (bundle / name).read_bytes()
    if random.random() < 0.2:
        how, damaged = _damaged(data, random)
    else:
        document = edited(json.loads(data), random)
        how, damaged = _text(document), document.text()
    relist(bundle, name, damaged)
    return Edit(what=f"{name}, its hash listed: {how}", allows=ANOTHER_SOUND)


def swap_files(bundle: Path, random: Random) -> Edit:
    """Swaps two files in the folder, in the manifest or in both."""
    manifest = _manifest(bundle)
    one, other = random.sample(list(manifest["files"]), 2)
    moved, listed = random.choice(((True, False), (False, True), (True, True)))
    if moved:
        (bundle / one).rename(bundle / "aside")
        (bundle / other).rename(bundle / one)
        (bundle / "aside").rename(bundle / other)
    if listed:
        files = manifest["files"]
        files[one], files[other] = files[other], files[one]
        write(bundle / "manifest.json", json.dumps(manifest).encode())
    return Edit(what=f"{one} and {other} swapped: moved {moved}, entries {listed}", allows=USELESS)


def strange_file(bundle: Path, random: Random) -> Edit:
    """Makes something in the folder wrong: a file missing, an extra one, a folder, a link, a pipe."""
    name = random.choice([*_manifest(bundle)["files"], "manifest.json", "graphs"])
    path, outside = bundle / name, bundle.with_name(f"{bundle.name}-outside")
    change = random.choice(list(_STRANGE))
    _STRANGE[change](path, outside)
    return Edit(what=f"{name}: {change}", allows=USELESS)


def swap_in_use(bundle: Path, random: Random) -> Edit:
    """Changes a file soon after its hash was computed from the right content."""
    name = random.choice(list(_manifest(bundle)["files"]))
    data = (bundle / name).read_bytes()
    write(bundle / name, data)  # no longer shared, because it may be overwritten
    how, damaged = _damaged(data, random, same_size=True)
    other = bundle.with_name(f"{bundle.name}-other")
    other.write_bytes(damaged)
    swap = {
        "file": name,
        "with": str(other),
        "when": random.choice(("opened", "encoded", "generated", "read", "read", "read")),
        "delay_s": random.choice((0.0, random.uniform(0, 0.003), random.uniform(0, 0.03))),
        "in_place": random.random() < 0.5,
        "same_times": random.random() < 0.5,
    }
    settings = ", ".join(f"{key} {value}" for key, value in swap.items() if key not in ("file", "with"))
    return Edit(what=f"{name}: {how}; {settings}", allows=HARMLESS, swap=swap)


def relist(bundle: Path, name: str, data: bytes) -> None:
    """Writes a file and updates its entry in the manifest."""
    write(bundle / name, data)
    manifest = _manifest(bundle)
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    write(bundle / "manifest.json", json.dumps(manifest).encode())


def _manifest(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "manifest.json").read_bytes()))


def _text(document: Document) -> str:
    return "; ".join(document.done)


def _matters(touched: list[Place]) -> bool:
    """Whether the edit may change the sound of a session."""
    return any(len(place) <= 1 or place[0] in _NUMBERS or place[-1] == "file" for place in touched)


def _damaged(data: bytes, random: Random, *, same_size: bool = False) -> tuple[str, bytes]:
    """Flips bits or changes the end. A graph's structure is at both ends of its file, with the weights between."""
    if not same_size and random.random() < 0.3:
        size = random.choice((0, 1, random.randrange(len(data)), len(data) - 1))
        how, changed = random.choice(((f"cut to {size} bytes", data[:size]), ("twice", data + data)))
        return how, changed
    low, high = random.choice(((0, len(data)), (0, len(data) // 8), (max(0, len(data) - 4000), len(data))))
    damaged, flips = bytearray(data), []
    for _ in range(random.choice((1, 1, 2, 8))):
        place, bit = random.randrange(low, high), random.randrange(8)
        damaged[place] ^= 1 << bit
        flips.append(f"{place}.{bit}")
    return f"bits flipped {' '.join(flips)}", bytes(damaged)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _linked_out(path: Path, outside: Path) -> None:
    path.rename(outside)
    path.symlink_to(outside)


def _instead(make: Callable[[Path], Any]) -> Callable[[Path, Path], None]:
    def change(path: Path, _outside: Path) -> None:
        _remove(path)
        make(path)

    return change


def _beside(name: str | bytes, make: Callable[[Path], Any] = Path.touch) -> Callable[[Path, Path], None]:
    return lambda path, _outside: make(Path(os.fsdecode(os.path.join(os.fsencode(path.parent), os.fsencode(name)))))


_STRANGE: dict[str, Callable[[Path, Path], None]] = {
    "missing": lambda path, _: _remove(path),
    "a folder": _instead(Path.mkdir),
    "empty": _instead(Path.touch),
    "a pipe": _instead(os.mkfifo),
    "a link to itself": _instead(lambda path: path.symlink_to(path)),
    "a link to nothing": _instead(lambda path: path.symlink_to("nothing")),
    "a link to /dev/zero": _instead(lambda path: path.symlink_to("/dev/zero")),
    "a link to the root folder": _instead(lambda path: path.symlink_to("/")),
    "moved out and linked": _linked_out,
    "a stranger beside it": _beside("stranger"),
    "a stranger of two lines": _beside("two\nlines"),
    "a stranger that is not UTF-8": _beside(b"\xff\xfe.onnx"),
    "a stranger with a long name": _beside("x" * 255),
    "a pipe beside it": _beside("pipe", os.mkfifo),
    "a link to a folder beside it": _beside("link", lambda path: path.symlink_to("/etc")),
}
