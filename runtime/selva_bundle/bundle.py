"""A bundle folder, trusted only as far as its hashes go.

Opening a bundle runs the cheap checks: the manifest is valid, and the folder holds exactly the listed files at their
listed sizes. A file's SHA-256 is checked when the file is loaded, because a bundle has gigabytes and a run may need
only some of them. The loaded bytes are the hashed bytes. `engines/` has its own manifest, which the backends check.
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
"""Size limit of a protobuf, and so of an ONNX file."""
_FILE_MANAGER_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}


class Bundle:
    """An opened bundle. `path` is its resolved folder, `manifest` its parsed manifest.json."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._verified: dict[str, tuple[int, ...]] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read and check a bundle folder.

        Raises:
            BundleError: the bundle is missing, damaged or altered. The message names the file and the fix.
        """
        folder = Path(path)
        how = "make a bundle with selva-export"
        try:
            root = folder.resolve(strict=True)
            is_folder = root.is_dir()
            manifest_path = (root / "manifest.json").resolve()
            has_manifest = manifest_path.is_file()
        except (OSError, RuntimeError, ValueError) as error:
            raise BundleError(f"there is no bundle {str(folder)!r}; {how}") from error
        if not is_folder:
            raise BundleError(f"bundle {str(folder)!r} is not a folder; {how}")
        if not has_manifest:
            raise BundleError(f"bundle {str(folder)!r} has no manifest.json, so it is not a bundle; {how}")
        if not manifest_path.is_relative_to(root):
            raise BundleError(f"{root / 'manifest.json'} points outside the bundle; copy the bundle with its files")
        manifest = read_manifest(root / "manifest.json")
        _check_contents(root, manifest)
        return cls(root, manifest)

    def verified_path(self, name: str) -> Path:
        """Check the hash of a listed file, unless it is unchanged since the last check. Return its path.

        Raises:
            BundleError: the file cannot be read, or its hash does not match the manifest.
        """
        path = self.path / name
        try:
            if self._verified.get(name) != _signature(path.stat()):
                with path.open("rb") as file:
                    signature = _signature(os.fstat(file.fileno()))
                    self._check_hash(name, hashlib.file_digest(file, "sha256").hexdigest())
                    unchanged = _signature(os.fstat(file.fileno())) == signature
                if not unchanged:
                    raise BundleError(f"{path} changed while it was being read; export the bundle again")
                self._verified[name] = signature
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}; export the bundle again") from error
        return path

    def read(self, name: str) -> bytes:
        """Read a listed file and return the bytes that were hashed.

        Raises:
            BundleError: the file cannot be read, is larger than 2 GiB, or its hash does not match the manifest.
        """
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

    def onnx_path(self, graph: str) -> Path:
        """Where a graph's ONNX file is: for messages, for nothing has been checked."""
        return self.path / self.manifest.graphs[graph].file

    @contextmanager
    def open_graph(self, graph: str) -> Iterator[bytes | Path]:
        """Yield what a library loads `graph` from: the hashed bytes, or a path if the weights are in separate files.

        Libraries map those files, because the weights are too large to hold twice. When the block ends, the files must
        still be the ones that were hashed, with no write since.

        Raises:
            BundleError: a file was altered before or during the block, or the graph refers to a file that it does not
                list.
        """
        entry = self.manifest.graphs[graph]
        if entry.data:
            with self.verified_graph(graph) as path:
                yield path
        else:
            model = self.read(entry.file)
            self._check_references(entry, model)
            yield model

    @contextmanager
    def verified_graph(self, graph: str) -> Iterator[Path]:
        """Yield the path of a graph's ONNX file. It and its weights are those that were hashed until the block ends.

        Raises:
            BundleError: as `open_graph` does.
        """
        entry = self.manifest.graphs[graph]
        self._check_references(entry, self.read(entry.file))
        names = (entry.file, *entry.data)
        paths = [self.verified_path(name) for name in names]
        yield paths[0]
        for name, path in zip(names, paths, strict=True):
            if _signature(path.stat()) != self._verified[name]:
                raise BundleError(f"{path} changed while it was being loaded; export the bundle again")

    def _check_hash(self, name: str, found: str) -> None:
        if found != self.manifest.files[name].sha256:
            raise BundleError(
                f"{self.path / name} was altered: its hash does not match the manifest; export the bundle again"
            )

    def _check_references(self, graph: Graph, model: bytes) -> None:
        """Search an ONNX file for the names of files that are not its own. Weight files are named in plain bytes."""
        lowered = model.lower()
        for name in self.manifest.files:
            if name not in (graph.file, *graph.data) and Path(name).name.lower().encode() in lowered:
                raise BundleError(
                    f"{self.path / graph.file} refers to {name}, which the manifest does not list as its data; "
                    "export the bundle again"
                )

    def graph_hash(self, graph: str) -> str:
        """Return one hexadecimal SHA-256 for a graph and its weights."""
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
            raise BundleError(f"{path} points outside the bundle; copy the bundle with its files")
        status = path.stat()
    except (OSError, RuntimeError) as error:
        raise BundleError(f"{path} cannot be read; copy the bundle again") from error
    expected = manifest.files[name].bytes
    if not stat.S_ISREG(status.st_mode) or status.st_size != expected:
        raise BundleError(f"{path} has {status.st_size} bytes, not {expected}; copy the bundle again")


def _walk(root: Path) -> Iterator[Path]:
    """Yield every file below `root` except those in engines/. A linked folder counts as a file that is not listed."""

    def unreadable(error: OSError) -> None:
        raise BundleError(f"{error.filename} cannot be read: {error.strerror}") from error

    for folder, folders, files in os.walk(root, onerror=unreadable):
        here = Path(folder)
        if here == root and _ENGINES in folders:
            folders.remove(_ENGINES)
        yield from (here / name for name in files)
        yield from (here / name for name in folders if (here / name).is_symlink())


def _signature(status: os.stat_result) -> tuple[int, ...]:
    """Return the fields that change when a file is replaced or written to. The change time cannot be set back."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
