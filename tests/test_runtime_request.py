"""Limits of a request: each is tested on both sides, and an error states the given value and the allowed ones."""

import numpy as np
import pytest

from selva_bundle.errors import RequestError
from selva_runtime.request import StemRequest, check_span, check_whole

PLAIN = {"negative": None, "seed": 7, "steps": 25, "guidance": 4.5, "takes": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": ["a" * 1000, "b"]},
        {"prompts": ("dog barking",)},
        {"prompts": ["犬がほえる", "l'eau qui goutte"]},
        {"negative": ""},
        {"negative": "music"},
        {"seed": 0},
        {"seed": 2**63 - 1},
        {"seed": np.int64(3)},
        {"steps": 1},
        {"steps": 1000},
        {"guidance": 0},
        {"guidance": 100},
        {"guidance": np.float32(4.5)},
        {"takes": 1},
        {"takes": 64},
        {"solver": "ab2"},
        {"quality": "draft"},
        {"quality": "best", "negative": "music", "solver": "ab2"},
    ],
)
def test_requests_up_to_each_limit_are_taken(options):
    StemRequest(**{"prompts": ["rain"], **PLAIN, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, r"no prompt; say what should be heard, such as 'dog barking'"),
        ({"prompts": "rain"}, r"prompts must be a list of strings; put a single prompt in brackets"),
        ({"prompts": [" "]}, r"a prompt is empty; say what"),
        ({"prompts": ["rain", ""]}, r"a prompt is empty; say what"),
        ({"prompts": [7]}, r"a prompt must be a string, not int"),
        ({"prompts": ["a" * 1001]}, r"the prompt 'a{39}…' has 1001 characters; use at most 1000"),
        ({"prompts": ["rain\n"]}, r"the prompt 'rain\\n' holds control or undecodable characters; remove them"),
        ({"prompts": ["rain\ud800"]}, r"the prompt .* holds control or undecodable"),
        ({"negative": "   "}, r"a prompt is empty"),
        ({"negative": "a" * 1001}, r"the prompt .* has 1001 characters"),
        ({"steps": 0}, r"steps is 0; give a whole number from 1 to 1000"),
        ({"steps": 1001}, r"steps is 1001; "),
        ({"steps": 2.5}, r"steps is 2\.5; "),
        ({"steps": "25"}, r"steps is '25'; "),
        ({"guidance": float("nan")}, r"guidance is nan; give a number from 0 to 100"),
        ({"guidance": -0.1}, r"guidance is -0\.1; "),
        ({"guidance": 100.1}, r"guidance is 100\.1; "),
        ({"guidance": "4"}, r"guidance is '4'; "),
        ({"guidance": b"4"}, r"guidance is b'4'; "),
        ({"guidance": None}, r"guidance is None; "),
        ({"guidance": 10**400}, r"guidance is 1000"),
        ({"solver": "heun"}, r"unknown solver 'heun'; choose one of euler, ab2$"),
        ({"solver": None}, r"unknown solver None; "),
        ({"quality": "fast"}, r"unknown quality 'fast'; choose one of best, draft$"),
        ({"quality": None}, r"unknown quality None; "),
        ({"quality": "draft", "solver": "ab2"}, r"the solver ab2 cannot make a draft, whose steps are jumps; leave"),
        ({"quality": "draft", "negative": ""}, r"a draft has no negative prompt; leave it out, or the quality$"),
        ({"takes": 0}, r"takes is 0; give a whole number from 1 to 64"),
        ({"takes": 65}, r"takes is 65; "),
        ({"seed": -1}, r"seed is -1; give a whole number from 0 to 9223372036854775807"),
        ({"seed": 2**63}, r"seed is 9223372036854775808; "),
        ({"seed": None}, r"seed is None; "),
    ],
)
def test_requests_out_of_range_are_refused(options, message):
    with pytest.raises(RequestError, match=f"^{message}") as caught:
        StemRequest(**{"prompts": ["rain"], **PLAIN, **options})
    assert "\n" not in str(caught.value)


def test_long_prompts_are_quoted_up_to_forty_characters():
    for length, quoted in ((40, "a" * 39 + "\\n"), (41, "a" * 39 + "…")):
        with pytest.raises(RequestError) as caught:
            StemRequest(prompts=["a" * (length - 1) + "\n"], **PLAIN)
        assert f"the prompt '{quoted}' holds" in str(caught.value)


def test_a_span_is_at_least_a_segment_and_at_most_ten_hours():
    for start_s, duration_s in ((0, 0.64), (1e7, 36_000), (0.5, 8), (3, None)):
        check_span(start_s, duration_s, 0.64)
    for start_s, duration_s, message in (
        (0, 0.63, r"duration is 0\.63 s; give a number from 0\.64 to 36000 s"),
        (0, 36_000.1, r"duration is 36000\.1 s; "),
        (-0.1, 8, r"start is -0\.1 s; give a number from 0 to 1e\+07 s"),
        (1.1e7, 8, r"start is 11000000\.0 s; "),
        (float("nan"), 8, r"start is nan s; "),
    ):
        with pytest.raises(RequestError, match=f"^{message}"):
            check_span(start_s, duration_s, 0.64)


def test_whole_numbers():
    check_whole(5, "size", 5, 5)
    check_whole(np.uint8(5), "size", 5, 6)
    for value in (4, 7, 5.0, "5", None):
        with pytest.raises(RequestError, match=r"size is .*; give a whole number from 5 to 6"):
            check_whole(value, "size", 5, 6)
