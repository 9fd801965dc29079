"""A bundle folder that is trusted only as far as its hashes go.

Opening checks what costs little: the manifest, and that the folder holds the listed files, at their sizes, and no
others. Each file's SHA-256 is checked just before its first use, because a bundle has gigabytes and a run may need
only some of them. `engines/` has its own manifest and is left to the backends that use it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from .errors import BundleError
from .manifest import Manifest, read_manifest

_ENGINES = "engines"
_FILE_MANAGER_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}


class Bundle:
    """An opened bundle. `path` is its resolved folder, `manifest` what it says of itself."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._verified: dict[str, tuple[int, int, int]] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read and check a bundle folder; raises `BundleError` that names the file and the mend."""
        folder = Path(path)
        how = "make a bundle with selva-export"
        try:
            root = folder.resolve(strict=True)
            is_folder = root.is_dir()
            has_manifest = (root / "manifest.json").is_file()
        except (OSError, RuntimeError, ValueError) as error:
            raise BundleError(f"bundle {str(folder)!r} is not there; {how}") from error
        if not is_folder:
            raise BundleError(f"bundle {str(folder)!r} is not a folder; {how}")
        if not has_manifest:
            raise BundleError(f"bundle {str(folder)!r} has no manifest.json, so it is no bundle; {how}")
        manifest = read_manifest(root / "manifest.json")
        _check_contents(root, manifest)
        return cls(root, manifest)

    def verified(self, name: str) -> Path:
        """The path of a listed file, its hash checked unless it has been since it last changed."""
        path = self.path / name
        entry = self.manifest.files[name]
        try:
            status = path.stat()
            signature = (status.st_ino, status.st_size, status.st_mtime_ns)
            if self._verified.get(name) != signature:
                if status.st_size != entry.bytes or _sha256(path) != entry.sha256:
                    raise BundleError(f"{path} was altered: its hash is not the manifest's; export the bundle again")
                self._verified[name] = signature
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}; export the bundle again") from error
        return path

    def graph_path(self, graph: str) -> Path:
        """The ONNX file of a graph, it and the files that hold its weights verified."""
        entry = self.manifest.graphs[graph]
        for name in entry.data:
            self.verified(name)
        return self.verified(entry.file)

    def graph_hash(self, graph: str) -> str:
        """One SHA-256 for a graph and its weights."""
        entry = self.manifest.graphs[graph]
        hashes = [self.manifest.files[name].sha256 for name in (entry.file, *entry.data)]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _check_contents(root: Path, manifest: Manifest) -> None:
    found = set()
    for path in _walk(root):
        name = path.relative_to(root).as_posix()
        if name != "manifest.json" and path.name not in _FILE_MANAGER_LITTER:
            _check_file(root, path, name, manifest)
            found.add(name)
    if missing := sorted(set(manifest.files) - found):
        raise BundleError(f"{root / missing[0]} is missing; copy the bundle again or export it again")


def _check_file(root: Path, path: Path, name: str, manifest: Manifest) -> None:
    if name not in manifest.files:
        raise BundleError(f"{path} is not part of the bundle; remove it or export the bundle again")
    try:
        if not path.resolve(strict=True).is_relative_to(root):
            raise BundleError(f"{path} points outside of the bundle; copy the bundle with its files")
        status = path.stat()
    except (OSError, RuntimeError) as error:
        raise BundleError(f"{path} cannot be read; copy the bundle again") from error
    expected = manifest.files[name].bytes
    if not stat.S_ISREG(status.st_mode) or status.st_size != expected:
        raise BundleError(f"{path} has {status.st_size} bytes, not {expected}; copy the bundle again")


def _walk(root: Path) -> Iterator[Path]:
    """Every file below `root` but those under engines/. A linked folder counts as a file, and so as a stranger."""

    def unreadable(error: OSError) -> None:
        raise BundleError(f"{error.filename} cannot be read: {error.strerror}") from error

    for folder, folders, files in os.walk(root, onerror=unreadable):
        here = Path(folder)
        if here == root and _ENGINES in folders:
            folders.remove(_ENGINES)
        yield from (here / name for name in files)
        yield from (here / name for name in folders if (here / name).is_symlink())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
