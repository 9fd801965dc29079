"""The comparison that every exported graph must pass: no value that is not finite gets through it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from selva_export import bundle as bundle_module
from selva_export.cli import main
from selva_export.errors import ParityError
from selva_export.signatures import Port, Signature
from selva_export.verify import Parity, compare

X, Y = (Port(name=name, dtype="float32", shape=("n",)) for name in "xy")
SIGNATURE = Signature(name="root", inputs=(X,), outputs=(Y,))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """y = sqrt(x): NaN below zero, infinite at infinity."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    node = helper.make_node("Sqrt", ["x"], ["y"])
    body = helper.make_graph([node], "root", ports[:1], ports[1:])
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "x.onnx")
    return tmp_path / "x.onnx"


def case(x: list[float], reference: list[float]) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    return {"x": np.array(x, np.float32)}, [np.array(reference, np.float32)]


GOOD = case([4.0, 9.0, 16.0], [2.0, 3.0, 4.0])


def test_a_right_graph_passes(graph: Path) -> None:
    (parity,) = compare(graph, SIGNATURE, [GOOD, case([1.0], [1.0])], 1e-6)
    assert isinstance(parity, Parity)
    assert parity.relative_error < 1e-6


@pytest.mark.parametrize(
    "bad",
    [
        case([4.0, -1.0], [2.0, 1.0]),
        case([4.0, np.inf], [2.0, 1.0]),
        case([1e-38], [2.0]),
    ],
    ids=["NaN", "infinite", "wrong"],
)
@pytest.mark.parametrize("order", [1, -1], ids=["last", "first"])
def test_one_bad_size_is_enough(graph: Path, bad: tuple, order: int) -> None:
    with pytest.raises(ParityError, match="graph root differs from the reference by more than"):
        compare(graph, SIGNATURE, [GOOD, bad][::order], 1e-4)


@pytest.mark.parametrize(("name", "passes"), [("audio", True), ("mel", False)])
def test_an_error_of_a_silent_sound_counts_as_in_a_quiet_one(graph: Path, name: str, passes: bool) -> None:
    """2e-8 in a sound of 1e-5 is 2e-3 of it, and 2e-4 of 1e-4; 2e-7 is too much."""
    model = onnx.load(graph)
    model.graph.output[0].name = model.graph.node[0].output[0] = name
    onnx.save(model, graph)
    signature = Signature(name="root", inputs=(X,), outputs=(Port(name=name, dtype="float32", shape=("n",)),))
    quiet = case([1e-10] * 4, [1.002e-5] * 4)
    if passes:
        (parity,) = compare(graph, signature, [quiet], 3e-4)
        assert parity.relative_error == pytest.approx(2e-4, rel=0.01)
    else:
        with pytest.raises(ParityError, match=r"mel 2\.0"):
            compare(graph, signature, [quiet], 3e-4)
    with pytest.raises(ParityError):
        compare(graph, signature, [case([1e-10] * 4, [1.02e-5] * 4)], 3e-4)


def test_another_shape_is_refused(graph: Path) -> None:
    with pytest.raises(ParityError, match="shape"):
        compare(graph, SIGNATURE, [case([4.0, 9.0], [2.0])], 1e-4)


@pytest.mark.parametrize(
    ("reference", "reason"),
    [([2.0, np.nan], "not finite"), ([2.0, np.inf], "not finite"), ([0.0, 0.0], "all zero")],
)
@pytest.mark.parametrize("x", [[4.0, -1.0], [0.0, 0.0]])
def test_a_useless_reference_is_refused(graph: Path, x: list[float], reference: list[float], reason: str) -> None:
    with pytest.raises(ParityError, match=rf"graph root: the reference of y is {reason}: .* weights"):
        compare(graph, SIGNATURE, [GOOD, case(x, reference)], 1e-4)


def test_the_command_ends_with_one_line(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = case([4.0, -1.0], [2.0, 1.0])
    monkeypatch.setattr(bundle_module, "export_part", lambda *_: compare(graph, SIGNATURE, [GOOD, bad], 1e-4))
    result = CliRunner().invoke(main, ["--preset", "demo", "--random-weights", "--out", str(tmp_path / "b")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: graph root differs from the reference by more than 1e-04: y inf\n"
    assert not (tmp_path / "b").exists()
