"""The cache: what was written is what is found, whatever other processes, disks and hands do to the folder."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from platforms import file_size_limit, needs_linux, needs_posix

import selva_runtime.cache.rows
import selva_runtime.cache.store
from selva_bundle.errors import CacheError, OutputError, RequestError
from selva_runtime.cache import Cache, temporary_rows
from selva_runtime.cache.settings import DEFAULT_LIMIT_BYTES, parsed_size, size_text, write_limit

KEY = {"video": "abc", "start_s": 0.5, "end_s": None, "ids": [1, 2, 3], "exact": True}


def values(rows: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 3, 4), dtype=np.float32)


def keep(cache: Cache, rows: np.ndarray, key=KEY, facts=None):
    with cache.writer("clip", key) as writer:
        for start in range(0, len(rows), 2):
            writer.append(rows[start : start + 2])
        return writer.commit(facts or {"name": "street.mp4"})


def found(cache: Cache, key=KEY) -> np.ndarray | None:
    entry = cache.find("clip", key)
    return None if entry is None else np.asarray(entry.rows)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "new" / "cache")


@pytest.fixture
def entry(cache) -> Path:
    """The file of an entry under KEY, `values()`."""
    keep(cache, values())
    (file,) = cache.files()
    return file.path


def test_what_was_kept_is_found(cache):
    kept = keep(cache, values(), facts={"span": [0.0, 8.0]})
    entry = Cache(cache.folder).find("clip", dict(reversed(KEY.items())))
    assert entry.facts == {"span": [0.0, 8.0]}
    for rows in (kept, entry.rows):
        assert (rows.shape, rows.dtype, len(rows)) == ((5, 3, 4), np.float32, 5)
        np.testing.assert_array_equal(rows, values())
        for part in (slice(1, 4), slice(-2, None), slice(3, 3), slice(4, 1), slice(2, 99)):
            np.testing.assert_array_equal(rows[part], values()[part])
            assert rows[part].dtype == np.float32
        with pytest.raises(IndexError):
            rows[::2]
    assert cache.new_warnings() == ()


@pytest.mark.parametrize(
    ("kind", "key"), [("text", KEY), ("clip", {**KEY, "start_s": 0.25}), ("clip", {"video": "abc"})]
)
def test_another_key_finds_nothing(cache, entry, kind, key):
    assert cache.find(kind, key) is None
    assert names(cache.folder) == [entry.name]


def test_blocks_are_small_and_rows_are_read_across_them(cache, monkeypatch):
    monkeypatch.setattr(selva_runtime.cache.rows, "_BLOCK_BYTES", 2 * 3 * 4 * 4 + 1)
    with cache.writer("clip", KEY) as writer:
        writer.append(values(7))
        rows = writer.commit({})
    assert [block.rows for block in rows._blocks] == [2, 2, 2, 1]
    for start in range(8):
        for stop in range(8):
            np.testing.assert_array_equal(rows[start:stop], values(7)[start:stop])


def test_rows_that_do_not_fit_together_are_refused(cache):
    with cache.writer("clip", KEY) as writer:
        with pytest.raises(ValueError, match="no rows"):
            writer.commit({})
        writer.append(values())
        for wrong in (values().astype(np.float64), values()[:, :2]):
            with pytest.raises(ValueError, match="give float32"):
                writer.append(wrong)


@pytest.mark.parametrize("key", [{"at": float("nan")}, {"array": np.zeros(2)}, {"path": Path("x")}])
def test_keys_are_plain(cache, key):
    with pytest.raises((TypeError, ValueError)):
        cache.find("clip", key)


def test_nothing_is_left_without_a_commit(cache):
    with cache.writer("clip", KEY) as writer:
        writer.append(values())
        assert len(names(cache.folder)) == 1
    assert names(cache.folder) == []
    with cache.writer("clip", KEY) as writer:
        writer.append(values())
        with pytest.raises(TypeError):
            writer.commit({"at": Path("x")})
    assert names(cache.folder) == []
    assert found(cache) is None


@needs_posix
def test_no_other_user_can_read_it(cache, entry):
    assert (cache.folder.stat().st_mode & 0o777, entry.stat().st_mode & 0o777) == (0o700, 0o600)


def test_every_flipped_bit_and_every_missing_byte_is_noticed(cache, entry):
    content = entry.read_bytes()
    for place in range(len(content)):
        entry.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        assert found(cache) is None, place
        assert not entry.exists(), place
        entry.write_bytes(content[:place])
        assert found(cache) is None, place
        assert not entry.exists(), place
    for wrong in (content + b"\0", content + content, bytes(len(content))):
        entry.write_bytes(wrong)
        assert found(cache) is None
    assert names(cache.folder) == []
    (warning,) = cache.new_warnings()
    assert warning == f"the cache {cache.folder} had a damaged entry, which is computed again"
    keep(cache, values())
    assert cache.new_warnings() == ()
    np.testing.assert_array_equal(found(cache), values())


def test_an_entry_under_another_name_is_damage(cache, entry):
    other = {"video": "other"}
    keep(cache, values(seed=1), other)
    newer = next(file.path for file in cache.files() if file.path != entry)
    os.replace(newer, entry)
    assert found(cache) is None
    assert names(cache.folder) == []


def test_a_large_entry_is_checked_as_it_is_read(cache, entry, monkeypatch):
    monkeypatch.setattr(selva_runtime.cache.store, "_CHECKED_WHEN_FOUND_BYTES", 100)
    content = bytearray(entry.read_bytes())
    content[16 + 3 * 48 + 5] ^= 1  # in row 3, of the second block
    entry.write_bytes(content)
    rows = cache.find("clip", KEY).rows
    np.testing.assert_array_equal(rows[:2], values()[:2])
    for part in (slice(2, 3), slice(3, 4)):
        with pytest.raises(CacheError, match="damaged; encode the video again"):
            rows[part]
    np.testing.assert_array_equal(rows[4:], values()[4:])
    assert found(cache) is None
    assert names(cache.folder) == []


@needs_posix
def test_damage_that_is_read_late_does_not_remove_a_newer_entry(cache, entry, monkeypatch):
    monkeypatch.setattr(selva_runtime.cache.store, "_CHECKED_WHEN_FOUND_BYTES", 0)
    content = bytearray(entry.read_bytes())
    content[20] ^= 1
    entry.write_bytes(content)
    rows = cache.find("clip", KEY).rows
    keep(cache, values())
    with pytest.raises(CacheError):
        rows[:]
    np.testing.assert_array_equal(found(cache), values())


@needs_posix
@pytest.mark.parametrize("foreign", ["file", "link", "folder", "dangling link"])
def test_what_the_cache_did_not_write_stays_as_it_is(cache, entry, tmp_path, foreign):
    """Even under the name of an entry, and even a link to an intact entry."""
    kept = tmp_path / "kept"
    os.replace(entry, kept)
    if foreign == "file":
        entry.write_bytes(b"my diary")
    elif foreign == "folder":
        entry.mkdir()
    else:
        entry.symlink_to(kept if foreign == "link" else tmp_path / "nowhere")
    before = (os.lstat(entry).st_ino, kept.read_bytes())
    assert found(cache) is None
    np.testing.assert_array_equal(keep(cache, values()), values())
    write_limit(cache.folder, 0)
    cache.make_room()
    cache.clear()
    assert (os.lstat(entry).st_ino, kept.read_bytes()) == before
    assert names(cache.folder) == [entry.name, "selva-cache.json"]
    warnings = cache.new_warnings()
    assert warnings
    assert all(line.startswith(f"the cache {cache.folder} ") and "\n" not in line for line in warnings)


@needs_posix
@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_what_others_can_write_is_not_read(cache, entry, mode):
    entry.chmod(mode)
    assert found(cache) is None
    entry.chmod(0o600)
    np.testing.assert_array_equal(found(cache), values())


def test_a_home_folder_keeps_its_files(tmp_path):
    files = ["thesis.selva", ".hidden.part", "clip-1.selva", f"clip-{'0' * 64}.selva.bak", f".clip-{'0' * 64}.part"]
    for name in files:
        (tmp_path / name).write_bytes(b"mine")
        os.utime(tmp_path / name, (1, 1))
    mode = tmp_path.stat().st_mode
    cache = Cache(tmp_path)
    keep(cache, values())
    write_limit(tmp_path, 1)
    cache.make_room()
    cache.clear()
    assert names(tmp_path) == sorted([*files, "selva-cache.json"])
    assert tmp_path.stat().st_mode == mode


def aged(cache: Cache, count: int) -> int:
    """Keeps entries 0 to `count`, the first used longest ago. Returns the bytes of one."""
    for number in range(count):
        keep(cache, values(), {"number": number})
        path = max(cache.files(), key=lambda file: file.used_s).path
        os.utime(path, (number, number))
    return cache.files()[0].size_bytes


def numbers(cache: Cache) -> list[int]:
    return [number for number in range(10) if (cache.folder / entry_name(cache, number)).exists()]


def entry_name(cache: Cache, number: int) -> str:
    from selva_runtime.cache.entries import entry_path, key_text

    return entry_path(cache.folder, "clip", key_text({"number": number})).name


def test_the_least_recently_used_entries_make_room(cache):
    size = aged(cache, 4)
    assert cache.find("clip", {"number": 0}) is not None
    write_limit(cache.folder, 3 * size)
    assert numbers(cache) == [0, 1, 2, 3]
    keep(cache, values(), {"number": 4})
    assert numbers(cache) == [0, 3, 4]
    write_limit(cache.folder, 2 * size)
    cache.make_room()
    assert numbers(cache) == [0, 4]


def test_a_new_entry_stays_even_if_the_clock_was_set_back(cache):
    size = aged(cache, 2)
    for file in cache.files():
        os.utime(file.path, (4e9, 4e9))
    write_limit(cache.folder, 2 * size)
    keep(cache, values(), {"number": 2})
    assert 2 in numbers(cache)
    assert len(numbers(cache)) == 2


def test_an_entry_larger_than_the_limit_is_not_kept(cache):
    size = aged(cache, 2)
    write_limit(cache.folder, 2 * size)
    large = values(100)
    rows = keep(cache, large)
    np.testing.assert_array_equal(rows, large)
    assert numbers(cache) == [0, 1]
    assert len(names(cache.folder)) == 3
    (warning,) = cache.new_warnings()
    assert "does not keep what is larger than its limit" in warning


@needs_posix
def test_an_entry_that_is_removed_can_still_be_read(cache):
    keep(cache, values())
    rows = cache.find("clip", KEY).rows
    assert len(cache.clear()) == 1
    np.testing.assert_array_equal(rows, values())


def test_clear_keeps_what_was_used_since(cache):
    aged(cache, 3)
    assert cache.find("clip", {"number": 1}) is not None
    assert len(cache.clear(unused_for_s=60)) == 2
    assert numbers(cache) == [1]


@pytest.mark.parametrize("settings", ["", "{}", "[]", '{"limit_bytes": "1"}', '{"limit_bytes": -1}', "[" * 900])
def test_settings_of_something_else_stay_and_the_default_holds(cache, settings):
    cache.folder.mkdir(parents=True)
    path = cache.folder / "selva-cache.json"
    path.write_text(settings)
    assert cache.limit_bytes == DEFAULT_LIMIT_BYTES
    (warning,) = cache.new_warnings()
    assert "has a limit that cannot be read" in warning
    with pytest.raises(OutputError, match="remove it"):
        write_limit(cache.folder, 5)
    assert path.read_text() == settings


def test_the_limit_is_kept_in_the_folder(cache):
    assert cache.limit_bytes == DEFAULT_LIMIT_BYTES == parsed_size("20 GB")
    write_limit(cache.folder, 7)
    assert Cache(cache.folder).limit_bytes == 7


@pytest.mark.parametrize(
    ("text", "size"),
    [("50GB", 50 * 10**9), ("1.5 tb", 1500 * 10**9), ("800MiB", 800 << 20), ("7", 7), ("2k", 2000), ("0", 0)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parsed_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5 apples", "1e9", "5iB", "nan", "١GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RequestError, match="write it as 50GB"):
        parsed_size(text)


def test_sizes_are_shown_as_people_write_them():
    assert [size_text(size) for size in (0, 999, 1000, 999_950, 20 * 10**9, 10**15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.0 MB",
        "20.0 GB",
        "1000.0 TB",
    ]


def python(code: str, folder: Path) -> subprocess.Popen:
    code = f"import sys, time, pathlib\nimport numpy as np\nfrom selva_runtime.cache import Cache\n{code}"
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


WRITE_AND_WAIT = """
cache = Cache(pathlib.Path(sys.argv[1]))
writer = cache.writer("clip", {"by": "another process"})
writer.append(np.ones((4, 3), np.float32))
print("written", flush=True)
time.sleep(60)
"""


@needs_posix
def test_what_a_killed_writer_leaves_is_removed_but_not_that_of_a_living_one(cache):
    with python(WRITE_AND_WAIT, cache.folder) as process:
        assert process.stdout.readline() == "written\n"
        (part,) = cache.folder.iterdir()
        os.utime(part, (1, 1))
        cache.make_room()
        assert names(cache.folder) == [part.name]
        process.kill()
    assert cache.find("clip", {"by": "another process"}) is None
    keep(cache, values())
    assert len(names(cache.folder)) == 1
    assert part.name not in names(cache.folder)


WORK = """
cache, deadline = Cache(pathlib.Path(sys.argv[1])), time.monotonic() + 3
rng, found = np.random.default_rng(), 0
while time.monotonic() < deadline:
    number = int(rng.integers(6))
    rows = np.full((40, 1000), number, np.float32)
    entry = cache.find("clip", {"number": number})
    if entry is None:
        with cache.writer("clip", {"number": number}) as writer:
            writer.append(rows[:20])
            writer.append(rows[20:])
            kept = writer.commit({"number": number})
    else:
        found += 1
        assert entry.facts == {"number": number}
        kept = entry.rows
    assert (np.asarray(kept) == rows).all()
print(found, list(cache.new_warnings()))
"""


def test_processes_find_write_and_evict_at_once(cache):
    write_limit(cache.folder, 3 * 161_000)
    processes = [python(WORK, cache.folder) for _ in range(3)]
    for process in processes:
        out, _ = process.communicate()
        assert process.returncode == 0
        found, _, warnings = out.strip().partition(" ")
        assert int(found) > 0
        assert warnings == "[]"
    assert sum(file.size_bytes for file in cache.files()) <= 3 * 161_000 + 161_000
    assert len(names(cache.folder)) <= 1 + 4


@needs_posix
@pytest.mark.parametrize("where", ["rows", "description"])
def test_a_full_disk_loses_nothing(cache, where):
    cache.folder.mkdir(parents=True)
    many = values(100)
    whole = 16 + many.nbytes
    with file_size_limit(whole // 2 if where == "rows" else whole + 10):
        rows = keep(cache, many)
    np.testing.assert_array_equal(rows, many)
    assert names(cache.folder) == []
    (warning,) = cache.new_warnings()
    assert warning.startswith(f"the cache {cache.folder} ")
    assert "File too large" in warning


@needs_posix
def test_a_full_disk_loses_no_temporary_rows(tmp_path):
    many, told = values(100), []
    with file_size_limit(many.nbytes // 2), temporary_rows(tmp_path, warn=told.append) as writer:
        writer.append(many[:60])
        writer.append(many[60:])
        rows = writer.commit({})
    np.testing.assert_array_equal(rows, many)
    (warning,) = told
    assert warning.startswith("the temporary file cannot be written (File too large)")


def test_temporary_rows_leave_no_name(tmp_path):
    with temporary_rows(tmp_path) as writer:
        writer.append(values())
        assert os.name != "posix" or names(tmp_path) == []
        rows = writer.commit({})
    np.testing.assert_array_equal(rows, values())
    told = []
    with temporary_rows(tmp_path / "missing", warn=told.append) as writer:
        writer.append(values())
        np.testing.assert_array_equal(writer.commit({}), values())
    assert told == ["the temporary file cannot be made (No such file or directory), so the clip stays in memory"]


def refuse(*_arguments, **_options):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("folder", ["read-only", "unreadable", "a file", "in a file", "no home"])
def test_a_folder_that_cannot_be_used_is_one_warning(cache, monkeypatch, folder):
    """Root may write anywhere, so the system's answers are simulated."""
    if folder == "a file":
        cache.folder.parent.mkdir()
        cache.folder.write_bytes(b"mine")
    elif folder == "in a file":
        cache.folder.parent.write_bytes(b"mine")
    elif folder == "no home":
        monkeypatch.setattr(Path, "mkdir", refuse)
    else:
        keep(cache, values(), {"other": 1})
        monkeypatch.setattr(os, "open", refuse)
        if folder == "unreadable":
            monkeypatch.setattr(Path, "lstat", refuse)
    assert found(cache) is None
    monkeypatch.setattr(selva_runtime.cache.rows, "unnamed_file", lambda _folder: None)
    np.testing.assert_array_equal(keep(cache, values()), values())
    (warning,) = cache.new_warnings()
    assert warning.startswith(f"the cache {cache.folder} cannot be used (")
    assert found(cache) is None
    assert cache.new_warnings() == ()


def test_a_folder_that_can_only_be_read_is_still_read(cache, entry, monkeypatch):
    monkeypatch.setattr(os, "utime", refuse)
    np.testing.assert_array_equal(found(cache), values())
    assert cache.new_warnings() == ()


@needs_linux
def test_reading_slices_keeps_memory_small(tmp_path):
    code = """
cache = Cache(pathlib.Path(sys.argv[1]))
with cache.writer("clip", {}) as writer:
    for number in range(64):
        writer.append(np.full((1, 1 << 19), number, np.float32))
    rows = writer.commit({})
rows = cache.find("clip", {}).rows
pathlib.Path("/proc/self/clear_refs").write_text("5")
status = lambda name: int(next(x for x in open("/proc/self/status") if x.startswith(name)).split()[1])
before = status("VmRSS")
for number in range(64):
    assert (rows[number : number + 1] == number).all()
print((status("VmHWM") - before) // 1024)
"""
    with python(code, tmp_path) as process:
        out, _ = process.communicate()
    assert process.returncode == 0
    assert int(out) < 20  # the rows are 128 MiB


@pytest.mark.parametrize(
    ("platform", "given", "variables", "expected"),
    [
        ("linux", None, {}, "/home/me/.cache/selva"),
        ("linux", None, {"XDG_CACHE_HOME": "/x"}, "/x/selva"),
        ("linux", None, {"SELVA_CACHE": "/s", "XDG_CACHE_HOME": "/x"}, "/s"),
        ("linux", None, {"SELVA_CACHE": ""}, "/home/me/.cache/selva"),
        ("linux", "/given", {"SELVA_CACHE": "none"}, "/given"),
        ("linux", "none", {"SELVA_CACHE": "/s"}, None),
        ("linux", None, {"SELVA_CACHE": "none"}, None),
        ("darwin", None, {}, "/home/me/Library/Caches/selva"),
        ("win32", None, {"LOCALAPPDATA": "/l"}, "/l/selva/cache"),
    ],
)
def test_the_place_follows_the_platform(monkeypatch, platform, given, variables, expected):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    for name in ("SELVA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cache = Cache.at(given)
    assert (cache and cache.folder.as_posix()) == expected


def test_no_home_is_no_cache(monkeypatch):
    monkeypatch.delenv("SELVA_CACHE")
    monkeypatch.setattr(Path, "home", refuse_home)
    assert Cache.at(None) is None


def refuse_home():
    raise RuntimeError("no home")


@pytest.mark.parametrize("place", ["", "a\0b"])
def test_a_place_that_is_no_folder_is_refused(place):
    with pytest.raises(RequestError, match="give a folder, or none"):
        Cache.at(place)


def test_the_suite_uses_no_cache_of_the_developer():
    assert os.environ["SELVA_CACHE"] == "none"
    assert Cache.at(None) is None


def test_a_use_is_the_time_of_the_file(cache, entry):
    os.utime(entry, (5, 5))
    assert found(cache) is not None
    assert time.time() - cache.files()[0].used_s < 60
