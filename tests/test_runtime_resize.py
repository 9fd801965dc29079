"""The runtime's resize gives exactly the numbers of torch's antialiased bicubic on uint8."""

import tracemalloc

import numpy as np
import pytest
import torch

from selva_runtime.media import resize as module
from selva_runtime.media.resize import Axis


def resize(planes, size):
    whole = Axis(size, range(size))
    return module.resize(planes, whole, whole)


def torch_resize(planes, size):
    pixels = torch.from_numpy(np.ascontiguousarray(planes))[None]
    return torch.nn.functional.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)[0].numpy()


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        pytest.param(1080, 1920, 224, id="1080p"),
        pytest.param(240, 320, 224, id="slightly down"),
        pytest.param(241, 317, 224, id="odd"),
        pytest.param(57, 33, 224, id="up"),
        pytest.param(500, 100, 224, id="down and up"),
        pytest.param(224, 300, 224, id="height as it is"),
        pytest.param(64, 64, 64, id="nothing to do"),
        pytest.param(1, 1, 64, id="one pixel"),
        pytest.param(1, 999, 64, id="one row"),
        pytest.param(7, 2, 5, id="tiny"),
        pytest.param(64, 8192, 32, id="all 22 bits of the weights"),
    ],
)
@pytest.mark.parametrize("kind", ["noise", "black and white"])
def test_same_numbers_as_torch(height, width, size, kind):
    planes = np.random.default_rng(7).integers(0, 256, (3, height, width), dtype=np.uint8)
    if kind == "black and white":  # overshoots on both sides, so that clamping matters
        planes = (planes > 127).astype(np.uint8) * np.uint8(255)
    np.testing.assert_array_equal(resize(planes, size), torch_resize(planes, size))


def test_takes_interleaved_pixels_without_a_copy():
    pixels = np.random.default_rng(8).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    planes = pixels.transpose(2, 0, 1)
    np.testing.assert_array_equal(resize(planes, 64), resize(np.ascontiguousarray(planes), 64))


def test_memory_is_bounded_for_8k():
    planes = np.zeros((3, 4320, 7680), np.uint8)
    tracemalloc.start()
    try:
        resize(planes, 224)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 << 20
