"""Noise, integration, batches and caches in closed form: no bundle, no graph."""

from itertools import chain
from threading import Event

import numpy as np
import pytest

from selva_bundle.errors import BackendError, DeviceMemoryError
from selva_bundle.ports import AVERAGE_STEP, GUIDED_STEP
from selva_runtime.batches import in_batches
from selva_runtime.flow import AB2, EULER, Held, draw_noise, integrate
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
    ended, states = integrate(
        field, noise, conditions, steps=8, guidance=guidance, cancel=cancel, on_step=lambda: calls.append(1)
    )
    assert states is None
    np.testing.assert_allclose(ended, 0.25 + used * (1 - 1 / 8) * (1 - 1 / 16), rtol=1e-5)
    assert len(calls) == 8
    assert [float(feeds["t"][0]) for _, feeds, _ in field.feeds] == [i / 8 for i in range(8)]
    for name, feeds, given in field.feeds:
        assert (name, given) == ("guided_step", cancel)
        assert feeds["text"] is conditions["text"]
        assert {feeds[port].dtype for port in ("t", "dt", "guidance")} == {np.dtype(np.float32)}
        assert {feeds[port].shape for port in ("t", "dt", "guidance")} == {(1,)}


class Linear:
    """An executor whose step follows the flow dx/dt = guidance x: the state e at time 1 from 1 at time 0."""

    loop = None

    def run(self, name, feeds, cancel=None):
        return {"next_latents": feeds["latents"] * (1 + feeds["dt"] * feeds["guidance"])}


def plain(executor, noise, **options):
    """Integrates without guidance, conditions, progress or cancel."""
    return integrate(executor, noise, {}, guidance=1, cancel=None, on_step=lambda: None, **options)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_ab2_steps_reach_the_known_sum(steps):
    """After an Euler step, each step adds dt (1.5 v_n - 0.5 v_{n-1})."""
    v = 3 * (np.arange(steps) / steps) ** 2
    known = (v[0] + (1.5 * v[1:] - 0.5 * v[:-1]).sum()) / steps
    ended, _ = plain(Field(), np.full((2, 3, 4), 0.25, np.float32), steps=steps, solver=AB2)
    np.testing.assert_allclose(ended, 0.25 + known, rtol=1e-6)


def test_ab2_is_of_second_order_and_euler_of_first():
    ones = np.ones((1, 1, 1), np.float32)
    for solver, order in ((EULER, 1), (AB2, 2)):
        errors = [abs(float(plain(Linear(), ones, steps=n, solver=solver)[0][0, 0, 0]) - np.e) for n in (16, 32, 64)]
        rates = np.log2(errors[:-1]) - np.log2(errors[1:])
        np.testing.assert_allclose(rates, order, atol=0.1)


@pytest.mark.parametrize("solver", [EULER, AB2])
def test_held_latents_are_blended_in_before_each_step(solver):
    """Weight 0 changes nothing, whatever the value; weight 1 gives the value; between them lies a line."""
    rng, steps = np.random.default_rng(3), 6
    noise, values = (rng.standard_normal(shape, np.float32) for shape in ((2, 4, 3), (steps, 2, 4, 3)))
    values[:, :, 0] = np.nan
    held = Held(values=values, weights=np.array([0, 1, 0.25, 0], np.float32))
    given = (noise.copy(), values.copy())
    free, free_states = plain(Linear(), noise, steps=steps, solver=solver, keep_states=True)
    ended, states = plain(Linear(), noise, steps=steps, solver=solver, held=held, keep_states=True)
    assert (states.shape, states.dtype) == ((steps, 2, 4, 3), np.float32)
    for row in (0, 3):
        np.testing.assert_array_equal(states[:, :, row], free_states[:, :, row])
        np.testing.assert_array_equal(ended[:, row], free[:, row])
    np.testing.assert_array_equal(states[:, :, 1], values[:, :, 1])
    np.testing.assert_allclose(states[0, :, 2], 0.75 * noise[:, 2] + 0.25 * values[0, :, 2], rtol=1e-6)
    after = states[0, :, 2] * (1 + 1 / steps)
    np.testing.assert_allclose(states[1, :, 2], 0.75 * after + 0.25 * values[1, :, 2], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(free_states[0], noise)
    for before, now in zip(given, (noise, values), strict=True):
        np.testing.assert_array_equal(now, before)


def test_keeping_states_changes_nothing():
    noise = np.ones((1, 2, 3), np.float32)
    for solver in (EULER, AB2):
        ended, states = plain(Linear(), noise, steps=5, solver=solver, keep_states=True)
        np.testing.assert_array_equal(plain(Linear(), noise, steps=5, solver=solver)[0], ended)
        for count in range(1, 5) if solver == EULER else ():
            np.testing.assert_allclose(states[count], (1 + 1 / 5) ** count, rtol=1e-6)


def test_a_backend_with_its_own_loop_runs_that():
    def loop(noise, conditions, **options):
        given.append((noise, conditions, options))
        return noise * 2, noise * 3 if options["keep_states"] else None

    field, given, cancel = Field(), [], Event()
    field.loop, field.read, noise, conditions = loop, lambda *arrays: arrays, np.ones((1, 3, 4), np.float32), {}
    options = {"steps": 9, "cancel": cancel, "on_step": print}
    ended, states = integrate(field, noise, conditions, guidance=0.5, **options)
    np.testing.assert_array_equal(ended, noise * 2)
    assert states is None
    held = Held(values=noise[None], weights=np.ones(3, np.float32))
    asked = {"graph": AVERAGE_STEP, "solver": AB2, "held": held, "keep_states": True}
    np.testing.assert_array_equal(integrate(field, noise, conditions, guidance=2, **options, **asked)[1], noise * 3)
    plainly = {"graph": GUIDED_STEP, "solver": EULER, "held": None, "keep_states": False}
    assert given == [
        (noise, conditions, {**options, **plainly, "guidance": 1.0}),
        (noise, conditions, {**options, **asked, "guidance": 2}),
    ]
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
