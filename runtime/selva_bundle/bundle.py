"""A bundle folder that is trusted only as far as its hashes go.

Opening checks what costs little: the manifest, and that the folder holds the listed files, at their sizes, and no
others. Each file's SHA-256 is checked when it is loaded, because a bundle has gigabytes and a run may need only some
of them, and what is loaded is what was hashed. `engines/` has its own manifest and is left to the backends that use it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selva_bundle.errors import BundleError
from selva_bundle.manifest import Graph, Manifest, read_manifest

_ENGINES = "engines"
_MAX_READ_BYTES = 1 << 31
"""Where a protobuf ends, and with it an ONNX file."""
_FILE_MANAGER_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}


class Bundle:
    """An opened bundle. `path` is its resolved folder, `manifest` what it says of itself."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._verified: dict[str, tuple[int, ...]] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read and check a bundle folder; raises `BundleError` that names the file and the mend."""
        folder = Path(path)
        how = "make a bundle with selva-export"
        try:
            root = folder.resolve(strict=True)
            is_folder = root.is_dir()
            manifest_path = (root / "manifest.json").resolve()
            has_manifest = manifest_path.is_file()
        except (OSError, RuntimeError, ValueError) as error:
            raise BundleError(f"bundle {str(folder)!r} is not there; {how}") from error
        if not is_folder:
            raise BundleError(f"bundle {str(folder)!r} is not a folder; {how}")
        if not has_manifest:
            raise BundleError(f"bundle {str(folder)!r} has no manifest.json, so it is no bundle; {how}")
        if not manifest_path.is_relative_to(root):
            raise BundleError(f"{root / 'manifest.json'} points outside of the bundle; copy the bundle with its files")
        manifest = read_manifest(root / "manifest.json")
        _check_contents(root, manifest)
        return cls(root, manifest)

    def verified(self, name: str) -> Path:
        """The path of a listed file, its hash checked unless it has been since it last changed."""
        path = self.path / name
        try:
            if self._verified.get(name) != _signature(path.stat()):
                with path.open("rb") as file:
                    signature = _signature(os.fstat(file.fileno()))
                    self._check_hash(name, hashlib.file_digest(file, "sha256").hexdigest())
                    unchanged = _signature(os.fstat(file.fileno())) == signature
                if not unchanged:
                    raise BundleError(f"{path} was written to while it was read; export the bundle again")
                self._verified[name] = signature
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}; export the bundle again") from error
        return path

    def read(self, name: str) -> bytes:
        """The content of a listed file: the very bytes that were hashed."""
        path, size = self.path / name, self.manifest.files[name].bytes
        if size > _MAX_READ_BYTES:
            raise BundleError(f"{path} has {size} bytes, more than {_MAX_READ_BYTES}; export the bundle again")
        try:
            with path.open("rb") as file:
                content = file.read(size + 1)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}; export the bundle again") from error
        self._check_hash(name, hashlib.sha256(content).hexdigest())
        return content

    @contextmanager
    def loading(self, graph: str) -> Iterator[bytes | Path]:
        """What a library loads `graph` from: the bytes that were hashed, or its path where its weights lie beside it.

        Libraries map those weights, because they are too large to be held twice. So that nothing but what was hashed
        is used, the files must still be the same ones, unwritten, when the block ends.

        Raises:
            BundleError: a file was altered, before or meanwhile, or the graph refers to a file that is not its own.
        """
        entry = self.manifest.graphs[graph]
        model = self.read(entry.file)
        self._check_references(entry, model)
        if not entry.data:
            yield model
            return
        names = (entry.file, *entry.data)
        paths = [self.verified(name) for name in names]
        yield paths[0]
        for name, path in zip(names, paths, strict=True):
            if _signature(path.stat()) != self._verified[name]:
                raise BundleError(f"{path} was replaced while it was loaded; export the bundle again")

    def _check_hash(self, name: str, found: str) -> None:
        if found != self.manifest.files[name].sha256:
            raise BundleError(
                f"{self.path / name} was altered: its hash is not the manifest's; export the bundle again"
            )

    def _check_references(self, graph: Graph, model: bytes) -> None:
        """An ONNX file names the files that hold its weights: whatever encoding it uses, their names stand in it."""
        lowered = model.lower()
        for name in self.manifest.files:
            if name not in (graph.file, *graph.data) and Path(name).name.lower().encode() in lowered:
                raise BundleError(
                    f"{self.path / graph.file} refers to {name}, which the manifest does not list as its data; "
                    "export the bundle again"
                )

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


def _signature(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is replaced or written to. Nobody can set the change time back."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
