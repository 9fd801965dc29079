"""`selva-generate --list` shows what is installed, what is complete, and what can run."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import selva_runtime
from selva_runtime import BackendError
from selva_runtime.backends import choose as backends
from selva_runtime.command.cli import main

SHIPPED = Path(selva_runtime.__file__).with_name("demo_bundle")


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Runs the command in tmp_path, as if no bundle were named, where no GPU backend runs."""

    def refuse(*_):
        raise BackendError("no GPU; buy one")

    monkeypatch.delenv("SELVA_BUNDLE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backends, "CudaDevice", refuse)
    monkeypatch.setattr(backends, "has_nvidia_gpu", lambda: False)
    for name in ("cuda", "tensorrt"):
        monkeypatch.setitem(backends.MAKERS, name, refuse)

    def run(*arguments):
        result = CliRunner().invoke(main, ["--list", *map(str, arguments)])
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout

    return run


def altered(folder: Path) -> Path:
    """A copy of the demo bundle with one flipped bit in its decoder."""
    shutil.copytree(SHIPPED, folder)
    graph = folder / "graphs" / "decoder.onnx"
    content = bytearray(graph.read_bytes())
    content[-1] ^= 1
    graph.write_bytes(content)
    return graph


def test_every_bundle_is_found_once_with_its_state(listed, tmp_path, monkeypatch):
    graph = altered(tmp_path / "mine")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "a site"}')
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "manifest.json").write_text('{"format": "selva-bundle", ')
    monkeypatch.setenv("SELVA_BUNDLE", str(tmp_path / "absent"))
    found = json.loads(listed("--bundle", tmp_path / "mine", "--json"))["bundles"]
    assert [(Path(one["path"]).name, one["found_by"], one["preset"]) for one in found] == [
        ("mine", "--bundle", "demo"),
        ("absent", "SELVA_BUNDLE", None),
        ("demo_bundle", "the demo", "demo"),
        ("torn", "working directory", None),
    ]
    assert [len(one["problems"]) for one in found] == [1, 1, 0, 1]
    assert found[0]["problems"][0].startswith(f"{graph} was altered")
    assert found[1]["problems"][0].startswith("there is no bundle ")
    assert "is damaged" in found[3]["problems"][0]


def test_backends_and_versions(listed):
    report = json.loads(listed("--json"))
    found = {one["name"]: one for one in report["backends"]}
    assert list(found) == ["auto", "cpu", "openvino", "cuda", "tensorrt"]
    assert found["auto"] == {"name": "auto", "runs": True, "reason": "CPU (no NVIDIA GPU found)"}
    assert found["cuda"] == {"name": "cuda", "runs": False, "reason": "no GPU; buy one"}
    assert report["versions"]["selva-deploy"] == selva_runtime.__version__
    assert {"python", "numpy", "onnxruntime"} < set(report["versions"])


def test_a_person_reads_one_line_for_each(listed):
    lines = listed().splitlines()
    assert lines[0] == f"bundle {SHIPPED} (the demo): demo, trained weights: every hash is right"
    assert lines[1] == "backend auto: runs: CPU (no NVIDIA GPU found)"
    assert lines[-2] == "backend tensorrt: does not run: no GPU; buy one"
    assert lines[-1].startswith("versions: python 3.")
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        ([], "Missing option '-o"),
        (["-p", "x", "-o", "x"], "no video; give one"),
        (["v.mp4", "-o", "x"], "no prompt; say what should be heard"),
        (["v.mp4", "-p", "x"], "Missing option '-o"),
    ],
)
def test_required_options_are_required_without_list(arguments, missing):
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"error: {missing}")
