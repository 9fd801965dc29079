"""The state that a run resumes from: damage is detected, and nothing is loaded from a state that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks.state_attacks import SETTINGS, SmallRun, attack_states

from selva_ref.training.errors import TrainingError
from selva_ref.training.hashed import load_hashed, save_hashed
from selva_ref.weights.checkpoints import file_sha256


def test_resumes_from_a_saved_state(tmp_path: Path) -> None:
    run, fresh = SmallRun(tmp_path / "run"), SmallRun(tmp_path / "fresh", steps=0)
    fresh.path = run.save()
    assert fresh.resume() == 3
    assert all(torch.equal(fresh.trained[name], value) for name, value in run.trained.items())
    again = fresh.optimizer.state_dict()
    assert again["param_groups"] == run.optimizer.state_dict()["param_groups"]
    for index, kept in run.optimizer.state_dict()["state"].items():
        assert all(torch.equal(again["state"][index][name], value) for name, value in kept.items())
    averages = run.averages.state_dict()
    assert all(torch.equal(averages[name], value) for name, value in fresh.averages.state_dict().items())


def test_no_damage_is_resumed_from(tmp_path: Path) -> None:
    """Changes two bytes anywhere, and makes states with a right hash and wrong content."""
    assert attack_states(200, tmp_path) == 200


def edited(run: SmallRun, change: Callable[[dict[str, Any]], object]) -> None:
    state = load_hashed(run.save())
    change(state)
    save_hashed(state, run.path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s["weights"]["a.weight"].fill_(torch.nan), "a.weight holds values that are not finite"),
        (lambda s: s["weights"].pop("b.weight"), "the tensors have other names"),
        (lambda s: s["weights"].update({"a.weight": torch.ones(4, 3)}), r"a.weight is \(4, 3\) torch.float32, not "),
        (lambda s: s["weights"].update({"a.weight": torch.ones(3, 4).half()}), "float16, not .* torch.float32"),
        (lambda s: s.update(step=10**15), "step 1000000000000000 is not from 1 to 9"),
        (lambda s: s.update(step=0), "step 0 is not from 1 to 9"),
        (lambda s: s.update(step=True), "step True is not from 1 to 9"),
        (lambda s: s.update(step=4), "the optimiser or the averages are not at step 4"),
        (lambda s: s["optimizer"].pop(0), "the optimiser has other parameters"),
        (lambda s: s["optimizer"][1].pop("exp_avg"), "the tensors have other names"),
        (lambda s: s["optimizer"][1]["exp_avg_sq"].fill_(-1.0), "mean of squares is negative"),
        (lambda s: s["averages"]["ema_models.1.ema_model.0"].fill_(torch.inf), "ema_model.0 holds values that are not"),
        (lambda s: s["averages"].pop("ema_models.0.step"), "the tensors have other names"),
        (lambda s: s.update(surprise=1), "it has the wrong entries"),
        (lambda s: s.update(settings=[]), "it has the wrong entries"),
    ],
)
def test_a_state_that_does_not_fit(tmp_path: Path, change: Callable[[dict[str, Any]], object], reason: str) -> None:
    run = SmallRun(tmp_path)
    edited(run, change)
    before = {name: value.clone() for name, value in run.trained.items()}
    with pytest.raises(TrainingError, match=rf"state.pt: not the state of a run \(.*{reason}.*\); move it away"):
        run.resume()
    assert all(torch.equal(run.trained[name], value) for name, value in before.items())


def test_a_state_without_a_hash(tmp_path: Path) -> None:
    run = SmallRun(tmp_path)
    state = load_hashed(run.save())
    torch.save(state, run.path)
    with pytest.raises(TrainingError, match=r"it has no hash: damaged, or written by an older version\); move it away"):
        run.resume()
    run.path.write_bytes(b"")
    with pytest.raises(TrainingError, match="it has no hash"):
        run.resume()


def test_a_hashed_state_is_not_unpickled_either(tmp_path: Path) -> None:
    run = SmallRun(tmp_path)
    save_hashed({"step": Path("x")}, run.path)
    with pytest.raises(TrainingError, match="holds something other than tensors and plain values"):
        run.resume()


def test_weights_that_are_not_finite_do_not_replace_a_good_state(tmp_path: Path) -> None:
    run = SmallRun(tmp_path)
    before = file_sha256(run.save())
    run.trained["a.weight"].data[0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"step 3: a.weight holds values that are not finite; not saved; try a low"):
        run.save()
    assert file_sha256(run.path) == before
    assert SETTINGS.steps > run.resume() == 3


@pytest.mark.parametrize("damage", ["flip", "nan", "renamed", "stranger"])
def test_snapshots_of_the_averages(tmp_path: Path, damage: str) -> None:
    run = SmallRun(tmp_path)
    path = run.averages.snapshots()[-1]
    if damage == "flip":
        whole = path.read_bytes()
        path.write_bytes(whole[:400] + bytes([whole[400] ^ 1]) + whole[401:])
    elif damage == "nan":
        kept = load_hashed(path)
        kept["ema_model.0"].fill_(torch.nan)
        save_hashed(kept, path)
    elif damage == "renamed":
        path.rename(path.with_name("1.4.pt"))
    else:
        path.with_name("x.pt").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"\.pt: not a snapshot of .*(remove it|move it away) and run the command"):
        run.averages.average(0.05)
