"""selva-bench from the shell, with the demo bundle."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest
from click.testing import CliRunner
from clips import numbered, write_video

from selva_bench import machine
from selva_bench.cli import main
from selva_bench.inputs import video_lasting
from selva_bench.presentation import name_of, save
from selva_bench.worker import peak_memory_bytes, without_folders

STAGES = {"decode", "encode", "text", "select", "conditions", "step", "vocode"}
TOTALS = {"first_stem", "first_stem_after_decode", "2_stems", "2_stems_after_decode", "further_stem_of_2", "new_prompt"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "selva_bench", *map(str, arguments)]


def bench(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(path)] if path else []
    env = {
        **os.environ,
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=env, timeout=300, check=False)


def last_line(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


SHORT = ["--duration", "1", "--rounds", "1", "--stems", "2", "--steps", "2", "--threads", "1", "--backend", "cpu"]
Run = tuple[subprocess.CompletedProcess[str], Path]
"""A command, and the folder of its results."""


@pytest.fixture(scope="module")
def against_torch(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    results = tmp_path_factory.mktemp("results")
    return bench(demo_bundle, *SHORT, "--against", "torch", "--out", results), results


def test_runtime_and_torch_side_by_side(against_torch: Run, demo_bundle: Path) -> None:
    done, results = against_torch
    document = last_line(done)
    assert document["setting"]["stems"] == [1, 2]
    assert set(document["sides"]) == {"cpu", "torch-cpu"}
    for side in document["sides"].values():
        assert set(side["totals"]) == TOTALS
        assert set(side["stages"]) - {"step_of_2"} == STAGES
        positive = {**side["totals"], **side["stages"]}
        positive.pop("further_stem_of_2")  # a difference of two times
        assert all(
            0 < s["min_s"] <= s["low_s"] <= s["median_s"] <= s["high_s"] <= s["max_s"] for s in positive.values()
        )
        assert side["totals"]["first_stem"]["real_time_factor"] == side["totals"]["first_stem"]["median_s"]
        assert side["cold"]["total_s"] > sum(side["cold"][part] for part in ("import_s", "open_s", "first_stem_s"))
        assert side["peak_host_bytes"] > 50e6
    for side in document["sides"].values():
        assert side["stages"]["step"]["samples"] == 2 * 2  # those of the first stem and of the new prompt
    runs = document["sides"]["cpu"]["commands"]
    assert min(runs["first_run_s"], runs["second_run_s"]) > 0.1  # which one is shorter depends on the machine's load
    assert "commands" not in document["sides"]["torch-cpu"]
    floor = document["sides"]["torch-cpu"]["floor"]
    assert set(floor["stages"]) == STAGES - {"decode"}
    assert floor["stages"]["encode"]["seconds"] == pytest.approx(
        floor["stages"]["encode"]["flop"] / floor["flop_per_s"], rel=1e-4
    )
    width, depth, tokens, segments = 96, 3, 1 + 8 * 16, 2  # of one second of video, in the demo's backbone
    linear_layers = 2 * 16 * width**2 * depth * tokens * segments
    assert linear_layers < floor["stages"]["encode"]["flop"] < 1.4 * linear_layers  # plus attention and patches
    against = document["ratios"]["cpu"]["torch-cpu"]
    assert against["snr_db"] > 60
    ours, baseline = (document["sides"][name]["totals"] for name in ("cpu", "torch-cpu"))
    for name in TOTALS - {"further_stem_of_2"}:
        assert against["totals"][name]["median"] == pytest.approx(
            baseline[name]["median_s"] / ours[name]["median_s"], rel=1e-4
        )
    assert json.loads((results / f"cpu-demo-fp32-{machine.cpu_kind()}.json").read_text()) == document
    assert platform.node() not in done.stdout.split()
    assert str(demo_bundle) not in done.stdout
    assert "first stem after decode" in done.stdout


def test_drafts_on_both_sides(both_bundle: Path, tmp_path: Path) -> None:
    left_out = SHORT.index("--steps")
    short = SHORT[:left_out] + SHORT[left_out + 2 :]
    drafts = ("--quality", "draft", "--stems", "1", "--against", "torch", "--out", tmp_path)
    document = last_line(bench(both_bundle, *short, *drafts))
    assert (document["setting"]["quality"], document["setting"]["steps"]) == ("draft", 4)
    assert document["ratios"]["cpu"]["torch-cpu"]["snr_db"] > 60
    # those of the first stem and of the new prompt; PyTorch makes one run for both
    assert {name: side["stages"]["step"]["samples"] for name, side in document["sides"].items()} == {
        "cpu": 8,
        "torch-cpu": 4,
    }
    assert (tmp_path / f"cpu-demo-fp32-draft-{machine.cpu_kind()}.json").is_file()


def test_chart(against_torch: Run) -> None:
    pytest.importorskip("matplotlib")
    _, results = against_torch
    assert (results / f"cpu-demo-fp32-{machine.cpu_kind()}.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(results.iterdir())) == 2


def test_baseline_that_cannot_run_is_named_with_its_reason(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('no torch in /home/someone/here')\n")
    arguments = ("--against", "torch-compile", "--out", tmp_path / "results")
    done = bench(demo_bundle, *SHORT, *arguments, "--json-only", path=tmp_path)
    side = last_line(done)["sides"]["torch-compile-cpu"]
    assert side == {"kind": "torch", "unavailable": "ImportError: no torch in here"}
    assert len(done.stdout.splitlines()) == 1
    assert not done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--random-weights"),
        (("BUNDLE", "--preset", "demo"), "give a BUNDLE, or --preset"),
        (("BUNDLE", "--precision", "fp16"), "a BUNDLE has its own"),
        (("--preset", "demo"), "needs --random-weights"),
        (("--preset", "tiny", "--random-weights"), "unknown preset 'tiny'"),
        (("nowhere",), "there is no bundle 'nowhere'"),
        (("BUNDLE", "--stems", "1,x"), "--stems is '1,x'"),
        (("BUNDLE", "--stems", "65"), "--stems is '65'"),
        (("BUNDLE", "--stems", "0"), "numbers from 1 to 64"),
        (("BUNDLE", "--backend", "abacus"), "abacus: unknown backend 'abacus'"),
        (("BUNDLE", "--backend", "auto,cpu"), "cannot be combined with other backends"),
        (("BUNDLE", "--against", "jax"), "no baseline 'jax'; choose one of torch, torch-compile"),
        (("BUNDLE", "--duration", "0.1"), "duration is 0.1 s"),
        (("BUNDLE", "--video", "none.mp4"), "none.mp4 is not there"),
        (("BUNDLE", "--video", __file__), "cannot be used"),
    ],
)
def test_mistake_is_one_line_and_code_2(
    arguments: tuple[str, ...], message: str, demo_bundle: Path, tmp_path: Path
) -> None:
    given = [str(demo_bundle) if argument == "BUNDLE" else argument for argument in arguments]
    options = ["--json-only", "--out", str(tmp_path / "results"), "--cache", str(tmp_path)]
    done = CliRunner().invoke(main, [*given, *options])
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="POSIX signals")
def test_ctrl_c_ends_the_workers_and_leaves_nothing(demo_bundle: Path, tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path), "OMP_WAIT_POLICY": "PASSIVE"}
    arguments = command(demo_bundle, *SHORT, "--rounds", "5000", "--out", tmp_path / "results")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=env) as running:
        assert running.stderr is not None
        next(line for line in running.stderr if line.startswith("round 1/"))
        workers = children(running.pid)
        running.send_signal(signal.SIGINT)
        said = running.stderr.read().splitlines()
    assert running.returncode == 130
    assert said[-1].startswith("error: interrupted")
    assert list(tmp_path.glob("*selva*")) == []
    assert not (tmp_path / "results").exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def test_short_video_is_repeated(tmp_path: Path) -> None:
    short = write_video(tmp_path / "short.mp4", [numbered(number) for number in range(30)], rate=30)
    assert video_lasting(0.9, short, tmp_path) == short
    longer = video_lasting(2.5, short, tmp_path)
    with av.open(str(longer)) as file:
        assert 2.5 <= file.duration / av.time_base < 2.7


def test_results_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = {"preset": "small_16k", "precision": "fp16", "quality": "best"}
    document = {"ratios": {"cpu": {}, "cuda": {}}, "setting": setting, "machine": {"cpu_kind": "avx2"}}
    assert name_of(document) == "cpu+cuda-small_16k-fp16-avx2"
    old = tmp_path / "cpu+cuda-small_16k-fp16-avx2.json"
    old.write_text("old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("selva_bench.presentation.draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(document, tmp_path)
    assert json.loads(old.read_text()) == document
    assert list(tmp_path.iterdir()) == [old]


def test_results_name_no_folder() -> None:
    assert without_folders("cannot load /a/b/model.onnx, see /c/log") == "cannot load model.onnx, see log"
    assert without_folders("1/2 and bf16/fp32") == "1/2 and bf16/fp32"


def test_peak_memory(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t    2048 kB\n")
    assert peak_memory_bytes(status) == 2 << 20
    assert (peak_memory_bytes(tmp_path / "none") or 0) > 1 << 20


def test_quality_compares_every_way_with_the_first(tmp_path: Path) -> None:
    """In a process of its own: training in one that did this crashed at Ctrl-C, on a CPU with bfloat16."""
    first_second = "import sys; from selva_bench import quality; quality.DURATION_S = 2.0; quality.main(sys.argv[1:])"
    asked = [sys.executable, "-c", first_second, "--scenes", "1", "--out", tmp_path / "quality.json"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ways = json.loads((tmp_path / "quality.json").read_text())["ways"]
    assert "snr_db" not in ways["cpu exact"]["mixed"]
    exact = ways["openvino exact"]
    if "unavailable" not in exact:
        assert all(exact[name]["snr_db"] > 60 and exact[name]["log10_mel_l1"] < 0.01 for name in ("mixed", "composed"))


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("fpu sse4_2 avx2 fma", "avx2"),
        ("avx2 fma avx512f avx512_vnni", "avx512"),
        ("avx2 fma avx512f avx512_bf16", "avx512-bf16"),
        ("avx2 fma avx512f avx512_bf16 amx_tile amx_bf16", "amx"),
        ("avx2", "aarch64"),
    ],
)
def test_the_kind_of_a_cpu_is_its_best_instruction_set(monkeypatch: pytest.MonkeyPatch, flags: str, kind: str) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: f"model name\t: X\nflags\t\t: {flags}\n")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert machine.cpu_kind() == kind
