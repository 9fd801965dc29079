"""selva-cache as a user sees it, and text features that are computed once for all processes."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from clips import numbered, write_video
from gpus import on_host
from sessions import encode, few_steps

import selva_runtime.session
from selva_runtime import Session
from selva_runtime.backends.choose import make_executor
from selva_runtime.cache import Cache
from selva_runtime.cache.settings import size_text, write_limit
from selva_runtime.command.cache import main
from selva_runtime.command.cli import main as generate


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs `selva-cache` in this process on the cache in tmp_path/cache."""
    monkeypatch.setenv("SELVA_CACHE", str(tmp_path / "cache"))
    return lambda *arguments: CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture
def cache(tmp_path) -> Cache:
    """Three entries of different age: a clip, a prompt and a damaged one."""
    cache = Cache(tmp_path / "cache")
    facts = [
        ("clip", {"name": "street.mp4", "start_s": 1.5, "duration_s": 8.0, "model": "demo"}),
        ("text", {"name": "rain\non tin", "model": "demo"}),
        ("clip", {"name": "lost"}),
    ]
    for number, (kind, fact) in enumerate(facts):
        with cache.writer(kind, {"number": number}) as writer:
            writer.append(np.zeros((100, 10), np.float32))
            path = writer.commit(fact)._path
        if number == 2:
            os.truncate(path, 4000)
        os.utime(path, (1e9 + number, 1e9 + number))
    return cache


def test_list_shows_what_is_kept(cache, run):
    result = run("list")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert [row.split()[0] for row in lines[:3]] == ["clip", "text", "clip"]
    sizes = [file.size_bytes for file in reversed(cache.files())]
    assert [" ".join(row.split()[1:3]) for row in lines[:3]] == list(map(size_text, sizes))
    assert [row.split("  ")[-1] for row in lines[:3]] == [
        "damaged",
        "rain on tin (demo)",
        "street.mp4 1.50-9.50 s (demo)",
    ]
    assert "2001-09-09" in lines[0]
    assert lines[3:] == [f"{size_text(sum(sizes))} of 20.0 GB in {cache.folder}"]


def test_list_as_json(cache, run):
    listing = json.loads(run("list", "--json").stdout)
    assert (listing["folder"], listing["limit_bytes"]) == (str(cache.folder), 20 * 10**9)
    assert [entry["facts"].get("name") for entry in listing["entries"]] == [None, "rain\non tin", "street.mp4"]
    assert sum(entry["size_bytes"] for entry in listing["entries"]) == listing["total_bytes"]


def test_an_absent_cache_is_empty(run, tmp_path):
    assert run("list").stdout == f"0 B of 20.0 GB in {tmp_path / 'cache'}\n"
    assert run("clear").stdout == "removed 0 entries, 0 B\n"
    assert run("limit").stdout == "20.0 GB\n"
    assert not (tmp_path / "cache").exists()


def test_clear_removes_all_or_only_what_is_old(cache, run):
    recent = cache.files()[1].path
    os.utime(recent)
    result = run("clear", "--older-than", 1, "--json")
    assert json.loads(result.stdout) == {"removed": 2, "removed_bytes": pytest.approx(8300, abs=100)}
    assert [file.path for file in cache.files()] == [recent]
    assert run("clear").stdout.startswith("removed 1 entries, 4.")
    assert list(cache.folder.iterdir()) == []


def test_limit_is_kept_and_holds_at_once(cache, run):
    assert run("limit", "5kB").stdout == "5.0 kB\n"
    assert len(cache.files()) == 1
    assert json.loads(run("limit", "--json").stdout) == {"limit_bytes": 5000}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["limit", "many"], "'many' is not a size; write it as 50GB"),
        (["list", "--cache", "none"], "there is no cache"),
        (["list", "--cache", ""], "give a folder, or none"),
        (["clear", "--older-than", "-1"], "--older-than"),
        (["list", "--cache", __file__], "Not a directory"),
        (["limit", "1GB", "--cache", __file__], "cannot be written"),
        (["empty"], "No such command 'empty'"),
    ],
)
def test_a_mistake_is_one_line(run, arguments, message):
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert message in result.stderr
    assert Path(__file__).read_bytes()


class CountingExecutor:
    """The real executor, with a count of what ran."""

    def __init__(self, real):
        self._real = real
        self.runs = Counter()

    def __getattr__(self, name):
        return getattr(self._real, name)

    def run(self, name, feeds, cancel=None):
        self.runs[name] += 1
        return self._real.run(name, feeds, cancel)


@pytest.fixture
def opened(monkeypatch):
    """Opens sessions whose executor counts."""

    def make(*arguments):
        return CountingExecutor(make_executor(*arguments))

    monkeypatch.setattr(selva_runtime.session, "make_executor", make)
    return lambda bundle, cache, **options: Session(bundle, threads=1, cache=cache, **options)


def towers(session) -> tuple[int, int]:
    runs = session._executor.runs
    return runs["text_t5"], runs["text_clip"]


def test_text_features_are_computed_once_for_all_sessions(demo_bundle, tmp_path, opened):
    plain = opened(demo_bundle, "none")
    clip = encode(plain)
    prompts = ["rain", "dog barking"]
    expected = few_steps(plain, clip, prompts, negative="music")
    assert towers(plain) == (2, 3)
    first = opened(demo_bundle, tmp_path / "cache")
    few_steps(first, clip, prompts[:1], negative="music")
    assert towers(first) == (1, 2)
    calls = []
    second = opened(demo_bundle, tmp_path / "cache")
    stems = few_steps(second, clip, prompts, negative="music", progress=lambda *call: calls.append(call))
    assert towers(second) == (1, 1)
    assert [call for call in calls if call[0] == "text"] == [("text", 1, 2), ("text", 2, 2)]
    for one, other in zip(expected, stems, strict=True):
        np.testing.assert_array_equal(one.audio, other.audio)
        assert other.warnings == ()
    listing = json.loads(CliRunner().invoke(main, ["list", "--json", "--cache", str(tmp_path / "cache")]).stdout)
    names = Counter(entry["facts"]["name"] for entry in listing["entries"])
    assert names == {"rain": 2, "dog barking": 2, "music": 1}
    assert {entry["facts"]["model"] for entry in listing["entries"]} == {"demo"}


def test_features_return_to_the_device(demo_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("SELVA_CACHE", str(tmp_path))
    audio, stages = [], []
    for _ in range(2):
        stages.clear()
        with on_host(demo_bundle) as session:
            clip = encode(session)
            (stem,) = few_steps(
                session, clip, ["rain"], negative="music", progress=lambda *call: stages.append(call[0])
            )
        audio.append(stem.audio)
    assert "text" not in stages
    assert "select" in stages
    assert len(Cache(tmp_path).files()) == 3
    np.testing.assert_array_equal(*audio)


def test_another_model_or_precision_computes_its_own(demo_bundle, demo_bundle_fp16, tmp_path, opened):
    for bundle in (demo_bundle, demo_bundle_fp16):
        session = opened(bundle, tmp_path)
        few_steps(session, encode(session), ["rain"], steps=1)
        assert towers(session) == (1, 1)
    session = opened(demo_bundle, tmp_path)
    session._text = selva_runtime.session.TextEncoder(
        session._bundle, session._executor, turns=session._turns, cache=Cache(tmp_path), precision="bf16"
    )
    few_steps(session, encode(session), ["rain"], steps=1)
    assert towers(session) == (1, 1)


def test_damaged_features_are_computed_again_with_a_warning(demo_bundle, tmp_path, opened):
    first = opened(demo_bundle, tmp_path)
    clip = encode(first)
    expected = few_steps(first, clip, ["rain"])
    for file in Cache(tmp_path).files():
        content = bytearray(file.path.read_bytes())
        content[100] ^= 4
        file.path.write_bytes(content)
    second = opened(demo_bundle, tmp_path)
    stems = few_steps(second, clip, ["rain"])
    assert towers(second) == (1, 1)
    np.testing.assert_array_equal(stems[0].audio, expected[0].audio)
    assert stems[0].warnings == (f"the cache {tmp_path} had a damaged entry, which is computed again",)
    assert few_steps(second, clip, ["rain"])[0].warnings == ()


def test_features_that_are_not_finite_are_not_kept(demo_bundle, tmp_path, opened):
    session = opened(demo_bundle, tmp_path)
    run = session._executor._real.run
    session._executor._real.run = lambda name, *rest: {
        port: values * np.float32(np.nan) if name == "text_t5" else values for port, values in run(name, *rest).items()
    }
    with pytest.raises(selva_runtime.BackendError, match="not finite"):
        few_steps(session, encode(session), ["rain"])
    listing = json.loads(CliRunner().invoke(main, ["list", "--json", "--cache", str(tmp_path)]).stdout)
    assert len(listing["entries"]) == 1


def test_generate_uses_the_cache_that_is_named(demo_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("SELVA_CACHE", str(tmp_path / "environment"))
    video = write_video(tmp_path / "street.mp4", map(numbered, range(25)))
    common = [str(video), "-p", "rain", "-o", str(tmp_path / "out"), "--bundle", str(demo_bundle), "--steps", "1"]
    for option, folder in (
        ([], "environment"),
        (["--cache", str(tmp_path / "named")], "named"),
        (["--cache", "none"], ""),
    ):
        result = CliRunner().invoke(generate, [*common, *option])
        assert (result.exit_code, "warning" in result.stderr) == (0, False)
        assert not folder or Cache(tmp_path / folder).files()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["environment", "named", "out", "street.mp4"]


def test_a_cache_that_cannot_be_used_is_one_warning_of_the_run(demo_bundle, tmp_path):
    video = write_video(tmp_path / "street.mp4", map(numbered, range(25)))
    common = [str(video), "-p", "rain", "-o", str(tmp_path / "out"), "--bundle", str(demo_bundle), "--steps", "1"]
    result = CliRunner().invoke(generate, [*common, "--json", "--cache", str(video)])
    assert result.exit_code == 0
    assert result.stderr.count("warning: ") == 1
    report = json.loads(result.stdout)
    assert report["warnings"] == [
        f"the cache {video} cannot be used (Not a directory); choose another with SELVA_CACHE, or none"
    ]
    assert Path(report["stems"][0]["file"]).is_file()


def test_a_run_stores_no_more_than_the_limit(demo_bundle, tmp_path, opened):
    write_limit(tmp_path, 0)
    session = opened(demo_bundle, tmp_path)
    (stem,) = few_steps(session, encode(session), ["rain"], steps=1)
    assert Cache(tmp_path).files() == []
    assert stem.warnings == (f"the cache {tmp_path} does not keep what is larger than its limit of 0 B",)
