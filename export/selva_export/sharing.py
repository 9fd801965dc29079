"""Store what bundles in one folder have in common only once, as hard links.

A SelVA and an MMAudio bundle of the same size have the same text tower, decoder and usually backbone: gigabytes. A
bundle stays complete by itself, can be moved or removed, and its files are never written to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from selva_bundle.errors import BundleError
from selva_bundle.manifest import FileEntry, read_manifest
from selva_ref.weights.checkpoints import file_sha256


def share_files(bundle: Path, folder: Path) -> dict[str, int]:
    """Replace files of the new `bundle` by links to equal files of the bundles in `folder`.

    Files are equal if their hashes are, computed now. Where the file system has no hard links, nothing is shared.
    Returns the bytes that each of the other bundles shares, by name.
    """
    others = {entry: path for path, entry in _listed(folder, without=bundle)}
    shared: dict[str, int] = {}
    for path, entry in _listed(bundle.parent, only=bundle):
        other = others.get(entry)
        if other is not None and _link(other, path, entry):
            owner = other.relative_to(folder).parts[0]
            shared[owner] = shared.get(owner, 0) + entry.bytes
    return shared


def _listed(folder: Path, *, only: Path | None = None, without: Path | None = None) -> Iterator[tuple[Path, FileEntry]]:
    """Every file of the bundles in a folder, with its entry in the manifest."""
    for bundle in sorted(folder.iterdir()) if only is None else [only]:
        if bundle != without and (bundle / "manifest.json").is_file() and not bundle.is_symlink():
            with suppress(BundleError):
                for name, entry in read_manifest(bundle / "manifest.json").files.items():
                    yield bundle / name, entry


def _link(other: Path, path: Path, entry: FileEntry) -> bool:
    """Replace `path` by a link to `other`. Returns whether that was possible."""
    temporary = path.with_name(f".{path.name}.link-{os.getpid()}")
    try:
        if other.stat().st_size != entry.bytes or file_sha256(other) != entry.sha256:
            return False
        os.link(other, temporary, follow_symlinks=False)
        temporary.replace(path)
    except OSError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True
