"""Extracted features that are damaged or inconsistent give a one-line error from the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks.damage import VALUES, changed, places
from train_samples import CLIPS, write_features

from selva_ref.training.cli import main
from selva_ref.training.data.arrays import open_array
from selva_ref.training.data.store import Features, read_description
from selva_ref.training.errors import TrainingError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_features(tmp_path / "data")


def refusal(data: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The error of `selva-train stage1` for the folder, which must come before it looks for the missing checkpoints."""
    with pytest.raises(SystemExit) as ended:
        main.main(["stage1", "--data", str(data), "--checkpoints", str(data / "none"), "--out", str(data / "out")])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    return err


def test_good_features_are_not_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none: no teacher_demo.safetensors" in refusal(data, capsys)


def cut(length: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:length])


def rewritten(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    return lambda path: np.save(path, change(np.load(path)))


@pytest.mark.parametrize("name", ["posterior", "teacher", "text_t5", "text_clip", "text_t5_tokens"])
@pytest.mark.parametrize(
    "damage",
    [
        cut(0),
        cut(60),
        cut(-1),
        rewritten(lambda array: array.astype(np.float64)),
        rewritten(lambda array: array[:-1]),
        rewritten(lambda array: array[..., None]),
        lambda path: path.write_bytes(b"PK\3\4" + bytes(99)),
        lambda path: path.write_bytes(b"\x93NUMPY\1\0\xff\x7f" + b"(" * 0x7FFF),
        lambda path: path.unlink(),
    ],
    ids=["empty", "header cut", "short", "type", "rows", "rank", "zip", "deep header", "gone"],
)
def test_arrays(data: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], object]) -> None:
    path = data / f"{name}.npy"
    damage(path)
    assert refusal(data, capsys).startswith(f"error: {path}: ")


def test_extraction_does_not_fill_up_an_array_that_is_short(data: Path) -> None:
    path = data / "teacher.npy"
    whole = np.load(path)
    cut(-1)(path)
    before = path.stat().st_size
    with pytest.raises(TrainingError, match="damaged"):
        open_array(path, np.float16, whole.shape, mode="r+")
    assert path.stat().st_size == before


@pytest.mark.parametrize("tokens", [0, -3, 6, 2**62])
def test_numbers_of_tokens(data: Path, capsys: pytest.CaptureFixture[str], tokens: int) -> None:
    np.save(data / "text_t5_tokens.npy", np.array([3, tokens]))
    assert "text_t5_tokens.npy: out of range; extract into a new folder" in refusal(data, capsys)


@pytest.mark.parametrize(("name", "use"), [("posterior", Features.posterior), ("teacher", Features.teacher)])
def test_values_that_are_not_finite(data: Path, name: str, use: Callable[[Features, int], object]) -> None:
    array = np.load(data / f"{name}.npy")
    array[3].flat[0] = np.nan
    np.save(data / f"{name}.npy", array)
    features = Features(data)
    use(features, 2)
    with pytest.raises(TrainingError, match=rf"{name}.npy, row 3: values that are not finite"):
        use(features, 3)


@pytest.mark.parametrize("file", ["list.tsv", "outcome.tsv", "data.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"\0", b"[" * 100_000, b"3\n", b"x\ty\n"])
def test_texts(data: Path, capsys: pytest.CaptureFixture[str], file: str, content: bytes) -> None:
    (data / file).write_bytes(content)
    assert str(data) in refusal(data, capsys)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("8\tok", "1 clips are not extracted yet; run selva-train extract again"),
        ("7\tfine", "outcome.tsv: not written by selva-train extract"),
        ("7\tbroken", "outcome.tsv: not written by selva-train extract"),
        ("-1\tok", "outcome.tsv: not written by selva-train extract"),
    ],
)
def test_outcomes(data: Path, capsys: pytest.CaptureFixture[str], row: str, message: str) -> None:
    path = data / "outcome.tsv"
    path.write_text(path.read_text().replace(f"{CLIPS - 1}\tok", row))
    assert message in refusal(data, capsys)


def test_a_list_that_was_changed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data / "list.tsv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]) + "\n")  # the rows of the arrays stay
    assert "list.tsv does not match data.json; extract into a new folder" in refusal(data, capsys)


@pytest.mark.parametrize(
    "field",
    [
        {"duration_s": float("nan")},
        {"duration_s": float("inf")},
        {"duration_s": 0.1},
        {"duration_s": "0.96"},
        {"duration_s": True},
        {"preset": "tiny"},
        {"preset": 3},
        {"videos": None},
        {"list_sha256": "x"},
        {"format": True},
        {"format": 1.0},
        {"surprise": 1},
    ],
)
def test_fields_of_data_json(data: Path, capsys: pytest.CaptureFixture[str], field: dict[str, Any]) -> None:
    path = data / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | field))
    assert "data.json: not written by selva-train extract" in refusal(data, capsys)


def test_every_field_of_data_json_of_every_type(data: Path) -> None:
    path = data / "data.json"
    whole = json.loads(path.read_text())
    for place in places(whole):
        for value in VALUES:
            path.write_text(json.dumps(changed(whole, place, lambda _, value=value: value)))
            if (place, type(value)) == (("videos",), str) and "\0" not in value:
                read_description(data)  # any folder may be named; videos are only opened when needed
            elif place[0] in ("format", "duration_s") and type(value) is int and value == 1:
                read_description(data)
            else:
                with pytest.raises(TrainingError, match=r"data\.json: "):
                    read_description(data)
