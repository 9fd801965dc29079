"""How much a frame of a mask keeps: its alpha, its labels or its brightness.

- A frame with an alpha channel that is not opaque everywhere is a cut-out: the alpha is the mask.
- A frame with a palette of colours shows labels, as video segmentation data sets and SAM 2 write them: black is the
  background, and every other colour is kept whole.
- In any other frame the brightest of red, green and blue counts, so that a pure red matte keeps like a white one.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from av.video.frame import VideoFrame

from selva_runtime.media.masks.filling import Keep
from selva_runtime.media.pictures import Pictures, upright


def matte(frame: VideoFrame, pictures: Pictures) -> Keep:
    """Return the mask that an upright frame shows, uint8 (H, W).

    Raises:
        MediaError: the pixel format cannot be converted.
    """
    layout = frame.format
    if layout.has_palette or any(component.is_alpha for component in layout.components):
        planes, matrix = pictures.planes(frame, "rgba")
        planes, alpha = planes[:3], planes[3:]
        if alpha.min() < 255:
            planes = alpha
        elif layout.has_palette and is_coloured(frame):
            planes = (planes > 0) * np.uint8(255)
    else:
        planes, matrix = pictures.planes(frame)
    keep: Keep = reduce(np.maximum, upright(planes, matrix))  # on interleaved planes faster than max
    return keep


def is_coloured(frame: VideoFrame) -> bool:
    """Whether the palette of a frame has a colour that is not a shade of grey."""
    palette = np.frombuffer(memoryview(frame.planes[1]), np.uint32, count=256)
    blue, green, red = (palette >> shift & 255 for shift in (0, 8, 16))
    return bool(((red != green) | (green != blue)).any())
