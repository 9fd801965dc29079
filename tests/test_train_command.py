"""`selva-train` as a user runs it: real videos, real processes, Ctrl-C, and mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from platforms import needs_posix
from train_samples import CLIPS, DURATION_S, curve, write_checkpoints, write_features, write_videos

from selva_ref.model.presets import get_preset
from selva_ref.training.cli import main

MODULE = "selva_ref.training.cli"
DISTILL = ("--teacher-steps", 4, "--spans", 3)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Runs the command in this process and returns its exit code, output and errors."""
    with pytest.raises(SystemExit) as ended:
        main.main([str(argument) for argument in arguments])
    return int(ended.value.code), *capsys.readouterr()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos, list.tsv and checkpoints."""
    folder = tmp_path_factory.mktemp("command")
    write_videos(folder)
    write_checkpoints(folder / "checkpoints", get_preset("demo"))
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The same folder after extraction and every stage, in one process."""
    paths = ("--checkpoints", folder / "checkpoints", "--out")
    listed = ("--videos", folder / "videos", "--list", folder / "list.tsv", "--duration", DURATION_S)
    for arguments in (
        ("extract", "--preset", "demo", *listed, "--workers", 0, *paths, folder / "data", "--json"),
        ("stage1", *options(folder, folder / "out")),
        ("stage2", *options(folder, folder / "out"), "--base", folder / "checkpoints" / "base.safetensors"),
        ("distill", *options(folder, folder / "out"), *DISTILL),
    ):
        with pytest.raises(SystemExit) as ended:
            main.main([str(argument) for argument in arguments])
        assert ended.value.code == 0
    return folder


def options(folder: Path, out: Path, steps: int = 4) -> list[object]:
    paths = ["--data", folder / "data", "--checkpoints", folder / "checkpoints", "--out", out]
    sizes = ["--steps", steps, "--batch", 4, "--holdout", 1, "--warmup", 1, "--learning-rate", 1e-3]
    return [*paths, *sizes, "--workers", 0, "--device", "cpu", "--json"]


@pytest.mark.parametrize("stage", ["stage2", "distill"])
def test_two_processes_give_the_losses_of_one(trained: Path, tmp_path: Path, stage: str) -> None:
    """torchrun starts two processes. Each computes its half of the batch in two parts, decoded by a worker process."""
    out = tmp_path / "out"
    out.mkdir()
    for part in ("video_encoder", "generator") if stage == "distill" else ("video_encoder",):
        (out / f"{part}_demo.safetensors").hardlink_to(trained / "out" / f"{part}_demo.safetensors")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", MODULE]
    own = DISTILL if stage == "distill" else ("--base", trained / "checkpoints" / "base.safetensors")
    arguments = [*launcher, stage, *options(trained, out), *own, "--accumulate", 2, "--workers", 1]
    done = subprocess.run(
        list(map(str, arguments)), env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    expected = curve(trained / "out" / stage)
    assert json.loads(line)["losses"] == pytest.approx(expected, rel=1e-5)
    assert curve(out / stage) == pytest.approx(expected, rel=1e-5)


@needs_posix
def test_ctrl_c_ends_with_130_and_a_state(trained: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", MODULE, "stage1", *options(trained, tmp_path / "out", steps=10_000)]
    arguments += ["--workers", 1]
    process = subprocess.Popen(
        list(map(str, arguments)), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first.startswith("stage1 1/10000  loss "), first
    os.killpg(process.pid, signal.SIGINT)  # to the worker too, as a terminal does
    rest = process.stderr.read().splitlines()
    assert process.wait(60) == 130
    assert len(rest) == 2, rest
    assert rest[0] == "notice: run the same command again to resume"
    assert rest[1].startswith("error: interrupted")
    assert (tmp_path / "out" / "stage1" / "state.pt").exists()


def test_extraction_reports_what_it_skipped(folder: Path, tmp_path: Path, capsys) -> None:
    listed = ("--videos", folder / "videos", "--list", folder / "list.tsv", "--duration", DURATION_S, "--workers", 0)
    arguments = ("extract", "--preset", "demo", *listed, "--checkpoints", folder / "checkpoints")
    code, out, err = command(capsys, *arguments, "--out", tmp_path / "data")
    assert (code, err) == (0, "")
    kinds = "(1 broken, 1 missing, 1 short, 2 silent)"
    assert out == f"{CLIPS} clips ready, 5 skipped {kinds}: {tmp_path / 'data' / 'skipped.tsv'}\n"
    code, out, _ = command(capsys, *arguments, "--out", tmp_path / "data", "--json")
    assert code == 0
    assert json.loads(out)["skipped"] == {"silent": 2, "short": 1, "broken": 1, "missing": 1}


def test_a_missing_video_is_one_line(folder: Path, tmp_path: Path) -> None:
    """A worker process meets it. The command runs by itself: a fork of this process, with its threads, can die."""
    write_features(tmp_path / "data")
    arguments = options(folder, tmp_path / "out")
    arguments[1] = tmp_path / "data"
    run = [sys.executable, "-m", MODULE, "stage1", *arguments, "--workers", 1]
    done = subprocess.run(
        list(map(str, run)), env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: nowhere/c")
    assert line.endswith("no such file; extract again, or restore the video")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stage1", "--data", "x", "--checkpoints", "y"], "Missing option '--out'. (--help lists the options)"),
        (["stage1", "--data", "x", "--checkpoints", "y", "--out", "z"], "x: no data.json; create the folder with:"),
        (["stage1", "--data", "x", "--checkpoints", "y", "--out", "z", "--average", "0.5"], "average width 0.5: must"),
        (["stage3"], "No such command 'stage3'."),
        (["extract", "--list", "l.tsv", "--videos", "v", "--checkpoints", "c", "--out", "o"], "l.tsv: no such list"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_demo_is_one_of_the_commands(tmp_path: Path, capsys) -> None:
    assert "\n  demo" in command(capsys, "--help")[1]
    code, out, err = command(capsys, "demo", "--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: selva-train demo ")
    code, out, err = command(capsys, "demo", "--out", tmp_path, "--no-such-option")
    assert (code, out) == (2, "")
    assert err.startswith("error: No such option '--no-such-option'.")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("name", "option"), [("stage2", "--accumulate"), ("distill", "--spans"), ("demo", "--quick")])
def test_help_needs_no_torch(name: str, option: str) -> None:
    blocked = f"import sys; sys.modules['torch'] = None; from {MODULE} import main; main.main([{name!r}, '--help'])"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert option in done.stdout


def test_a_damaged_state_is_one_line(trained: Path, tmp_path: Path, capsys) -> None:
    state = tmp_path / "out" / "stage1" / "state.pt"
    state.parent.mkdir(parents=True)
    whole = bytearray((trained / "out" / "stage1" / "state.pt").read_bytes())
    whole[len(whole) // 2] ^= 1
    state.write_bytes(whole)
    code, out, err = command(capsys, "stage1", *options(trained, tmp_path / "out"))
    assert code == 2
    assert json.loads(out) == {"error": err.removeprefix("error: ").rstrip()}
    assert err == f"error: {state}: not the state of a run (damaged: its hash does not match its content); " + (
        "move it away to start again\n"
    )
