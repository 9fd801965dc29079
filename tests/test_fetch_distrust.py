"""`selva-fetch` with a hub that says one thing and does another, and with files that have no hash."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small_hub import FILES, SmallHub, serving_small_preset

from selva_ref.weights.checkpoints import RECORD, read_record
from selva_ref.weights.fetch import FetchError, fetch, main

VAE, TEACHER = "jnwnlee/SelVA/ext_weights/v1-16.pth", "jnwnlee/SelVA/ext_weights/teacher.pth"
TOWER, VOCABULARY = "apple/new-name/tower.bin", "apple/new-name/vocab.json"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SmallHub]:
    with serving_small_preset(monkeypatch) as small:
        here = partial(fetch, endpoint=small.url, cache_dir=tmp_path / "cache")
        monkeypatch.setattr("selva_ref.weights.fetch.fetch", here)
        yield small


def command(tmp_path: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["--preset", "small_16k", "--out", str(tmp_path / "out"), *options])


def refusal(result: Result) -> str:
    assert result.exit_code == 2, result.exception
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def partials(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "out" / ".download").glob("*"))


@pytest.mark.parametrize("name", [VAE, VOCABULARY])
def test_endless_content_is_cut_at_its_stated_size(hub: SmallHub, tmp_path: Path, name: str) -> None:
    if name == VOCABULARY:  # a small file's size comes with its content's address, so that gets another one
        hub.answers[name] = (302, {"Location": f"{hub.content_url}/content/{name}", "X-Linked-Size": "9"})
    hub.endless.add(name)
    line = refusal(command(tmp_path))
    assert line.endswith(
        f"sent more than the {len(FILES[name])} bytes that it announced; check HF_ENDPOINT and the proxy settings"
    )
    assert hub.sent_bytes < 1 << 26  # limited by the socket buffers
    assert not partials(tmp_path)


@pytest.mark.parametrize("size", [None, "many", "-1"])
def test_a_hub_that_states_no_size_is_refused(hub: SmallHub, tmp_path: Path, size: str | None) -> None:
    hub.answers[VAE] = (302, {"X-Linked-Size": size})
    hub.endless.add(VAE)
    assert refusal(command(tmp_path)).endswith("does not give its size; check HF_ENDPOINT and the proxy settings")
    assert not hub.gets(VAE)


def test_a_content_that_is_too_large_for_the_client(hub: SmallHub, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("selva_ref.weights.hub.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 60}))
    hub.answers[VAE] = (302, {"X-Linked-Size": str(1 << 50)})
    assert "too large" in refusal(command(tmp_path))


@pytest.mark.parametrize(
    "location",
    ["http://[::1", "http://localhost:port/x", "http://localhost:99999/x", "//", "\\\\x", "http://a\xa0b", ""],
)
@pytest.mark.parametrize("status", [302, 307])
def test_a_malformed_redirect(hub: SmallHub, tmp_path: Path, location: str, status: int) -> None:
    hub.answers[VAE] = (status, {"Location": location})
    assert "jnwnlee/SelVA/ext_weights/v1-16.pth" in refusal(command(tmp_path))


def test_redirects_in_a_circle(hub: SmallHub, tmp_path: Path) -> None:
    hub.answers[VAE] = (307, {"Location": "/jnwnlee/SelVA/resolve/main/ext_weights/v1-16.pth"})
    assert "redirect" in refusal(command(tmp_path))


@pytest.mark.parametrize("etag", ['"abc"', 'W/"5e-1"'])
def test_a_file_without_a_known_hash_is_not_called_verified(hub: SmallHub, tmp_path: Path, etag: str) -> None:
    hub.answers[TOWER] = (302, {"X-Linked-ETag": etag})
    first = command(tmp_path, "--json")
    assert first.exit_code == 0, first.stderr
    warning = "warning: clip/tower.safetensors: neither its publisher nor the hub states a hash, so it is not verified"
    assert first.stderr.splitlines().count(warning) == 1
    assert first.stderr.count("not verified") == 1
    expected = {"v1-16.safetensors": True, "clip/tower.safetensors": False, "clip/vocab.json": True}
    for report in (first.stdout, command(tmp_path, "--json").stdout):  # and again when it is already there
        assert {one["file"]: one["verified"] for one in json.loads(report)["files"]} == expected
    record = read_record(tmp_path / "out")
    assert {name: entry["verified"] for name, entry in record.items()} == expected


def test_a_record_of_an_older_version_is_not_used(hub: SmallHub, tmp_path: Path) -> None:
    command(tmp_path)
    path = tmp_path / "out" / RECORD
    record = json.loads(path.read_text())
    for entry in record["files"].values():
        del entry["verified"]
    path.write_text(json.dumps(record))
    report = json.loads(command(tmp_path, "--json").stdout)["files"]
    assert {(one["status"], one["verified"]) for one in report} == {("already there", None)}


def test_a_file_put_there_by_hand_without_a_known_hash(hub: SmallHub, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "teacher.pth").write_bytes(FILES[TEACHER])
    result = command(tmp_path, "--with-teacher", "--json")
    verified = {one["file"]: one["verified"] for one in json.loads(result.stdout)["files"]}
    assert verified["teacher.safetensors"] is False
    assert "warning: teacher.safetensors: neither" in result.stderr


def test_somebody_elses_file_is_not_verified(hub: SmallHub, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "v1-16.safetensors").write_bytes(b"mine")
    report = json.loads(command(tmp_path, "--json").stdout)["files"]
    assert {one["file"]: one["verified"] for one in report}["v1-16.safetensors"] is False


def test_fetch_errors_are_typed(hub: SmallHub, tmp_path: Path) -> None:
    hub.answers[VAE] = (302, {"Location": "http://[::1"})
    with pytest.raises(FetchError):
        fetch("small_16k", tmp_path / "out", endpoint=hub.url, cache_dir=tmp_path / "cache")
