"""Every stage of the demo's training runs, resumes exactly, and leaves checkpoints that load and export normally."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import selva_ref
from selva_ref.demo import fitting, selection
from selva_ref.demo import run as run_module
from selva_ref.demo.evaluation import report, student
from selva_ref.demo.evaluation.ablations import train_joint, train_no_encoder, train_no_silence, train_no_sup
from selva_ref.demo.evaluation.events import Score
from selva_ref.demo.evaluation.report import evaluate
from selva_ref.demo.fitting import Fit, draws, fit
from selva_ref.demo.models.text import UNKNOWN
from selva_ref.demo.origin import origin_sha256
from selva_ref.demo.plan import QUICK
from selva_ref.demo.run import PRESET, DemoRun
from selva_ref.demo.selection import draw_pair, make_mixes, pooled
from selva_ref.demo.student import TEACHER_STEPS
from selva_ref.demo.world.clip_bank import segments_of
from selva_ref.demo.world.kinds import KINDS
from selva_ref.demo.world.scenes import SAMPLES
from selva_ref.training.errors import TrainingError
from selva_ref.weights.checkpoints import read_checkpoint

RESULTS = (
    "text_t5",
    "text_clip",
    "vae",
    "vocoder",
    "listener",
    "teacher",
    "mmaudio",
    "video_encoder",
    "generator",
    "student",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two steps per stage."""
    run = DemoRun(folder=tmp_path_factory.mktemp("demo"), plan=QUICK, seed=0)
    for stage in ("text", "vae", "vocoder", "voicing", "listener", "teacher", "base", "stage1", "stage2", "student"):
        getattr(run, stage)()
    return run


def load(run, part, name=None):
    return run.load(selva_ref.build(part, PRESET), name or part)


def weights(run, part, name=None):
    return load(run, part, name).state_dict()


def test_every_stage_leaves_its_checkpoint_and_no_state(run):
    assert all(run.file(name).exists() for name in RESULTS)
    assert not list(run.folder.glob("*.state"))


def test_stage_one_moves_the_selection_alone(run):
    before, after = (
        weights(run, "teacher"),
        weights(run, "video_encoder"),
    )
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved
    assert all(name.startswith("vfeat_extractor.spatial_attn_agg.") for name in moved)


def test_stage_two_moves_sync_projection_and_modulations_alone(run):
    before, after = weights(run, "generator", "mmaudio"), weights(run, "generator")
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any(name.startswith("sync_input_proj.") for name in moved)
    assert all(name.startswith("sync_input_proj.") or ".adaLN_modulation." in name for name in moved)
    assert not any("clip_block" in name or "text_block" in name for name in moved)


def test_the_student_moves_stage_twos_parts_and_its_own_embeddings(run):
    before, after = weights(run, "generator"), weights(run, "student")
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    base = weights(run, "generator", "mmaudio")
    stage2 = {name for name, value in base.items() if not torch.equal(value, before[name])}
    assert moved
    assert moved <= stage2
    assert set(after) > set(before)
    (paths,) = run.folder.glob("paths_*.npy")
    assert np.load(paths).shape[:2] == (QUICK.paths, TEACHER_STEPS + 1)


def test_what_is_not_shown_should_be_silent(run, monkeypatch):
    """The target of an absent text is what the teacher sees in a still picture; of others, in their clip."""
    targets = []
    monkeypatch.setattr(selection, "distillation_loss", lambda seen, wanted: targets.append(wanted) or seen.sum())
    student, t5 = load(run, "video_encoder"), run.captions[0]
    for share in (0.0, 1.0):
        rng = np.random.default_rng(5)
        selection.selection_loss(student, run.mixes, run.clean, run.prompts, t5, rng, 6, share)
    rows = np.random.default_rng(5).integers(len(run.mixes), size=6)
    torch.testing.assert_close(targets[0], run.clean[run.mixes.targets(rows)])
    torch.testing.assert_close(targets[1], run.mixes.still(rows))
    assert not torch.equal(targets[0], targets[1])


def test_absent_kinds_are_never_shown(run):
    rows = np.tile(np.arange(len(run.mixes)), 100)
    asked = run.mixes.absent_kinds(np.random.default_rng(0), rows)
    assert not (asked[:, None] == run.mixes.kinds[rows // 2]).any()
    assert 0.3 < (asked == UNKNOWN).mean() < 0.5
    assert set(asked) == {*range(len(KINDS)), UNKNOWN}


def test_silent_rows_have_the_latent_of_silence(run):
    features, asked = torch.full((2, 96, 4), 7.0), np.array([3, UNKNOWN])
    examples = run.examples(torch.zeros(5, 96, 4), np.array([4, 3, 2, 1, 0]), (features, asked))
    silence = run.posterior(torch.zeros(1, SAMPLES))[0, 0]
    assert len(examples) == 7
    assert examples.kinds[-2:].tolist() == asked.tolist()
    assert (examples.sync[-2:] == 7).all()
    for row in (5, 6):
        torch.testing.assert_close(examples.mean[examples.items[row]], silence)
    assert not torch.allclose(examples.mean[examples.items[4]], silence)
    assert (run.silent_rows(70, 0.3), run.silent_rows(70, 0.9), run.silent_rows(70, 0.0)) == (30, 70, 0)


def test_the_teacher_sees_a_mix_as_its_tokens_say(run):
    """Pooling stored tokens gives the same as the whole teacher, up to half precision."""
    teacher = load(run, "teacher")
    mixes = make_mixes(teacher, run.bank, 2, 6, run.folder / "two.npy")  # seed 6: a clip alone, then a pair
    rows = np.arange(4)
    assert mixes.sources[0, 0] == mixes.sources[0, 1]
    assert mixes.kinds[1, 0] != mixes.kinds[1, 1]
    np.testing.assert_array_equal(mixes.targets(rows), mixes.sources.ravel())
    pair = draw_pair(run.bank, np.random.default_rng([6, 2, 1]))
    assert [pair.left, pair.right] == mixes.sources[1].tolist()
    shown = torch.stack((run.bank.frames[mixes.sources[0, 0]], pair.frames(run.bank)))
    with torch.no_grad():
        kept = pooled(teacher, mixes.tokens_of(rows))
        whole = teacher(segments_of(shown)).flatten(1, 2)
    assert kept.shape == (4, 96, PRESET.video.width)
    torch.testing.assert_close(kept[::2], whole, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(kept[2], kept[3])  # two targets, one picture


def test_a_folder_of_another_run_is_refused(run):
    with pytest.raises(TrainingError, match="another plan, seed, world or network"):
        DemoRun(folder=run.folder, plan=QUICK, seed=1)


def test_a_folder_of_another_world_is_refused(run, monkeypatch):
    DemoRun(folder=run.folder, plan=QUICK, seed=0)
    monkeypatch.setattr(run_module, "origin_sha256", lambda: "another")
    with pytest.raises(TrainingError, match="another plan, seed, world or network"):
        DemoRun(folder=run.folder, plan=QUICK, seed=0)


@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("demo/world/sounds.py", "ATTACK_S = 0.002", "ATTACK_S = 0.003", True),
        ("demo/world/kinds.py", '"rubber ball"', '"beach ball"', True),
        ("demo/models/teacher.py", "RARE_WEIGHT = 4.0", "RARE_WEIGHT = 5.0", True),
        ("model/presets.py", "depth=3", "depth=4", True),
        ("data/tokenizers/t5_demo.json", "barking", "berking", True),
        ("demo/world/sounds.py", "ATTACK_S = 0.002", "ATTACK_S = 0.002  # seconds", False),
        ("demo/world/sounds.py", "How the objects of the demo's world sound", "The sounds", False),
        ("demo/world/scenes.py", "Draws two to five times", "Draws times", False),
    ],
)
def test_the_origin_is_another_if_the_world_or_a_network_is(tmp_path, file, old, new, counts):
    package = Path(selva_ref.__file__).parent
    for folder in ("demo/world", "demo/models", "model", "data/tokenizers"):
        shutil.copytree(package / folder, tmp_path / folder)
    assert origin_sha256(tmp_path) == origin_sha256()
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    assert (origin_sha256(tmp_path) != origin_sha256()) == counts


def test_prompts_name_their_kind(run):
    plain = run.prompts.plain(np.arange(len(KINDS)))
    assert [run.prompts.kinds[row] for row in plain] == list(range(len(KINDS)))
    drawn = run.prompts.draw(np.random.default_rng(0), np.array([3, 3, 5]))
    assert [run.prompts.kinds[row] for row in drawn] == [3, 3, 5]


def _trained(path, steps, stop_after=None):
    torch.manual_seed(0)
    network = nn.Linear(4, 1)
    done = []

    def loss(step):
        if stop_after is not None and len(done) == stop_after:
            raise KeyboardInterrupt
        done.append(step)
        x = torch.from_numpy(draws(3, "line", step).standard_normal((8, 4), dtype=np.float32))
        return (network(x)[:, 0] - x.sum(1)).square().mean()

    with suppress(KeyboardInterrupt):
        fit("line", network, loss, Fit(steps=steps, rate=1e-2, warmup=2, save_s=0.0), path)
    return network, done


def test_interrupted_training_resumes_exactly(tmp_path):
    whole, _ = _trained(tmp_path / "whole", 20)
    _, first = _trained(tmp_path / "cut", 20, stop_after=7)
    resumed, rest = _trained(tmp_path / "cut", 20)
    assert first == list(range(7))
    assert rest == list(range(7, 20))
    assert torch.equal(whole.weight, resumed.weight)
    assert not (tmp_path / "cut").exists()


def test_the_time_left_is_reported(capsys, monkeypatch):
    """A run is cut after four of ten steps. A step takes a minute, so five minutes are left after the fifth."""
    now_s = 1000.0
    monkeypatch.setattr(fitting, "time", SimpleNamespace(monotonic=lambda: now_s))
    console = fitting.Console("stage", 10)
    reports = []
    for step, took_s in [(4, 60), (5, 60), (6, 5), (7, 1), (8, 1), (9, 1)]:
        now_s += took_s
        console.step(step, 2.0)
        reports.append(capsys.readouterr().err)
    assert reports == [
        "stage: step 5/10  loss 2.0000  5.0 min left\n",
        "stage: step 6/10  loss 2.0000  4.0 min left\n",
        "",  # within 15 s of the last line
        "",
        "",
        "stage: step 10/10  loss 2.0000  0.0 min left\n",
    ]


def test_an_evaluation_scores_true_sounds_as_perfect_and_noise_as_nothing(run, monkeypatch):
    find, judge, answered = report.find, report.judge_of(run), []
    monkeypatch.setattr(report, "judge_of", lambda run: judge)
    monkeypatch.setattr(report, "find", lambda *asked: answered.append(find(*asked)) or answered[0])
    text = evaluate(run)
    found = json.loads((run.folder / "evaluation.json").read_text())
    assert {"mixed", "composed"} == set(found["true_sounds"])
    for truth in found["true_sounds"].values():
        assert truth["f1"] >= 0.98
        assert truth["leak"] <= 0.05
    assert all(row["f1"] < 0.6 for row in found["rows"]["full"].values())  # two steps teach nothing
    assert "| mixed | full |" in text
    assert all((run.folder / name).stat().st_size > 5000 for name in ("evaluation.png", "cases.png", "worst.png"))
    assert set(found["pairs"]["ball"]) == set(KINDS) - {"ball"}  # seven scenes of two stems, in the quick plan
    assert found["kinds"]["ball"]["stems"] == 7
    assert "| ball and hammer in one scene | F1 |" in text
    monkeypatch.setattr(report, "make_stems", None)
    monkeypatch.setattr(report, "find", lambda *asked: answered[0])
    again = evaluate(run)  # from the cached scores
    assert again == text


def test_a_student_is_compared_with_many_steps(run, monkeypatch):
    for name, value in (("STEPS", 4), ("JUMPS", (1,)), ("SEEDS", 2), ("VARIED", 2), ("DRAFT", 1), ("SCENES", 1)):
        monkeypatch.setattr(student, name, value)
    text = student.evaluate_student(run)
    found = json.loads((run.folder / "student_evaluation.json").read_text())
    assert found["stems"] == 4
    assert found["rows"]["teacher, Euler 4"]["log10_mel_l1"] == 0
    assert found["rows"]["student, 1 jump"]["latent_frechet"] > 0
    teacher, pupil = found["diversity"].values()
    bars = {bar["name"]: bar["value"] for bar in found["bars"]}
    assert bars["diversity, by the teacher's"] == pytest.approx(pupil / teacher, abs=1e-3)
    assert bars["evaluations, by the teacher's"] == 1 / 8
    assert [bar["case"] for bar in found["bars"] if bar["name"] == "silent"] == [
        "student, 1 jump, a known kind that is not shown",
        "student, 1 jump, a word for something unknown",
    ]
    assert (run.folder / "student_evaluation.md").read_text() == f"{text}\n"
    assert "| student, 1 jump | 1 |" in text


def test_ablations_train_the_named_parts(run):
    train_no_sup(run)
    assert read_checkpoint(run.file("video_encoder_no_sup"))["sup_text_feat"].shape[0] == 0
    train_no_silence(run)
    with_silence, without = weights(run, "video_encoder"), weights(run, "video_encoder", "video_encoder_no_silence")
    assert any(not torch.equal(with_silence[name], without[name]) for name in without)
    train_no_encoder(run)
    train_joint(run)
    start, joint = (
        weights(run, "teacher"),
        weights(run, "video_encoder", "video_encoder_joint"),
    )
    backbone = [name for name in start if "spatial_attn_agg" not in name]
    assert all(torch.equal(start[name], joint[name]) for name in backbone)
    assert any(not torch.equal(start[name], joint[name]) for name in set(start) - set(backbone))


def test_later_scores_of_ablations_join_the_report(tmp_path, monkeypatch):
    score = Score(hits=9, heard=10, true=10, leaks=1, others=10, offset_s=0.09, right_kind=1, stems=2)
    rows = {name: {"mixed": score, "composed": score} for name in ("full", "joint, one stage")}
    court = SimpleNamespace(all_scores=lambda run: rows)
    monkeypatch.setattr(report.EvaluationData, "of", lambda run: court)
    before = {"seed": 3, "rows": {}, "kinds": {}, "pairs": {}, "cases": []}
    (tmp_path / "evaluation.json").write_text(json.dumps(before))
    text = report.evaluate_ablations(SimpleNamespace(folder=tmp_path))
    after = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(after["rows"]) == set(rows)
    assert after["rows"]["joint, one stage"]["mixed"]["f1"] == 0.9
    assert {**after, "rows": {}} == before
    assert "| composed | joint, one stage | 0.90 |" in text
    assert (tmp_path / "evaluation.md").read_text() == f"{text}\n"
