"""Minimal filtering gives the same numbers as the convolutions that it replaces, and replaces nothing else."""

from __future__ import annotations

import numpy as np
import pytest

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")

from selva_runtime.backends.openvino.minimal_filtering import MIN_FILTER_SIZE, OUTPUTS, filtering, use_minimal_filtering  # noqa: E402

ops = openvino.opset13
WIDTH = MIN_FILTER_SIZE // 3 + 1
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


def model_of(shape, make):
    x = ops.parameter(list(shape), np.float32, name="x")
    return openvino.Model([ops.result(make(x))], [x])


def run(model, x):
    return openvino.Core().compile_model(model, "CPU", FLOAT32)([x])[0]


def convolution(x, weight, dilation=1, stride=1):
    pads = [0] * (weight.ndim - 3) + [dilation * (weight.shape[-1] - 1) // 2]
    axes = [1] * (weight.ndim - 3)
    return ops.convolution(x, ops.constant(weight), [*axes, stride], pads, pads, [*axes, dilation])


def expected(x, weight, dilation=1):
    """The sum over taps and channels, in float64."""
    taps = weight.shape[2]
    pad = dilation * (taps - 1) // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad)))
    return sum(weight[:, :, k] @ padded[:, :, k * dilation : k * dilation + x.shape[2]] for k in range(taps))


def types(model):
    return [node.get_type_name() for node in model.get_ops()]


def kernels(model):
    """Kernel sizes in time of the remaining convolutions."""
    return [n.get_input_shape(1)[-1] for n in model.get_ops() if n.get_type_name() == "Convolution"]


@pytest.mark.parametrize("taps", [3, 4])
def test_tiles_give_what_sliding_gives(taps):
    f, rng = filtering(taps), np.random.default_rng(0)
    filter_, samples = rng.standard_normal(taps), rng.standard_normal(OUTPUTS + taps - 1)
    tile = f.outputs @ ((f.taps @ filter_) * (f.inputs @ samples))
    assert tile == pytest.approx([filter_ @ samples[i : i + taps] for i in range(OUTPUTS)], rel=1e-12)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("taps", "dilation", "length", "batch"),
    [(3, 1, 64, 2), (3, 1, 61, 1), (3, 5, 47, 2), (5, 1, 30, 1), (7, 1, 61, 2), (7, 3, 50, 1), (11, 1, 18, 1)],
)
def test_replaces_a_convolution(taps, dilation, length, batch, flat):
    rng = np.random.default_rng(taps)
    weight = rng.standard_normal((WIDTH + 3, WIDTH, taps), np.float32)
    x = rng.standard_normal((batch, WIDTH, length), np.float32)
    true = expected(x, weight, dilation)
    if flat:  # as in the vocoder: (B, C, 1, T)
        x, weight, true = x[:, :, None], weight[:, :, None], true[:, :, None]
    model = model_of(x.shape, lambda value: convolution(value, weight, dilation))
    assert use_minimal_filtering(openvino, model) == 1
    assert taps not in kernels(model)
    assert np.abs(run(model, x) - true).max() < 1e-5 * np.abs(true).max()


def test_between_two_of_them_channels_stay_last():
    rng = np.random.default_rng(1)
    w1, w2, w3 = (rng.standard_normal((WIDTH, WIDTH, 3), np.float32) / WIDTH for _ in range(3))
    bias = rng.standard_normal((1, WIDTH, 1), np.float32)
    x = rng.standard_normal((2, 32, WIDTH), np.float32)

    def gated(value):
        first = ops.transpose(value, [0, 2, 1])
        a = ops.add(convolution(first, w1), ops.constant(bias))
        hidden = ops.multiply(ops.multiply(a, ops.sigmoid(a)), convolution(first, w3))
        return ops.transpose(convolution(hidden, w2), [0, 2, 1])

    plain, rewritten = model_of(x.shape, gated), model_of(x.shape, gated)
    assert use_minimal_filtering(openvino, rewritten) == 3
    before, after = run(plain, x), run(rewritten, x)
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()
    compiled = openvino.Core().compile_model(rewritten, "CPU", FLOAT32)
    layers = [node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops()]
    assert layers.count("Transpose") == 0


@pytest.mark.parametrize(
    ("shape", "stride", "length"),
    [
        ((WIDTH, WIDTH, 1), 1, 32),
        ((WIDTH, WIDTH, 3), 2, 32),
        ((WIDTH // 2, WIDTH // 2, 3), 1, 32),
        ((WIDTH, WIDTH, 3), 1, 4 * OUTPUTS - 1),
    ],
)
def test_leaves_alone_what_would_not_gain(shape, stride, length):
    weight = np.ones(shape, np.float32)
    model = model_of((1, shape[1], length), lambda value: convolution(value, weight, stride=stride))
    assert use_minimal_filtering(openvino, model, tiles=4) == 0
    assert "Convolution" in types(model)


def test_leaves_a_float16_graph_alone():
    x = ops.parameter([1, WIDTH, 32], np.float16, name="x")
    model = openvino.Model([ops.result(convolution(x, np.ones((WIDTH, WIDTH, 3), np.float16)))], [x])
    assert use_minimal_filtering(openvino, model) == 0
