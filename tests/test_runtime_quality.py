"""Drafts: which graphs a quality runs, with which settings, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bundles import edit, without_best
from click.testing import CliRunner
from gpus import on_host
from sessions import encode, flow_inputs, ramp
from workers import STREET

from selva_bundle.errors import RequestError
from selva_bundle.ports import FLOWS
from selva_ref.pipeline import Pipeline
from selva_runtime import Session
from selva_runtime.command.bed import Bed
from selva_runtime.command.cli import main
from selva_runtime.command.records import GenerateRequest
from selva_runtime.flow import integrate
from selva_runtime.quality import NOT_A_DRAFT

ALL = {name: quality for quality, pair in FLOWS.items() for name in pair}
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def session(both_bundle: Path) -> Session:
    return Session(both_bundle, backend="cpu", threads=1)


@pytest.fixture(scope="module")
def drafts(both_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session that makes nothing else."""
    return Session(without_best(both_bundle, tmp_path_factory.mktemp("drafts")), backend="cpu", threads=1)


@pytest.fixture
def runs(session: Session, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each quality's graphs ran."""
    run, found = session._executor.run, Counter()

    def listen(name, feeds, cancel=None):
        found[ALL.get(name)] += 1
        return run(name, feeds, cancel)

    monkeypatch.setattr(session._executor, "run", listen)
    return found


def test_the_quality_chooses_the_graphs_and_the_steps(session: Session, runs: Counter) -> None:
    clip = encode(session)
    assert session.info.qualities == ("best", "draft")
    (draft,) = session.generate(clip, ["rain"], quality="draft")
    assert (runs["draft"], runs["best"]) == (5, 0)  # the conditions, and four jumps
    assert (draft.request.quality, draft.request.steps, draft.request.guidance) == ("draft", 4, 4.5)
    assert draft.warnings == ()
    runs.clear()
    stems = [session.generate(clip, ["rain"], steps=2, quality=quality)[0] for quality in (None, "best", "draft")]
    assert [stem.request.quality for stem in stems] == ["best", "best", "draft"]
    assert (runs["draft"], runs["best"]) == (3, 6)
    np.testing.assert_array_equal(stems[0].audio, stems[1].audio)
    assert np.abs(stems[1].audio - stems[2].audio).max() > 1e-3
    assert session.request(["rain"]).steps == 25


def test_the_bundle_says_how_many_steps_a_draft_takes(both_bundle: Path, tmp_path: Path) -> None:
    copy = without_best(both_bundle, tmp_path)
    edit(copy, lambda manifest: manifest["flow"].update(steps=3, guidance=[2, 5]))
    session = Session(copy, backend="cpu")
    assert session.request(["rain"]).steps == 3
    with pytest.raises(RequestError, match=r"guidance is 5\.5; a draft takes a number from 2 to 5"):
        session.request(["rain"], guidance=5.5)


def test_a_negative_prompt_needs_the_best(session: Session, drafts: Session) -> None:
    asked = session.request(["rain", "sea"], negative="music", quality="draft", steps=3, guidance=9, solver="ab2")
    assert (asked.quality, asked.steps, asked.guidance, asked.solver) == ("best", 25, 9, "ab2")
    assert {prompt: warnings[0] for prompt, warnings in asked.warnings.items()} == dict.fromkeys(
        ("rain", "sea"), NOT_A_DRAFT
    )
    plain = session.request(["rain"], negative="music", steps=3)
    assert (plain.quality, plain.steps, plain.warnings["rain"]) == ("best", 3, ())
    for quality in (None, "draft"):
        with pytest.raises(RequestError, match="only makes drafts, and a draft has no negative prompt; leave it out"):
            drafts.request(["rain"], negative="music", quality=quality)


def test_a_bundle_of_drafts_alone(session: Session, drafts: Session) -> None:
    assert drafts.info.qualities == ("draft",)
    (stem,) = drafts.generate(encode(drafts), ["rain"], seed=3)
    (same,) = session.generate(encode(session), ["rain"], seed=3, quality="draft")
    assert (stem.request.quality, stem.request.steps) == ("draft", 4)
    np.testing.assert_array_equal(stem.audio, same.audio)
    with pytest.raises(RequestError, match=r"quality is 'best'; this bundle has only draft$"):
        drafts.request(["rain"], quality="best")
    with pytest.raises(RequestError, match=r"quality is 'best'; this bundle has only draft$"):
        drafts.generate_request(encode(drafts), session.request(["rain"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "fast"}, "quality is 'fast'; this bundle has only best and draft"),
        ({"quality": ""}, "quality is ''; this"),
        ({"quality": "draft", "guidance": 0.5}, "guidance is 0.5; a draft takes a number from 1 to 7"),
        ({"quality": "draft", "guidance": 7.1}, "guidance is 7.1; a draft takes"),
        ({"quality": "draft", "guidance": 101}, "guidance is 101; give a number from 0 to 100"),
        ({"quality": "draft", "solver": "ab2"}, "the solver ab2 cannot make a draft"),
        ({"quality": "draft", "steps": 0}, "steps is 0"),
    ],
)
def test_what_a_draft_cannot_do_is_refused(session: Session, options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}"):
        session.request(["rain"], **options)


def test_a_draft_takes_its_limits_and_its_solver(session: Session) -> None:
    for guidance in (1, 7):
        assert session.request(["rain"], quality="draft", guidance=guidance, solver="euler").guidance == guidance


def test_mmaudio_makes_no_drafts(mmaudio_bundle: Path) -> None:
    with pytest.raises(RequestError, match=r"quality is 'draft'; this bundle has only best$"):
        Session(mmaudio_bundle, backend="cpu").request(quality="draft")


@pytest.mark.parametrize(("quality", "steps"), [(None, 3), ("best", 3), ("draft", 25)])
def test_a_bed_under_drafts_has_its_own_steps(session: Session, mmaudio_bundle: Path, quality, steps: int) -> None:
    asked = GenerateRequest(video=STREET, prompts=("rain",), out="", quality=quality, steps=3, backend="cpu")
    stems = session.request(asked.prompts, quality=quality, steps=3)
    assert Bed(asked, stems, mmaudio_bundle)._request.steps == steps


def test_windows_of_drafts_hold_what_is_known_on_any_backend(session: Session, both_bundle: Path) -> None:
    clip = encode(session, 7.0)
    request = session.request(["rain", "sea"], quality="draft")
    ours = session.generate_request(clip, request)
    assert len(session.joins_s(clip)) >= 1
    with on_host(both_bundle) as device:
        theirs = device.generate_request(encode(device, 7.0), request)
    for one, other in zip(ours, theirs, strict=True):
        assert one.audio.shape == (7 * 16000,)
        np.testing.assert_allclose(one.audio, other.audio, **CLOSE)


def test_a_region_of_a_draft_is_a_draft(session: Session, runs: Counter) -> None:
    clip = encode(session, 2.0)
    (stem,) = session.generate(clip, ["rain"], quality="draft")
    again = session.regenerate(clip, stem, 0.5, 1.2, seed=1)
    assert again.request.quality == "draft"
    assert runs["best"] == 0
    changed = np.flatnonzero(again.audio != stem.audio) / 16000
    assert 0.4 < changed.min() < changed.max() < 1.3


@pytest.mark.parametrize("recorded", [True, False])
def test_the_device_keeps_the_two_flows_apart(session: Session, both_bundle: Path, recorded: bool) -> None:
    """Their inputs have the same shapes."""
    noise, conditions = flow_inputs(session)
    options = {"guidance": 2.0, "cancel": None, "on_step": lambda: None, "keep_states": True, "steps": 6}
    with on_host(both_bundle, recorded=recorded) as device:
        for graph in ("guided_step", "average_step", "guided_step"):
            for held in (None, ramp(noise, 6, 1)):
                found, expected = (
                    integrate(each._executor, noise, conditions, graph=graph, held=held, **options)
                    for each in (device, session)
                )
                np.testing.assert_allclose(np.asarray(found[0]), expected[0], **CLOSE)
                np.testing.assert_allclose(found[1], expected[1], **CLOSE)


def test_the_reference_refuses_what_a_draft_cannot_do() -> None:
    with pytest.raises(ValueError, match="unknown quality 'fast'; choose one of best, draft"):
        Pipeline("demo", quality="fast")
    with pytest.raises(ValueError, match="a draft has no negative prompt"):
        Pipeline("demo", quality="draft")(np.zeros((16, 3, 64, 64), np.uint8), "rain", duration_s=0.64, negative="sea")


def test_the_report_says_how_it_was_made(both_bundle: Path, tmp_path: Path) -> None:
    def report(*more: str) -> dict[str, object]:
        asked = [str(STREET), "--bundle", str(both_bundle), "-p", "rain", "-p", "sea", "--duration", "0.64"]
        result = CliRunner().invoke(main, [*asked, "-o", str(tmp_path / "out"), "--json", *more])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    draft, best = report("--quality", "draft"), report("--steps", "2")
    assert (draft["quality"], draft["steps"], draft["warnings"]) == ("draft", 4, [])
    assert (best["quality"], best["steps"]) == ("best", 2)
    instead = report("--quality", "draft", "--steps", "4", "--negative", "music")
    assert (instead["quality"], instead["steps"], instead["warnings"]) == ("best", 25, [NOT_A_DRAFT])
