"""Check the caller's arguments before anything is computed."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from selva_bundle.errors import RequestError
from selva_bundle.lengths import exact_seconds
from selva_bundle.manifest import MAX_GUIDANCE, MAX_STEPS
from selva_bundle.ports import BEST, DRAFT, QUALITIES
from selva_runtime.flow import EULER, SOLVERS
from selva_runtime.text import check_prompt

MAX_TAKES = 64
MAX_START_S = 1e7
MAX_DURATION_S = 36_000
MIN_REGION_S = 0.32
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class StemRequest:
    """The checked arguments of `Session.generate`. `Session.request` makes one, with the bundle's defaults for None.

    Raises:
        RequestError: an argument is out of range, or `prompts` is one string, which would be read letter by letter.
    """

    prompts: Sequence[str]
    negative: str | None
    """None means no negative prompt. An empty text counts as one."""
    seed: int
    steps: int
    guidance: float
    takes: int
    may_be_empty: bool = False
    """An empty prompt is allowed. MMAudio then makes a sound of all that it sees."""
    solver: str = EULER
    """One of `SOLVERS`. A draft has Euler's."""
    quality: str = BEST
    """One of `QUALITIES`."""
    warnings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What the model ignores in each prompt."""

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            raise RequestError("prompts must be a list of strings; put a single prompt in brackets")
        if not self.prompts:
            raise RequestError("no prompt; say what should be heard, such as 'dog barking'")
        for prompt in self.prompts:
            check_prompt(prompt, may_be_empty=self.may_be_empty)
        if self.negative is not None:
            check_prompt(self.negative, may_be_empty=True)
        check_whole(self.seed, "seed", 0, MAX_SEED)
        check_whole(self.steps, "steps", 1, MAX_STEPS)
        check_whole(self.takes, "takes", 1, MAX_TAKES)
        _check_number(self.guidance, "guidance", 0.0, MAX_GUIDANCE)
        if self.solver not in SOLVERS:
            raise RequestError(f"unknown solver {self.solver!r}; choose one of {', '.join(SOLVERS)}")
        if self.quality not in QUALITIES:
            raise RequestError(f"unknown quality {self.quality!r}; choose one of {', '.join(QUALITIES)}")
        if self.quality == DRAFT and self.solver != EULER:
            raise RequestError(f"the solver {self.solver} cannot make a draft, whose steps are jumps; leave it out")
        if self.quality == DRAFT and self.negative is not None:
            raise RequestError("a draft has no negative prompt; leave it out, or the quality")


def check_span(start_s: float, duration_s: float | None, min_duration_s: float) -> None:
    """Check that the model can take this part of a video. A duration of None means to its end.

    Raises:
        RequestError: the start or the duration is out of range.
    """
    if duration_s is not None:
        _check_number(duration_s, "duration", min_duration_s, MAX_DURATION_S, " s")
    _check_number(start_s, "start", 0.0, MAX_START_S, " s")


def check_region(begin_s: float, end_s: float, duration_s: float) -> None:
    """Check that a region lies in a clip of `duration_s`.

    Raises:
        RequestError: it does not, or it is shorter than `MIN_REGION_S`.
    """
    _check_number(begin_s, "begin of the region", 0, duration_s, " s")
    _check_number(end_s, "end of the region", 0, duration_s, " s")
    if exact_seconds(end_s) - exact_seconds(begin_s) < exact_seconds(MIN_REGION_S):
        raise RequestError(f"the region {begin_s:g} to {end_s:g} s is too short; give at least {MIN_REGION_S} s")


def _check_number(value: float, what: str, low: float, high: float, unit: str = "") -> None:
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high:
        raise RequestError(f"{what} is {value!r}{unit}; give a number from {low:g} to {high:g}{unit}")


def check_whole(value: int, what: str, low: int, high: int) -> None:
    """Check that `value` is a whole number from `low` to `high`. `what` names it in the message.

    Raises:
        RequestError: it is not.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise RequestError(f"{what} is {value!r}; give a whole number from {low} to {high}")
