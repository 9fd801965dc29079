"""TensorRT-RTX's compiled kernels on disk: complete, private to the user, and in the platform's usual folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from platforms import needs_posix

from selva_runtime.backends.gpu.kernel_cache import CacheFile, cache_folder


@pytest.fixture
def cache(tmp_path):
    return CacheFile("rtx 1.7/sm89: a b", tmp_path / "caches" / "selva")


def test_a_cache_comes_back_as_it_was(cache):
    assert cache.path.name == "rtx-1.7-sm89-a-b.rtxcache"
    assert cache.read() is None
    for payload in (b"", b"first" * 1000, b"second"):
        assert cache.write(payload)
        assert cache.read() == payload
    assert [path.name for path in cache.path.parent.iterdir()] == [cache.path.name]


@pytest.mark.parametrize("cut", [0, 5, 60, -1])
def test_a_damaged_cache_is_not_used(cache, cut):
    cache.write(b"kernels" * 100)
    content = cache.path.read_bytes()
    cache.path.write_bytes(content[:cut] if cut >= 0 else content[:-1] + b"x")
    assert cache.read() is None
    assert cache.write(b"again")
    assert cache.read() == b"again"


@needs_posix
def test_a_cache_that_others_may_write_is_not_used(cache, tmp_path):
    cache.write(b"kernels")
    cache.path.chmod(0o622)
    assert cache.read() is None
    cache.path.chmod(0o600)
    assert cache.read() == b"kernels"
    cache.path.parent.chmod(0o777)
    assert cache.read() is None
    assert not cache.write(b"more")
    cache.path.parent.chmod(0o700)
    target = tmp_path / "elsewhere"
    target.write_bytes(cache.path.read_bytes())
    cache.path.unlink()
    cache.path.symlink_to(target)
    assert cache.read() is None
    assert cache.write(b"own")
    assert (cache.read(), cache.path.is_symlink()) == (b"own", False)
    assert b"kernels" in target.read_bytes()


def test_a_cache_that_cannot_be_written_fails_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = CacheFile("name", tmp_path / "file" / "folder")
    assert cache.read() is None
    assert not cache.write(b"kernels")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x/cache"}, "/x/cache/selva-deploy"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/selva-deploy"),
        ("linux", {}, "/home/me/.cache/selva-deploy"),
        ("darwin", {"XDG_CACHE_HOME": "/x/cache"}, "/home/me/Library/Caches/selva-deploy"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/selva-deploy"),
        ("win32", {}, "/home/me/AppData/Local/selva-deploy"),
    ],
)
def test_the_cache_is_where_the_platform_wants_it(monkeypatch, platform, variables, expected):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder().as_posix() == expected
