"""What a session needs before it starts: files that match their hashes, a core, and no PyTorch."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
from test_runtime_session import encode

import selva_runtime
from selva_runtime import BackendError, BundleError, Session
from selva_runtime.backends.cores import usable_cores


def with_broken_graph(demo_bundle, folder):
    """A copy whose backbone is not a graph, although its hash is right."""
    return with_content(demo_bundle, folder, lambda manifest: manifest["graphs"]["video_backbone"]["file"], b"no graph")


def with_content(demo_bundle, folder, file_of, content):
    """A copy with other content in one file, and the right hash for it."""
    bundle = shutil.copytree(demo_bundle, folder / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    name = file_of(manifest)
    (bundle / name).write_bytes(content)
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def test_a_graph_that_cannot_be_loaded_is_one_line(demo_bundle, tmp_path):
    bundle = with_broken_graph(demo_bundle, tmp_path)
    with pytest.raises(BackendError, match="ONNX Runtime cannot load") as caught:
        encode(Session(bundle))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_cannot_be_read_is_one_line(demo_bundle, tmp_path):
    bundle = with_content(demo_bundle, tmp_path, lambda manifest: manifest["text"]["clip"]["tokenizer"], b"{}")
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
