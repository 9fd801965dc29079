"""The student's evaluation: closed forms of its distances, and a student without training equals Euler's steps."""

import json

import pytest
import torch
from click.testing import CliRunner

from selva_ref.demo.command import demo
from selva_ref.demo.evaluation import bed, report, scores, student
from selva_ref.demo.evaluation.events import Score
from selva_ref.demo.evaluation.student import Row, closeness, diversity, frechet, student_rows, student_table
from selva_ref.demo.models.listener import Listener
from selva_ref.demo.run import PRESET
from selva_ref.demo.world.scenes import composed_scene
from selva_ref.model.average import AverageGenerator
from selva_ref.model.mel import MelSpectrogram
from selva_ref.weights.loading import load_part


def vectors(seed: int, count: int = 400) -> torch.Tensor:
    """(count, 25, 4): channels that correlate."""
    x = torch.randn(count, 25, 4, generator=torch.Generator().manual_seed(seed))
    return x @ torch.tensor([[1.0, 0.5, 0, 0], [0, 1, 0, 0], [0, 0.2, 2, 0], [0, 0, 0, 0.1]])


def test_the_frechet_distance_of_known_distributions():
    a = vectors(0)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a, a + torch.tensor([3.0, 0, 4, 0])) == pytest.approx(25, abs=1e-4)
    centred = a - a.flatten(0, 1).mean(0)
    assert frechet(centred, 3 * centred) == pytest.approx(4 * float(torch.cov(a.flatten(0, 1).T).trace()), rel=1e-5)
    assert frechet(a, vectors(1)) < 0.01


def test_diversity_is_the_mean_distance_of_two_seeds():
    """Three seeds of two stems: a stem that never differs, and one at 0, 3 and 4 times a vector of length 1."""
    latents = torch.zeros(3, 2, 5, 4)
    latents[:, 1, 2, 3] = torch.tensor([0.0, 3.0, 4.0])
    assert diversity(latents) == pytest.approx((3 + 4 + 1) / 3 / 2)


@pytest.fixture(scope="module")
def networks():
    """Random networks of the demo, and a student that has only the generator's weights."""
    generator = load_part("generator", PRESET, None)
    pupil = AverageGenerator(PRESET.generator).eval()
    pupil.load_state_dict(generator.state_dict(), strict=False)
    torch.manual_seed(0)
    judge = scores.Judge(
        vae=load_part("vae", PRESET, None),
        vocoder=load_part("vocoder", PRESET, None),
        mel=MelSpectrogram(PRESET.audio),
        listener=Listener(PRESET.audio.mel_bands).eval(),
        prompts=None,
        text_features=None,
        latent_length=130,
    )
    return judge, generator, pupil


def test_a_student_without_training_makes_eulers_steps_without_guidance(networks, monkeypatch):
    monkeypatch.setattr(student, "GUIDANCE", 0.5)  # below 1: no guidance
    monkeypatch.setattr(student, "STEPS", 12)
    judge, generator, pupil = networks
    tests = [scores.TestScene(frames=torch.empty(0), sources=composed_scene((1, 1)).sources)]
    sync = torch.randn(2, 96, PRESET.generator.sync_width, generator=torch.Generator().manual_seed(1))
    rows = student_rows(judge, generator, pupil, tests, sync, generator.empty_text(2), 3)
    found = {row.name: row for row in rows}
    assert [(row.name, row.evaluations) for row in rows] == [
        ("teacher, Euler 12", 24),
        ("teacher, Euler 8", 16),
        ("teacher, Euler 4", 8),
        ("teacher, AB2 4", 8),
        ("student, 1 jump", 1),
        ("student, 2 jumps", 2),
        ("student, 4 jumps", 4),
        ("student, 8 jumps", 8),
    ]
    assert found["teacher, Euler 12"].log_mel_l1 == 0
    assert found["teacher, Euler 12"].frechet == pytest.approx(0, abs=1e-4)
    for steps in (4, 8):
        jumped, stepped = found[f"student, {steps} jumps"], found[f"teacher, Euler {steps}"]
        assert jumped.log_mel_l1 == pytest.approx(stepped.log_mel_l1, rel=1e-3)
        assert jumped.log_mel_l1 > 0
        assert jumped.frechet == pytest.approx(stepped.frechet, rel=1e-2, abs=1e-5)
    assert found["student, 1 jump"].log_mel_l1 > found["student, 8 jumps"].log_mel_l1
    assert found["teacher, AB2 4"].log_mel_l1 != found["teacher, Euler 4"].log_mel_l1
    assert all(row.score.stems == 2 for row in rows)


def test_guidance_makes_a_difference(networks, monkeypatch):
    judge, generator, _ = networks
    sync = torch.randn(2, 96, PRESET.generator.sync_width, generator=torch.Generator().manual_seed(1))
    arguments, made = (sync, generator.empty_text(2) + 1, 3), []
    for guidance in (0.5, 4.5):
        monkeypatch.setattr(student, "GUIDANCE", guidance)
        made.append(student.guided_sample(generator, judge.latent_length, student.euler, 1)(*arguments))
    assert (made[0] - made[1]).abs().max() > 1e-3


def test_the_table_has_a_line_for_each_row():
    score = Score(hits=9, heard=10, true=10, leaks=1, others=10, offset_s=0.09, right_kind=1, stems=2)
    row = Row(name="student, 4 jumps", evaluations=4, log_mel_l1=0.0384, frechet=0.1092, score=score)
    assert (
        student_table([row]).splitlines()[-1] == "| student, 4 jumps | 4 | 0.038 | 0.109 | 0.90 | 0.10 | 10.0 | 0.50 |"
    )


def _row(name, evaluations, log_mel_l1, frechet, offset_s=0.09, hits=9):
    score = Score(hits=hits, heard=10, true=10, leaks=1, others=10, offset_s=offset_s, right_kind=2, stems=2)
    return Row(name=name, evaluations=evaluations, log_mel_l1=log_mel_l1, frechet=frechet, score=score)


def test_the_bars_compare_four_jumps_with_the_teacher_and_with_ab2():
    rows = [
        _row("teacher, Euler 25", 50, 0.0, 0.0),
        _row("teacher, AB2 4", 8, 0.1, 0.1),
        _row("student, 2 jumps", 2, 0.0, 0.0),
        _row("student, 4 jumps", 4, 0.04, 0.12, offset_s=0.0963),
    ]
    found = {bar.name: (round(bar.value, 3), bar.met) for bar in closeness(rows)}
    assert found == {
        "log-mel L1": (0.04, True),
        "log-mel L1, by that of AB2 4": (0.4, True),
        "latent Fréchet": (0.12, False),
        "latent Fréchet, by that of AB2 4": (1.2, False),
        "mean offset, ms more than the teacher": (0.7, False),
        "F1, more than the teacher": (0.0, True),
        "right kind, more than the teacher": (0.0, True),
        "evaluations, by the teacher's": (0.08, True),
    }
    worse = [*rows[:3], _row("student, 4 jumps", 4, 0.04, 0.04, hits=8, offset_s=0.08)]
    assert [bar.name for bar in closeness(worse) if not bar.met] == ["F1, more than the teacher"]


def test_the_command_evaluates_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "evaluate", lambda run: "the scores")
    monkeypatch.setattr(bed, "evaluate_bed", lambda run: "the tracks")
    monkeypatch.setattr(student, "evaluate_student", lambda run: "the student")
    done = CliRunner().invoke(demo, ["--out", str(tmp_path), "--quick", "--only", "evaluate"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == ["the scores", "the student", "the tracks"]
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 0


def test_ablations_need_scores_before_they_train(tmp_path):
    done = CliRunner().invoke(demo, ["--out", str(tmp_path), "--quick", "--only", "ablations"])
    assert done.exit_code != 0
    assert "run --only evaluate first" in done.output
    assert not list(tmp_path.glob("*.safetensors"))
