"""selva-bench gpu-check without a GPU: its control flow with parts that crash, hang and talk, and its arithmetic.

A dry run exercises the real parts, with PyTorch on the CPU and the backend `cuda` in ordinary memory.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from fake_cuda import FakeCuda

from selva_bench import torch_side
from selva_bench.cli import main
from selva_bench.gpu import device_checks, hardware, kernels, parity, parts, processes
from selva_bench.gpu.floor import CARDS, WORK, Card, Work, floor_s, floors
from selva_bench.gpu.report import times
from selva_bench.gpu.results import clean
from selva_bench.gpu.setting import Setting, UnavailableError
from selva_runtime.backends.gpu import cuda_device
from selva_runtime.backends.gpu.cuda_device import CudaDevice

SHORT = ["--duration", "1", "--steps", "2", "--rounds", "1"]
FAKE_CHILD = """
import json, os, signal, subprocess, sys, time
folder = os.environ["GPU_CHECK_TEST"]
name = sys.argv[1]
def say(message):
    print(json.dumps(message), flush=True)
if name == "probe":
    for need in ("gpu", "cuda-python", "torch", "triton", "cuda-graphs", "checkout", "fp32", "fp16"):
        say([need, ""])
    say(["onnxruntime", "there is no ONNX Runtime in /opt/secret/lib"])
    say(["engines", "there is no TensorRT"])
    say(["name", "Fake 4090"])
else:
    with open(f"{folder}/ran", "a") as ran:
        ran.write(name + "\\n")
    say(["before", {"ok": True, "seconds": 0.5}])
    with open(f"{folder}/plan.json") as plan:
        what = json.load(plan).get(name, "work")
    if what == "crash":
        print("the last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        say(["process", other.pid])
        time.sleep(600)
    if what == "wrong":
        say(["after", {"ok": False, "error": "2 of 5 values are wrong"}])
    elif what != "work":
        say({"error": what})
        sys.exit(1)
say({"done": True})
"""


def setting(**changes: object) -> Setting:
    plain = {"device": "cpu", "preset": "demo", "bundles": {}, "is_given": True, "duration_s": 8.0, "steps": 25}
    return Setting(**{**plain, "rounds": 1, "threads": 1, **changes})


class Fake:
    """The command with parts that do what a plan says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "results.json"
        self.plan({})

    def plan(self, plan: dict[str, str]) -> None:
        (self.folder / "plan.json").write_text(json.dumps(plan))
        (self.folder / "ran").write_text("")

    def run(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["gpu-check", "--out", str(self.out), *SHORT, *arguments])
        return done.exit_code, done.output

    @property
    def ran(self) -> list[str]:
        return (self.folder / "ran").read_text().split()

    @property
    def parts(self) -> dict:
        return json.loads(self.out.read_text())["parts"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setenv("GPU_CHECK_TEST", str(tmp_path))
    monkeypatch.setattr(processes, "_CHILD", FAKE_CHILD)
    return Fake(tmp_path)


def test_a_later_run_goes_on_with_what_is_missing_or_failed(fake: Fake) -> None:
    some = ("--only", "device,device-class,floor,latency:torch,parity:cuda-fp16")
    fake.plan({"device-class": "wrong", "floor": "no such card", "latency:torch": "crash"})
    code, said = fake.run(*some)
    assert (code, fake.ran) == (1, ["device", "device-class", "floor", "latency:torch"])
    assert {name: part["status"] for name, part in fake.parts.items()} == {
        "device": "ok",
        "device-class": "failed",
        "floor": "failed",
        "latency:torch": "crashed",
        "parity:cuda-fp16": "unavailable",
    }
    assert "1 of 2 rows failed" in said
    assert fake.parts["floor"]["reason"] == "no such card"
    assert fake.parts["parity:cuda-fp16"]["reason"] == "there is no ONNX Runtime in lib"
    fake.plan({})
    code, said = fake.run(*some)
    assert (code, fake.ran) == (0, ["device-class", "floor", "latency:torch"])
    assert "device: done before" in said
    assert [part["status"] for part in fake.parts.values()] == ["ok"] * 4 + ["unavailable"]


def test_results_of_another_setting_or_another_file_are_left_alone(fake: Fake) -> None:
    fake.run("--only", "device")
    before = fake.out.read_bytes()
    code, said = fake.run("--only", "device", "--steps", "9")
    assert (code, said) == (2, f"error: {fake.out} has results of another steps (2); choose another --out\n")
    assert fake.out.read_bytes() == before
    fake.out.write_text('{"check": "another"}')
    code, said = fake.run("--only", "device")
    assert (code, said) == (2, f"error: {fake.out} has no results of this check; choose another --out\n")


def test_a_crash_costs_only_its_part(fake: Fake) -> None:
    fake.plan({"device": "crash"})
    assert fake.run("--only", "device,floor")[0] == 1
    crashed = fake.parts["device"]
    assert crashed["reason"] == "its process ended with SIGSEGV; its last line: the last words"
    assert crashed["rows"] == {"before": {"ok": True, "seconds": 0.5}}
    assert fake.parts["floor"]["status"] == "ok"


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="POSIX process groups")
def test_a_hang_costs_only_its_part_and_leaves_no_process(fake: Fake) -> None:
    fake.plan({"device": "hang"})
    assert fake.run("--only", "device,floor", "--limit", "1")[0] == 1
    part = fake.parts["device"]
    assert (part["status"], part["reason"]) == ("timeout", "it took more than 1 s; allow more with --limit")
    assert "before" in part["rows"]
    assert part["seconds"] < 20
    assert not is_running(part["rows"]["process"])
    assert fake.parts["floor"]["status"] == "ok"


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="POSIX signals")
def test_ctrl_c_keeps_what_is_done(fake: Fake) -> None:
    fake.plan({"floor": "hang"})
    start = (
        f"from selva_bench.gpu import processes; processes._CHILD = {FAKE_CHILD!r}; "
        "from selva_runtime.command.start import bench; bench()"
    )
    command = [sys.executable, "-c", start, "gpu-check", "--out", fake.out, *SHORT, "--only", "device,floor,tests"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        while "floor" not in fake.ran:
            assert running.poll() is None
        while "device" not in running.stdout.readline():
            pass
        running.send_signal(signal.SIGINT)
        said = running.stderr.read()
    assert (running.returncode, said) == (130, "error: interrupted: no partial file was left\n")
    assert {name: part["status"] for name, part in fake.parts.items()} == {"device": "ok", "floor": "interrupted"}
    assert "before" in fake.parts["floor"]["rows"]
    assert not is_running(fake.parts["floor"]["rows"].get("process", -1))
    assert [path.name for path in fake.folder.iterdir() if "partial" in path.name] == []


def test_parts_are_selected_and_listed(fake: Fake) -> None:
    fake.run("--only", "latency, device", "--skip", "latency:torch-max-autotune")
    assert fake.ran == ["device", "latency:torch", "latency:torch-cuda-graphs"]
    code, said = fake.run("--only", "abacus")
    assert (code, said) == (2, "error: there is no part 'abacus'; --list names them\n")
    code, said = fake.run("--list")
    listed = dict(line.split(maxsplit=1) for line in said.splitlines())
    assert (code, list(listed)) == (0, list(parts.PARTS))
    assert (listed["device"], listed["latency:tensorrt"]) == ("can run", "there is no TensorRT")


def test_without_a_gpu_it_is_one_line_and_code_2(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        processes,
        "_CHILD",
        FAKE_CHILD.replace('"gpu", ', "").replace('say(["name"', 'say(["gpu", "none here"]); say(["name"'),
    )
    code, said = fake.run()
    assert (code, said) == (2, "error: gpu-check needs an NVIDIA GPU: none here\n")
    assert not fake.out.exists()


def test_results_name_no_host_user_folder_or_serial_number(fake: Fake) -> None:
    who = f"{platform.node()} {getpass.getuser()} {Path.home()}/x C:\\Users\\someone\\y.dll GPU-8a7f0000-1111-2222"
    fake.plan({"device": who})
    fake.run("--only", "device")
    text = fake.out.read_text()
    assert fake.parts["device"]["reason"] == "… … x y.dll …"
    for secret in (platform.node(), str(fake.folder), "/opt", "someone", "8a7f"):
        assert secret not in text
    assert clean({"a": ["1/2 of fp16/fp32", 0.123456789]}) == {"a": ["1/2 of fp16/fp32", 0.123457]}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cuda_device, "_import_cuda", fake.module)
    return fake


def checked(only: str | None = None) -> dict[str, dict]:
    found: dict[str, dict] = {}
    wanted = [check for check in device_checks.CHECKS if only in (None, check.__name__)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "CHECKS", wanted)
        parts._device_class(setting(device="cuda"), found.__setitem__)
    return found


def test_the_device_class_on_the_fake_gpu(cuda: FakeCuda) -> None:
    found = checked()
    assert len(found) == 10
    assert {name: row.get("error") for name, row in found.items() if not row["ok"]} == {}
    cuda.check()


def changed(method: str, change: object) -> dict[str, object]:
    """A device class whose method is changed: `change` gets the real one."""
    return {method: change(getattr(CudaDevice, method))}


def swapped(real: Callable) -> Callable:
    """A copy that runs the copies in pairs, the second one first."""
    waiting = []

    def copy(*copied: object) -> None:
        waiting.append(copied)
        if len(waiting) == 2:
            while waiting:
                real(*waiting.pop())

    return copy


BROKEN = {
    "memory": changed("allocate", lambda real: lambda self, nbytes: real(self, nbytes) + 8),
    "copies": changed("copy", lambda real: lambda self, to, start, nbytes: real(self, to, start, max(1, nbytes - 1))),
    "order": changed("copy", swapped),
    "staging": changed("wait", lambda real: lambda self, mark: None),
    "recording": changed("record", lambda real: lambda self, work: (work(), real(self, work))[1]),
    "recording_amid_garbage": changed("record", lambda real: lambda self, work: lambda: None),
    "kernels": {"kernels": property(lambda self: SimpleNamespace(blend=print, advance=print))},
    "streams": changed("after", lambda real: lambda self, stream: None),
    "refusals": changed("check_pointer", lambda real: lambda self, pointer: None),
}


@pytest.mark.parametrize("check", BROKEN)
def test_each_check_of_the_device_notices_a_broken_one(check: str, cuda: FakeCuda, monkeypatch) -> None:
    for method, broken in BROKEN[check].items():
        monkeypatch.setattr(CudaDevice, method, broken)
    assert not checked(check)[check]["ok"]


def test_floors() -> None:
    card = Card(name="x", flop_per_s=100.0, bytes_per_s=10.0)
    assert floor_s(Work(flop=300.0, nbytes=20.0), card) == 3
    assert floor_s(Work(flop=300.0, nbytes=50.0), card) == 5
    assert floor_s(Work(flop=300.0, nbytes=50.0), card, stems=4) == 12
    work = {"encode": Work(flop=700.0), "select": Work(flop=100.0, nbytes=30.0), "step": Work(flop=200.0)}
    assert floors(work, card, steps=5, stems=4) == {
        "encode": 7,
        "select": 3,
        "step": 2,
        "step_of_4": 8,
        "new_prompt": 3 + 5 * 2,
        "first_stem": 7 + 3 + 5 * 2,
        "4_stems": 7 + 4 + 5 * 8,
    }


@pytest.mark.parametrize(
    ("card", "agreed_ms"),
    [
        ("NVIDIA H100 80GB HBM3", {"text": 0.3, "encode": 11, "select": 0.6, "step": 4.4 / 25, "vocode": 1.2}),
        ("NVIDIA GeForce RTX 4090", {"text": 1, "encode": 55, "select": 2.7, "step": 15 / 25, "vocode": 6}),
    ],
)
def test_floors_of_small_16k(card: str, agreed_ms: dict[str, float]) -> None:
    found = floors(WORK["small_16k", 8.0], CARDS[card], 25, 4)
    assert {name: 1e3 * found[name] for name in agreed_ms} == pytest.approx(agreed_ms, rel=0.03)


def test_an_unknown_card_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, dict] = {}
    small = setting(preset="small_16k")
    monkeypatch.setattr(hardware.machine, "cpu_model", lambda: "NVIDIA GeForce RTX 4090 Laptop GPU")
    hardware.floor(small, found.__setitem__)
    rates = found["measured"]
    assert found["card"] == {**rates, "source": "measured"}
    assert 1e8 < rates["flop_per_s"] < 1e14
    assert found["seconds"]["encode"] == max(9.0e12 / rates["flop_per_s"], 37e9 / rates["bytes_per_s"])

    def no_torch(*_: object, **__: object) -> None:
        raise ImportError("no torch")

    monkeypatch.setattr(hardware, "_measured", no_torch)
    with pytest.raises(UnavailableError, match=r"Laptop GPU is not in the table of cards.*no torch"):
        hardware.floor(small, found.__setitem__)
    monkeypatch.setattr(hardware.machine, "cpu_model", lambda: "NVIDIA L4")
    for measure in (no_torch, lambda name, **_: Card(name=name, flop_per_s=9.0, bytes_per_s=9.0)):
        monkeypatch.setattr(hardware, "_measured", measure)
        hardware.floor(small, found.__setitem__)
        sheet = {"name": "NVIDIA L4", "flop_per_s": 121e12, "bytes_per_s": 300e9}
        assert found["card"] == {**sheet, "source": "data sheet"}


def test_the_table_has_targets_and_distances_to_the_floor() -> None:
    row = {"median_s": 0.022, "low_s": 0.02, "high_s": 0.03}
    document = {
        "setting": {"gpu": "NVIDIA H100", "preset": "small_16k", "duration_s": 8.0, "steps": 25, "is_gpu_result": True},
        "parts": {
            "floor": {"rows": {"seconds": {"encode": 0.011}}},
            "latency:cuda": {
                "rows": {"cold": {"stages": {"encode": 0.5}, "totals": {}}, "warm": {"stages": {"encode": row}}}
            },
        },
    }
    *_, line = times(document)
    assert " ".join(line.split()) == "encode 25.0 ms 11.0 ms 22.0 ms [20.0 ms to 30.0 ms] ×2.0; cold 500 ms"
    document["setting"] |= {"preset": "demo", "is_gpu_result": False}
    lines = list(times(document))
    assert lines[1] == "A DRY RUN ON THE CPU: this is not a GPU result."
    assert "25.0 ms" not in lines[-1]


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matmul"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "matmul"),
        ("sm80_xmma_fprop_implicit_gemm_f16f16_f16f32", "convolution"),
        ("void at::native::conv_depthwise2d_forward_kernel<1>", "convolution"),
        ("pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits>", "attention"),
        ("void (anonymous namespace)::softmax_warp_forward<float>", "attention"),
        ("void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>", "copies"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add>", "elementwise"),
        ("triton_poi_fused_convolution_sin_3", "elementwise"),
        ("triton_tem_fused_mm_7", "matmul"),
        ("spin_kernel", "other"),
    ],
)
def test_kernels_by_kind(kernel: str, kind: str) -> None:
    assert kernels.kind_of(kernel) == kind


def test_kinds_are_summed() -> None:
    found = kernels.by_kind([("gemm_a", 1.0, 2), ("memcpy", 5.0, 1), ("gemm_b", 2.0, 3)])
    assert list(found.items()) == [
        ("copies", {"seconds": 5.0, "launches": 1}),
        ("matmul", {"seconds": 3.0, "launches": 5}),
    ]


def test_a_profile_is_of_one_warm_round(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    a, said, found = torch.ones(64, 64), [], {}

    def work() -> None:
        said.append("round")
        torch.mm(a, a)

    side = SimpleNamespace(round=work, warm_up=lambda: said.append("warm-up"))
    monkeypatch.setattr(kernels, "open_side", lambda *_: side)
    kernels.profile_kernels(setting(), found.__setitem__, "torch")
    assert said == ["round", "warm-up", "round"]
    assert found["kinds"]["matmul"]["launches"] == 1
    side.round = lambda: None
    with pytest.raises(UnavailableError, match="saw no kernel"):
        kernels.profile_kernels(setting(), found.__setitem__, "torch")


def test_errors_of_graphs_and_stems() -> None:
    wanted = {"tokens": np.full((2, 3), 2.0, np.float32)}
    session = SimpleNamespace(_executor=SimpleNamespace(run=lambda name, feeds: {"tokens": wanted["tokens"] * 1.01}))
    close = parity._error(session, "graph", {}, wanted, 2e-2)
    assert close == {"ok": True, "relative_error": pytest.approx(0.01, rel=1e-4), "most": 2e-2}
    assert not parity._error(session, "graph", {}, wanted, 1e-3)["ok"]
    wave = np.sin(np.arange(1000, dtype=np.float32))
    assert parity._least_snr([wave, wave * 1.01], [wave, wave]) == {
        "ok": True,
        "snr_db": pytest.approx(40, abs=0.01),
        "least": 35,
    }
    assert not parity._least_snr([wave, wave * 1.1], [wave, wave])["ok"]
    assert not parity._least_snr([wave[1:]], [wave])["ok"]
    assert parity._least_snr([wave], [wave])["ok"]


def test_a_captured_function_copies_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    recorded = []

    def record(call):
        output = call()
        recorded.append(output)
        return lambda: output.copy_(call()), output

    monkeypatch.setattr(torch_side, "_record", record)
    captured = torch_side.Captured(lambda x, scale, both: x * scale + both[0] - both[1])
    one, two = torch.ones(3), torch.full((3,), 5.0)
    for x, scale in ((one, 2.0), (two, 2.0), (one, 3.0), (two, 3.0), (torch.ones(4), 1.0)):
        rest = (torch.full_like(x, 7.0), torch.ones_like(x))
        found = captured(x, scale, rest)
        assert found.tolist() == (x * scale + 6).tolist()
        assert all(found.data_ptr() != each.data_ptr() for each in recorded)
    assert len(recorded) == 3  # by shape and number
    ((_, inputs, _), *_) = captured._graphs.values()
    before = [each._version for each in inputs]
    rest = (torch.ones(3), torch.ones(3))
    captured(one, 2.0, rest)
    captured(torch.zeros(3), 2.0, rest)
    assert [each._version - version for each, version in zip(inputs, before, strict=True)] == [2, 1, 1]


def test_captured_networks_make_the_same_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    replays = []

    def record(call):
        output = call()

        def replay():
            replays.append(output)
            output.copy_(call())

        return replay, output

    monkeypatch.setattr(torch_side, "_record", record)
    options = setting(duration_s=1.0, steps=3).options(None)
    plain, captured = (
        torch_side.TorchSide(f"{label}-cpu", options, cycle(("rain", "a dog barks")))
        for label in ("torch", "torch-cuda-graphs")
    )
    first, second = plain.first_stem(), plain.first_stem()
    np.testing.assert_allclose(captured.first_stem(), first, atol=1e-6)
    np.testing.assert_allclose(captured.first_stem(), second, atol=1e-6)
    assert np.abs(first - second).max() > 1e-3
    assert len(replays) == 2 * (6 + 3)  # six networks, and the step three times


def dry_run(out: Path, *arguments: object, path: Path | None = None) -> tuple[subprocess.CompletedProcess[str], dict]:
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    if path is not None:
        env["PYTHONPATH"] = os.pathsep.join([str(path), env.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-m", "selva_bench", "gpu-check", "--device", "cpu", "--out", out, *SHORT, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env, timeout=300, check=False)
    return done, json.loads(out.read_text())["parts"]


def test_a_dry_run_of_the_real_parts(demo_bundle: Path, demo_bundle_fp16: Path, tmp_path: Path) -> None:
    bundles = ("--bundle", demo_bundle, "--bundle", demo_bundle_fp16)
    names = "device,device-class,bundle:fp16,parity:cuda-fp16,latency:cuda"
    done, found = dry_run(tmp_path / "results.json", *bundles, "--only", names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "A DRY RUN ON THE CPU: this is not a GPU result." in done.stdout
    assert {part["status"] for part in found.values()} == {"ok"}
    assert len(found["parity:cuda-fp16"]["rows"]) == 1 + 7 + 1
    assert found["parity:cuda-fp16"]["rows"]["stem"]["snr_db"] < 80  # or float32 was compared with itself
    warm = found["latency:cuda"]["rows"]["warm"]
    assert {"first_stem", "4_stems", "new_prompt"} <= set(warm["totals"])
    assert warm["stages"]["step"]["samples"] == 2  # a mean over each run: steps of one launch are reported together
    text = (tmp_path / "results.json").read_text()
    assert platform.node() not in text
    assert str(demo_bundle) not in text


def test_with_torch_alone_the_reference_and_the_device_class_run(tmp_path: Path) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript", "polygraphy", "tensorrt", "tensorrt_rtx", "matplotlib"):
        (tmp_path / "none" / name).mkdir(parents=True)
        (tmp_path / "none" / name / "__init__.py").write_text("raise ImportError('not installed')\n")
    names = "device-class,latency:torch"
    done, found = dry_run(tmp_path / "results.json", "--only", names, path=tmp_path / "none")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: part["status"] for name, part in found.items()} == dict.fromkeys(names.split(","), "ok")
    cold = found["latency:torch"]["rows"]["cold"]["stages"]
    assert set(cold) == {"decode", "encode", "text", "select", "conditions", "step", "vocode"}
