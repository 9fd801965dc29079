"""What a session needs before it starts: files that match their hashes, a core, no PyTorch. How commands start."""

import shutil
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from bundles import add_file, with_broken_graph
from sessions import encode

import selva_runtime
from selva_runtime import BackendError, BundleError, Session
from selva_runtime.backends.cores import usable_cores
from selva_runtime.command import start


def test_a_graph_that_cannot_be_loaded_is_one_line(demo_bundle, tmp_path):
    bundle = with_broken_graph(demo_bundle, tmp_path)
    with pytest.raises(BackendError, match="ONNX Runtime cannot load") as caught:
        encode(Session(bundle))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_cannot_be_read_is_one_line(demo_bundle, tmp_path):
    bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
    add_file(bundle, "tokenizers/clip.json", b"{}")
    with pytest.raises(BundleError, match="is not a tokenizer"):
        Session(bundle)


def test_cores_respect_the_quota(tmp_path):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path) == usable_cores(tmp_path / "absent") >= 1


RUN_WITHOUT_TORCH = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "transformers", "huggingface_hub", "selva_ref", "selva_export"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
import numpy as np
from selva_runtime import Session

session = Session(sys.argv[1], threads=1)
clip = session.encode_frames(np.zeros((25, 3, 64, 64), np.uint8), 1.0)
stems = session.generate(clip, ["rain"], steps=1)
import selva_runtime.command.deliver
print(len(stems[0].audio))
"""


def test_runs_with_torch_blocked(demo_bundle):
    command = [sys.executable, "-c", RUN_WITHOUT_TORCH, str(demo_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "16000\n"), done.stderr


def test_importing_costs_a_host_nothing():
    code = "import sys, selva_runtime; print({'numpy', 'av', 'onnxruntime', 'tokenizers', 'click'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert set(selva_runtime._LAZY) < set(selva_runtime.__all__)
    for name in selva_runtime.__all__:
        assert getattr(selva_runtime, name).__name__ == name


PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS = {script: target.partition(":") for script, target in PROJECT["scripts"].items()}


@pytest.fixture
def sigint_restored():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_version_is_that_of_the_distribution():
    assert selva_runtime.__version__ == version("selva-deploy") == PROJECT["version"]


def test_every_command_starts_in_one_place():
    assert {module for module, _, _ in SCRIPTS.values()} == {"selva_runtime.command.start"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_prints_its_version(sigint_restored, monkeypatch, capsys, script):
    monkeypatch.setattr(sys, "argv", [script, "--version"])
    with pytest.raises(SystemExit) as ended:
        getattr(start, SCRIPTS[script][2])()
    assert (ended.value.code, capsys.readouterr().out) == (0, f"{script} {version('selva-deploy')}\n")


@pytest.mark.parametrize(
    ("command", "extra", "arguments"),
    [
        ("fetch", "export", ""),
        ("export", "export", "--preset demo --random-weights --out bundle"),
        ("train", "train", "extract --videos . --list a.tsv --checkpoints . --out data"),
    ],
)
def test_a_command_without_its_packages_says_what_to_install(command, extra, arguments):
    code = (
        f"import sys; sys.modules['torch'] = None; sys.argv[1:] = {arguments.split()}\n"
        f"from selva_runtime.command.start import {command}; {command}()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = f"error: the module torch is not installed: pip install 'selva-deploy[{extra}]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
