"""The inputs and outputs of every graph, and the check that a manifest's graphs have them.

Backends allocate memory and bind addresses from the manifest's ports, so every port is compared with this table when
a bundle is opened: names, element types, ranks, axes, and sizes that must be equal in several places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from selva_bundle.lengths import SequenceRules

_AXES = frozenset({"prompts", "tokens", "stems", "2*stems", "segments", "latent", "clip"})
"""Axes whose size may differ from run to run."""
_MAX_SIZE = 1_000_000
Size = int | str
"""A number if the size is fixed, the name of an axis if it may vary. "2*stems" is a multiple of an axis."""

# The graphs of a bundle, in the order in which data flows through them.
TEXT_T5 = "text_t5"
TEXT_CLIP = "text_clip"
VIDEO_BACKBONE = "video_backbone"
VIDEO_SELECT = "video_select"
VIDEO_POOL = "video_pool"
VIDEO_CLIP = "video_clip"
CONDITIONS = "conditions"
GUIDED_STEP = "guided_step"
AVERAGE_CONDITIONS = "average_conditions"
AVERAGE_STEP = "average_step"
DECODER = "decoder"

BEST, DRAFT = QUALITIES = ("best", "draft")
FLOWS = {BEST: (CONDITIONS, GUIDED_STEP), DRAFT: (AVERAGE_CONDITIONS, AVERAGE_STEP)}
"""Quality → its two graphs: the conditions, and the step. "best" follows the guided flow, "draft" takes a few jumps
along its mean velocities. Both pairs have the same ports. A bundle has one of them or both."""
STEPS = tuple(step for _, step in FLOWS.values())

SELVA, MMAUDIO = SYSTEMS = ("selva", "mmaudio")
"""What a bundle is: SelVA makes a stem of what a prompt selects, MMAudio one track of all that it sees."""

_CONDITIONS_OF_TEXT = (
    "sync float32 stems SYNC SYNC_WIDTH; text float32 stems CLIP_TOKENS CLIP_WIDTH; "
    "negative_text float32 1 CLIP_TOKENS CLIP_WIDTH; use_negative bool 1"
)
_POSITIONS = "latent_positions float32 latent; clip_positions float32 clip"
_CONDITIONS = (
    "sync_f float32 stems SYNC WIDTH; clip_f float32 2*stems clip WIDTH; "
    "text_f float32 2*stems CLIP_TOKENS WIDTH; global_f float32 2*stems WIDTH; "
    "latent_rope float32 latent 2 HALF_HEAD; clip_rope float32 clip 2 HALF_HEAD"
)
_STEP = (
    "latents float32 stems latent LATENT_WIDTH; t float32 1; dt float32 1; guidance float32 1; "
    f"sync_row int64 2*stems latent; {_CONDITIONS}",
    "next_latents float32 stems latent LATENT_WIDTH",
)
_SELVA_PORTS = {
    TEXT_T5: (
        "ids int64 prompts tokens; mask bool prompts tokens",
        "features float32 prompts tokens T5_WIDTH",
    ),
    TEXT_CLIP: (
        "ids int64 prompts CLIP_TOKENS",
        "features float32 prompts CLIP_TOKENS CLIP_WIDTH",
    ),
    VIDEO_BACKBONE: (
        "segments uint8 segments SEGMENT_FRAMES 3 IMAGE_SIZE IMAGE_SIZE",
        "tokens float32 segments TOKENS_PER_SEGMENT VIDEO_WIDTH",
    ),
    VIDEO_SELECT: (
        "tokens float32 segments TOKENS_PER_SEGMENT VIDEO_WIDTH; text float32 stems tokens T5_WIDTH; "
        "mask bool stems tokens",
        "sync float32 stems SYNC SYNC_WIDTH",
    ),
    CONDITIONS: (f"{_CONDITIONS_OF_TEXT}; {_POSITIONS}", _CONDITIONS),
    GUIDED_STEP: _STEP,
    AVERAGE_CONDITIONS: (f"{_CONDITIONS_OF_TEXT}; {_POSITIONS}", _CONDITIONS),
    AVERAGE_STEP: _STEP,
    DECODER: (
        "latents float32 stems latent LATENT_WIDTH",
        "audio float32 stems SAMPLES",
    ),
}
_MMAUDIO_PORTS = {
    TEXT_CLIP: _SELVA_PORTS[TEXT_CLIP],
    VIDEO_BACKBONE: _SELVA_PORTS[VIDEO_BACKBONE],
    VIDEO_POOL: (
        "tokens float32 segments TOKENS_PER_SEGMENT VIDEO_WIDTH",
        "sync float32 segments SYNC_PER_SEGMENT SYNC_WIDTH",
    ),
    VIDEO_CLIP: (
        "frames uint8 clip 3 CLIP_IMAGE_SIZE CLIP_IMAGE_SIZE",
        "features float32 clip IMAGE_WIDTH",
    ),
    CONDITIONS: (
        f"{_CONDITIONS_OF_TEXT}; use_sync bool 1; clip float32 stems clip IMAGE_WIDTH; use_clip bool 1; {_POSITIONS}",
        _CONDITIONS,
    ),
    GUIDED_STEP: _STEP,
    DECODER: _SELVA_PORTS[DECODER],
}
PORTS = {SELVA: _SELVA_PORTS, MMAUDIO: _MMAUDIO_PORTS}
"""System → graph → (inputs, outputs), each as "name dtype size size …", separated by semicolons. A size is a number, an
axis, or a name in capitals. The bundle chooses a size in capitals, and it is the same wherever that name is used."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output of a graph."""

    name: str
    dtype: str
    """NumPy name of the element type."""
    shape: tuple[Size, ...]

    def sizes(self, axes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape with the sizes of `axes` filled in."""
        return tuple(factor * axes[axis] if axis else factor for factor, axis in map(split_axis, self.shape))


def split_axis(size: Size) -> tuple[int, str]:
    """Split a size into factor and axis: "2*stems" → (2, "stems"); "stems" → (1, "stems"); 16 → (16, "")."""
    if isinstance(size, int):
        return size, ""
    factor, _, axis = size.rpartition("*")
    return int(factor or 1), axis


def check_ports(
    system: str, graph: str, inputs: tuple[Port, ...], outputs: tuple[Port, ...], sizes: dict[str, Size]
) -> None:
    """Compare the ports of a graph of a `system` with the table.

    `sizes` holds the known sizes in capitals. Sizes that are new here are added to it.

    Raises:
        ValueError: a port differs. The message names it and says what was expected.
    """
    for ports, expected, kind in zip((inputs, outputs), PORTS[system][graph], ("inputs", "outputs"), strict=True):
        rows = [row.split() for row in expected.split("; ")]
        names = [name for name, *_ in rows]
        if [port.name for port in ports] != names:
            found = ", ".join(port.name for port in ports)
            raise ValueError(f"the {kind} of graph {graph} are {found or 'none'}, not {', '.join(names)}")
        for port, (_, dtype, *shape) in zip(ports, rows, strict=True):
            where = f"{port.name} of graph {graph}"
            if port.dtype != dtype:
                raise ValueError(f"{where} is {port.dtype:.40}, not {dtype}")
            if len(port.shape) != len(shape):
                raise ValueError(f"{where} has {len(port.shape)} axes, not {len(shape)}")
            for found_size, wanted in zip(port.shape, shape, strict=True):
                _check_size(where, found_size, wanted, sizes)


def _check_size(where: str, found: Size, wanted: str, sizes: dict[str, Size]) -> None:
    expected: Size
    if wanted.isupper():
        if wanted not in sizes and (isinstance(found, str) or not 1 <= found <= _MAX_SIZE):
            raise ValueError(f"{where} has an axis of {found!r:.40}, not a size from 1 to {_MAX_SIZE}")
        expected = sizes.setdefault(wanted, found)
    else:
        expected = wanted if wanted in _AXES else int(wanted)
    if found != expected:
        raise ValueError(f"{where} has an axis of {found!r:.40}, not {expected!r}")


def known_sizes(sequence: SequenceRules, clip_tokens: int) -> dict[str, Size]:
    """Return the sizes in capitals that follow from the manifest's `sequence` and the length of a CLIP prompt."""
    return {
        "CLIP_TOKENS": clip_tokens,
        "SEGMENT_FRAMES": sequence.segment_frames,
        "IMAGE_SIZE": sequence.image_size,
        "CLIP_IMAGE_SIZE": sequence.clip_image_size,
        "SYNC_PER_SEGMENT": sequence.sync_per_segment,
        "SYNC": f"{sequence.sync_per_segment}*segments",
        "LATENT_WIDTH": sequence.latent_width,
        "SAMPLES": f"{2 * sequence.hop}*latent",
    }
