"""Noise, integration, batches and caches in closed form: no bundle, no graph."""

from itertools import chain
from threading import Event

import numpy as np
import pytest

from selva_bundle.errors import BackendError, DeviceMemoryError
from selva_runtime.batches import in_batches
from selva_runtime.flow import draw_noise, integrate
from selva_runtime.lru_cache import LruCache


def test_the_noise_is_the_documented_draw():
    sequence = np.random.SeedSequence(entropy=7, spawn_key=(2, 1))
    expected = np.random.Generator(np.random.PCG64(sequence)).standard_normal((5, 20), dtype=np.float32)
    np.testing.assert_array_equal(draw_noise(7, 2, 1, 5, 20), expected)


def test_a_seed_always_gives_these_numbers():
    """Noise must not change with a version of NumPy or of this code, or a user's seed would sound different."""
    drawn = draw_noise(7, 0, 0, 250, 20)
    assert (drawn.shape, drawn.dtype) == ((250, 20), np.float32)
    np.testing.assert_allclose(drawn[0, :3], [0.923578143119812, -0.2937104403972626, -2.299987554550171], rtol=1e-6)
    first = {float(draw_noise(*place, 1, 1)[0, 0]) for place in ((7, 0, 0), (7, 0, 1), (7, 1, 0), (8, 0, 0))}
    assert len(first) == 4


class Field:
    """An executor whose step follows the flow dx/dt = guidance * 3 t²."""

    loop = None

    def __init__(self):
        self.feeds = []

    def run(self, name, feeds, cancel=None):
        self.feeds.append((name, feeds, cancel))
        speed = feeds["guidance"] * 3 * feeds["t"] ** 2
        return {"next_latents": feeds["latents"] + feeds["dt"] * speed}


@pytest.mark.parametrize(("guidance", "used"), [(0.0, 1.0), (1.0, 1.0), (4.5, 4.5)])
def test_euler_steps_reach_the_known_sum(guidance, used):
    """The sum of 3 t² over n steps, from t = 0 on, is (1 - 1/n)(1 - 1/2n)."""
    field, noise, cancel, calls = Field(), np.full((2, 3, 4), 0.25, np.float32), Event(), []
    conditions = {"text": np.ones(1, np.float32)}
    ended = integrate(
        field, noise, conditions, steps=8, guidance=guidance, cancel=cancel, on_step=lambda: calls.append(1)
    )
    np.testing.assert_allclose(ended, 0.25 + used * (1 - 1 / 8) * (1 - 1 / 16), rtol=1e-5)
    assert len(calls) == 8
    assert [float(feeds["t"][0]) for _, feeds, _ in field.feeds] == [i / 8 for i in range(8)]
    for name, feeds, given in field.feeds:
        assert (name, given) == ("guided_step", cancel)
        assert feeds["text"] is conditions["text"]
        assert {feeds[port].dtype for port in ("t", "dt", "guidance")} == {np.dtype(np.float32)}
        assert {feeds[port].shape for port in ("t", "dt", "guidance")} == {(1,)}


def test_a_backend_with_its_own_loop_runs_that():
    def loop(noise, conditions, **options):
        given.append((noise, conditions, options))
        return noise * 2

    field, given, cancel = Field(), [], Event()
    field.loop, noise, conditions = loop, np.ones((1, 3, 4), np.float32), {}
    ended = integrate(field, noise, conditions, steps=9, guidance=0.5, cancel=cancel, on_step=print)
    np.testing.assert_array_equal(ended, noise * 2)
    assert given == [(noise, conditions, {"steps": 9, "guidance": 1.0, "cancel": cancel, "on_step": print})]
    assert field.feeds == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_value_that_is_not_finite_is_an_error(bad):
    field, spoiled = Field(), np.zeros((1, 3, 4), np.float32)
    spoiled[0, 1, 2] = bad
    with pytest.raises(BackendError, match=r"^graph guided_step returned values that are not finite; try lower"):
        integrate(field, spoiled, {}, steps=2, guidance=1, cancel=None, on_step=lambda: None)
    assert len(field.feeds) == 1


@pytest.mark.parametrize(
    ("few_sizes", "cases"),
    [
        (False, ((0, 3, []), (1, 3, [1]), (6, 3, [3, 3]), (7, 3, [3, 3, 1]), (2, 9, [2]))),
        (True, ((0, 3, []), (1, 3, [1]), (8, 4, [4, 4]), (7, 9, [4, 2, 1]), (7, 3, [2, 2, 2, 1]))),
    ],
)
def test_batches_cover_every_row_once(few_sizes, cases):
    for total, limit, sizes in cases:
        done = in_batches(total, limit, lambda rows: range(rows.start, rows.stop), pytest.fail, few_sizes=few_sizes)
        assert [len(rows) for rows in done] == sizes
        assert [row for rows in done for row in rows] == list(range(total))


class Memory:
    """Simulates limited memory: rows from `start` on fit only `fits` at a time, rows before it in any number."""

    def __init__(self, start, fits):
        self.start, self.fits, self.tried, self.warned = start, fits, [], []

    def run(self, rows):
        self.tried.append((rows.start, rows.stop))
        assert len(self.tried) < 20
        if rows.stop > self.start and rows.stop - rows.start > self.fits:
            raise DeviceMemoryError("full")
        return list(range(rows.start, rows.stop))


@pytest.mark.parametrize(
    ("start", "tried", "warned"),
    [
        (0, [(0, 8), (0, 4), (0, 2), (2, 4), (4, 6), (6, 8), (8, 9)], [4, 2]),
        (5, [(0, 8), (0, 4), (4, 8), (4, 6), (6, 8), (8, 9)], [4, 2]),
    ],
)
def test_batches_get_smaller_where_memory_ends_and_stay_so(start, tried, warned):
    memory = Memory(start, fits=2)
    done = in_batches(9, 8, memory.run, memory.warned.append)
    assert list(chain.from_iterable(done)) == list(range(9))
    assert (memory.tried, memory.warned) == (tried, warned)


@pytest.mark.parametrize("start", [0, 2])
def test_a_row_that_does_not_fit_alone_is_an_error(start):
    memory = Memory(start, fits=0)
    with pytest.raises(DeviceMemoryError, match="full"):
        in_batches(4, 4, memory.run, memory.warned.append)
    assert memory.warned == [2, 1]
    assert memory.tried[-1] == (start, start + 1)


def test_the_most_recently_used_are_kept():
    recent = LruCache(2)
    recent["a"], recent["b"] = 1, 2
    assert recent["a"] == 1  # now b is the oldest
    recent["c"] = 3
    assert ("a" in recent, "b" in recent, "c" in recent) == (True, False, True)
    recent["a"] = 4  # now c is the oldest
    recent["d"] = 5
    assert ("c" in recent, recent["a"], recent["d"]) == (False, 4, 5)
