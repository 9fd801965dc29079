"""Downloads one file from a model hub: complete and checked, or one clear error.

huggingface_hub's own download forgets a partial file when the process ends, so on a slow line a file of gigabytes may
never finish. So we keep the partial file under the user's folder, and the next run resumes it. huggingface_hub still
does the rest: asking the hub, transferring the bytes, tokens, proxies, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import HfFileMetadata, http_get
from huggingface_hub.utils import build_hf_headers, httpx

from selva_ref.weights.published import HubFile

if TYPE_CHECKING:
    from typing_extensions import Buffer

RETRY_DELAYS_S = (1.0, 4.0, 15.0)
_PERMANENT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
_CHECK_HUB = "check HF_ENDPOINT and the proxy settings"


class FetchError(OSError):
    """A file that could not be downloaded: refused by the hub, wrong content, disk full, or no permission."""


class UnreachableError(FetchError):
    """The hub cannot be reached, and the file is not in its cache either."""


@dataclass(frozen=True, kw_only=True)
class HubCopy:
    """A checked file, its source and its hashes."""

    path: Path
    commit: str
    md5: str
    sha256: str
    verified: bool
    """Whether a hash from its publisher or from the hub confirmed it."""
    downloaded: bool
    """True: our own partial-download file, to be removed after use; False: it belongs to the hub's cache."""


@dataclass(kw_only=True)
class Hub:
    """Gets files from the hub or its cache. Calls `say` with one line for each thing that happens."""

    partials: Path
    say: Callable[[str], None]
    endpoint: str | None = None
    cache_dir: str | Path | None = None
    reachable: bool = True
    """Set to False at the first failure to reach the hub, so that the other files do not wait for it again."""

    def get(self, repo: str, file: HubFile, revision: str) -> HubCopy:
        """Returns the file from the hub's cache, or downloads it.

        Raises:
            FetchError: it could not be downloaded.
        """
        cached = try_to_load_from_cache(repo, file.path, cache_dir=self.cache_dir, revision=revision)
        if isinstance(cached, str):
            path = Path(cached)
            commit = path.parents[len(PurePosixPath(file.path).parts) - 1].name
            stated = Path(os.readlink(path)).name if path.is_symlink() else ""  # a blob's name is its hash
            return _verified_copy(path, file, stated, repo, commit, downloaded=False)
        if not self.reachable:
            raise UnreachableError("the hub cannot be reached")
        return self._download(repo, file, revision)

    def _download(self, repo: str, file: HubFile, revision: str) -> HubCopy:
        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                url = hf_hub_url(repo, file.path, revision=revision, endpoint=self.endpoint)
                metadata = get_hf_file_metadata(url, endpoint=self.endpoint)
                return self._receive(repo, file, metadata)
            except FetchError:
                raise
            except (ValueError, httpx.InvalidURL) as error:  # a malformed redirect, or a size too large for the client
                raise FetchError(f"{repo}/{file.path}: invalid answer from the hub: {_one_line(error)}") from error
            except (OSError, httpx.HTTPError) as error:
                reason = f"{repo}/{file.path}: {_one_line(error)}"
                if isinstance(error, OfflineModeIsEnabled):
                    self.reachable = False
                    raise UnreachableError("offline mode is on (HF_HUB_OFFLINE)") from error
                if _is_permanent(error):
                    raise FetchError(reason) from error
                if delay_s is None:
                    self.reachable = False
                    raise UnreachableError(reason) from error
                self.say(f"{reason}; trying again in {delay_s:.0f} s")
                time.sleep(delay_s)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _receive(self, repo: str, file: HubFile, metadata: HfFileMetadata) -> HubCopy:
        """Downloads the missing rest of the file that the hub describes, and checks the whole file."""
        commit, etag, size = metadata.commit_hash, metadata.etag, metadata.size
        if not commit or not etag:
            raise FetchError(f"{repo}/{file.path}: the answer does not come from a model hub; {_CHECK_HUB}")
        if size is None or size < 0:
            raise FetchError(f"{repo}/{file.path}: the hub does not give its size; {_CHECK_HUB}")
        key = hashlib.sha256(f"{repo}/{file.path}@{etag}".encode()).hexdigest()[:12]
        path = self.partials / f"{key}-{PurePosixPath(file.path).name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        present = path.stat().st_size if path.exists() else 0
        if present > size:  # two simultaneous runs wrote it
            path.unlink()
            present = 0
        self._check_free_space(path, size, present)
        self.say(f"{file.path} from {repo}" + _size_text(size, present))
        with _PartialFile(path, size) as partial:
            http_get(
                hf_hub_url(repo, file.path, revision=commit, endpoint=self.endpoint),
                partial,
                resume_size=present,
                headers=build_hf_headers(library_name="selva-deploy"),
                expected_size=size,
                displayed_filename=file.path,
            )
        return _verified_copy(path, file, etag, repo, commit, downloaded=True)

    def _check_free_space(self, path: Path, size: int, present: int) -> None:
        free = shutil.disk_usage(path.parent).free
        if size - present > free:
            raise FetchError(f"{path.parent}: no space for {path.name}: {size - present} bytes needed, {free} free")


class _PartialFile(io.BufferedWriter):
    """A partial file that is appended to, up to `size` bytes."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(io.FileIO(path, "ab"))
        self._path, self._size = path, size

    def write(self, content: Buffer, /) -> int:
        if self.tell() + memoryview(content).nbytes > self._size:
            self._path.unlink()
            raise FetchError(
                f"{self._path.name}: the hub sent more than the {self._size} bytes that it announced; {_CHECK_HUB}"
            )
        return super().write(content)


def check_content(path: Path, file: HubFile, stated: str = "") -> tuple[str, str, bool]:
    """Returns the MD5 and SHA-256 of `path`, and whether there was an expected hash.

    The expected hashes are the publisher's, in `file`. Without them it is the one that the hub states (its ETag: the
    SHA-256 of a large file, the Git blob hash of a small one). The file stays if they differ.

    Raises:
        FetchError: a hash is not the expected one.
    """
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(1 << 20):
            for digest in (md5, sha256, blob):
                digest.update(chunk)
    expected = [("MD5", file.md5, md5), ("SHA-256", file.sha256, sha256)]
    if file.md5 is None and file.sha256 is None:
        if re.fullmatch("[0-9a-f]{64}", stated):
            expected = [("SHA-256", stated, sha256)]
        elif re.fullmatch("[0-9a-f]{40}", stated):
            expected = [("Git hash", stated, blob)]
    for kind, wanted, digest in expected:
        if wanted is not None and digest.hexdigest() != wanted:
            raise FetchError(f"{file.path}: wrong content: {kind} {digest.hexdigest()} instead of {wanted}")
    return md5.hexdigest(), sha256.hexdigest(), any(wanted is not None for _, wanted, _ in expected)


def _verified_copy(path: Path, file: HubFile, stated: str, repo: str, commit: str, *, downloaded: bool) -> HubCopy:
    try:
        md5, sha256, verified = check_content(path, file, stated)
    except FetchError as error:
        if path.is_symlink():
            Path(os.path.normpath(path.parent / os.readlink(path))).unlink(missing_ok=True)
        path.unlink()
        raise FetchError(f"{repo}: {error}; removed it; run the command again to download it again") from None
    return HubCopy(path=path, commit=commit, md5=md5, sha256=sha256, verified=verified, downloaded=downloaded)


def _is_permanent(error: Exception) -> bool:
    """Whether a retry is pointless."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code not in _TRANSIENT_STATUS
    return isinstance(error, OSError) and error.errno in _PERMANENT_ERRNOS


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def _size_text(size: int, present: int) -> str:
    return f", {size / 1e6:.1f} MB" + (f", resuming at {present / 1e6:.1f} MB" if present else "")
