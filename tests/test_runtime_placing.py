"""A model that lists what it does not hear warns of prompts that its text tower places there, and only of those."""

import shutil
import threading
import time
from collections import Counter

import numpy as np
import pytest
from bundles import edit
from sessions import encode, few_steps
from workers import STREET

import selva_runtime.session
from selva_runtime import BackendError, Bundle, BundleError, Cancelled, Session
from selva_runtime.backends.choose import make_executor
from selva_runtime.command.deliver import generate_files
from selva_runtime.command.records import GenerateRequest
from selva_runtime.placing import is_heard_not

HEARS, HEARS_NOT = ["dog barking", "bell ringing"], ["heavy rain", "violin"]
LISTS = {"hears": HEARS, "hears_not": HEARS_NOT}


class CountingExecutor:
    """The real executor, with a count of what was loaded and ran, and a way to break it or to pad T5 prompts."""

    def __init__(self, real):
        self._real = real
        self.runs, self.loads, self.loaded, self.broken = Counter(), Counter(), set(), False
        self.text_lengths = ()

    def __getattr__(self, name):
        return getattr(self._real, name)

    def run(self, name, feeds, cancel=None):
        if self.broken:
            raise BackendError("out of order")
        outputs = self._real.run(name, feeds, cancel)
        self.runs[name] += 1
        self.loads[name] += name not in self.loaded
        self.loaded.add(name)
        return outputs

    def release(self, name):
        self.loaded.discard(name)
        self._real.release(name)


@pytest.fixture
def open_session(demo_bundle, tmp_path, monkeypatch):
    """Opens a session of a copy of the bundle, with changes to its manifest, and gives the executor under it."""
    made = []

    def make(*arguments):
        made.append(CountingExecutor(make_executor(*arguments)))
        return made[-1]

    def opened(*, keep_text_towers=None, **entries):
        bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
        edit(bundle, lambda manifest: manifest.update(entries))
        session = Session(bundle, backend="cpu", threads=1, keep_text_towers=keep_text_towers)
        return session, made[-1]

    monkeypatch.setattr(selva_runtime.session, "make_executor", make)
    return opened


def cannot_tell(prompt: str) -> str:
    return f"the demo model cannot tell which of its sounds '{prompt}' means; it hears: dog barking, bell ringing"


@pytest.mark.parametrize(
    ("prompt", "expected"), [((0.0, 0.1), False), ((2.9, 0.0), False), ((0.0, 3.0), True), ((0.0, 2.1), True)]
)
def test_the_nearest_text_decides(prompt, expected):
    hears, hears_not = np.array([[0.0, 0.0], [3.0, 0.0]]), np.array([[0.0, 4.0], [9.0, 9.0]])
    assert is_heard_not(np.array(prompt), hears, hears_not) is expected
    assert not is_heard_not(np.array(prompt), hears, hears_not[:0])


def test_it_warns_of_what_lies_with_what_is_not_heard(open_session):
    session, _ = open_session(**LISTS)
    for prompt in HEARS:
        assert session.prompt_warnings(prompt) == ()
    for prompt in HEARS_NOT:
        assert session.prompt_warnings(prompt) == (cannot_tell(prompt),)
    request = session.request(["violin", "dog barking"])
    assert request.warnings == {"violin": (cannot_tell("violin"),), "dog barking": ()}


def test_one_warning_is_enough(open_session):
    """An unknown word is named only if the prompt has a place among what is heard."""
    session, _ = open_session(**LISTS, words=["rain"])
    assert session.prompt_warnings("heavy rain") == (cannot_tell("heavy rain"),)
    (warning,) = session.prompt_warnings("dog barking")
    assert warning == "the demo model does not know 'dog', 'barking'; it hears: dog barking, bell ringing"


def test_without_the_list_nothing_is_computed(open_session):
    session, executor = open_session(hears=HEARS, words=["rain"])
    assert session.prompt_warnings("rain") == ()
    assert "does not know 'heavy'" in session.prompt_warnings("heavy rain")[0]
    assert not executor.runs


@pytest.mark.parametrize("keep", [False, True])
def test_features_are_computed_once_and_the_tower_is_released_as_usual(open_session, keep):
    session, executor = open_session(keep_text_towers=keep, **LISTS)
    session.prompt_warnings("a dog barks")
    assert executor.runs == {"text_t5": 5}
    session.prompt_warnings("a bell")
    session.prompt_warnings("a dog barks")
    assert executor.runs == {"text_t5": 6}
    assert executor.loaded == ({"text_t5"} if keep else set())
    few_steps(session, encode(session), ["a bell"])
    assert executor.runs["text_t5"] == 6


def test_one_load_of_the_tower_serves_all_prompts_of_a_call(open_session):
    session, executor = open_session(keep_text_towers=False, **LISTS)
    clip = encode(session)
    for prompts in (["violin", "a dog barks", "a bell"], ["rain", "a siren"]):
        executor.loads.clear()
        stems = few_steps(session, clip, prompts, steps=1)
        assert executor.loads["text_t5"] == 1
        for prompt, stem in zip(prompts, stems, strict=True):
            assert stem.warnings == session.prompt_warnings(prompt)
    assert executor.runs["text_t5"] == len([*HEARS, *HEARS_NOT, "a dog barks", "a bell", "rain", "a siren"])


def test_padding_does_not_count(open_session):
    session, executor = open_session(**LISTS)
    tower = session._text.t5
    exact = tower.means(HEARS, None, keep=True)
    executor.text_lengths = (16,)
    padded = tower.means([prompt.upper() for prompt in HEARS], None, keep=True)  # other texts, the same tokens
    assert padded.shape == exact.shape
    assert padded.dtype == np.float32
    np.testing.assert_allclose(padded, exact, rtol=1e-4, atol=1e-5)


def test_words_are_checked_if_the_tower_cannot_run(open_session):
    session, executor = open_session(**LISTS, words=["heavy"])
    executor.broken = True
    (warning,) = session.prompt_warnings("heavy rain")
    assert "does not know 'rain'" in warning
    executor.broken = False
    assert session.prompt_warnings("heavy rain") == (cannot_tell("heavy rain"),)


def test_a_warning_waits_for_the_call_that_runs(open_session):
    session, executor = open_session(**LISTS)
    found = []
    with session._turns.take(None):
        thread = threading.Thread(target=lambda: found.append(session.prompt_warnings("violin")))
        thread.start()
        time.sleep(0.2)
        assert not found
        assert not executor.runs
    thread.join(30)
    assert found == [(cannot_tell("violin"),)]


@pytest.mark.parametrize(
    "call",
    [
        lambda session, stem, clip, cancel: session.request(["violin"], cancel=cancel),
        lambda session, stem, clip, cancel: session.generate(clip, ["violin"], cancel=cancel),
        lambda session, stem, clip, cancel: session.regenerate(
            clip, stem, 0.2, 0.8, seed=1, prompt="violin", cancel=cancel
        ),
    ],
    ids=["request", "generate", "regenerate"],
)
def test_a_call_that_waits_for_its_warnings_can_be_cancelled(open_session, call):
    session, executor = open_session(**LISTS)
    clip = encode(session)
    (stem,) = few_steps(session, clip, ["a bell"], steps=1)
    runs, cancel, raised = executor.runs.copy(), threading.Event(), []

    def run():
        with pytest.raises(Cancelled):
            call(session, stem, clip, cancel)
        raised.append(time.monotonic())

    with session._turns.take(None):
        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(0.2)
        assert thread.is_alive()
        cancel.set()
        set_s = time.monotonic()
        thread.join(10)
        assert raised
        assert raised[0] - set_s < 2  # of a machine that does other things too
    assert executor.runs == runs


def test_a_cancelled_tower_stops_and_is_released(open_session):
    session, executor = open_session(keep_text_towers=False, **LISTS)
    cancel = threading.Event()
    run = executor.run

    def cancelled_after_two(name, feeds, given=None):
        outputs = run(name, feeds, given)
        if executor.runs[name] == 2:
            cancel.set()
        return outputs

    executor.run = cancelled_after_two
    with pytest.raises(Cancelled):
        session.request(["violin"], cancel=cancel)
    assert executor.runs == {"text_t5": 2}
    assert not executor.loaded
    assert session.request(["violin"]).warnings == {"violin": (cannot_tell("violin"),)}


def test_the_command_s_checks_can_be_cancelled(open_session, tmp_path):
    session, executor = open_session(**LISTS)
    cancel = threading.Event()
    cancel.set()
    asked = GenerateRequest(video=STREET, prompts=("violin",), out=tmp_path / "stems", duration_s=1)
    with pytest.raises(Cancelled):
        generate_files(asked, session=session, cancel=cancel)
    assert not executor.runs


@pytest.mark.parametrize(
    ("lists", "error"),
    [
        ({"hears_not": ["rain"]}, "hears_not is given without hears"),
        ({"hears": ["dog"], "hears_not": "rain"}, "hears_not"),
        ({"hears": ["dog"], "hears_not": [1]}, "hears_not is not a string"),
        ({"hears": ["dog"], "hears_not": ["rain"] * 65}, "hears_not has 65 prompts, more than 64"),
        ({"hears": ["dog"] * 65}, "hears has 65 prompts, more than 64"),
        ({"hears": ["dog"], "hears_not": [" "]}, "among what it hears, a prompt is empty"),
        ({"hears": ["dog"], "hears_not": ["\ud800"]}, "among what it hears, the prompt"),
    ],
)
def test_lists_that_are_no_prompts_are_refused(open_session, lists, error):
    with pytest.raises(BundleError, match=error):
        open_session(**lists)


def test_a_bundle_without_the_tower_cannot_have_the_list(mmaudio_bundle, tmp_path):
    bundle = shutil.copytree(mmaudio_bundle, tmp_path / "bundle")
    edit(bundle, lambda manifest: manifest.update(hears=HEARS))
    assert Bundle.open(bundle).manifest.hears == tuple(HEARS)
    edit(bundle, lambda manifest: manifest.update(LISTS))
    with pytest.raises(BundleError, match="hears_not in a bundle of mmaudio"):
        Bundle.open(bundle)


def test_the_lists_are_read_in_order(demo_bundle, tmp_path):
    bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
    edit(bundle, lambda manifest: manifest.update(LISTS))
    manifest = Bundle.open(bundle).manifest
    assert (manifest.hears, manifest.hears_not) == (tuple(HEARS), tuple(HEARS_NOT))
    assert Bundle.open(demo_bundle).manifest.hears_not == ()
