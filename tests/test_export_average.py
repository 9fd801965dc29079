"""The student's graphs: a step is a jump along the mean velocity, and a bundle has them if it is asked for drafts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import selva_ref
from selva_bundle.bundle import Bundle
from selva_bundle.lengths import latent_positions, sync_rows, visual_positions
from selva_bundle.ports import BEST, DRAFT, FLOWS
from selva_export import bundle as bundle_module
from selva_export.bundle import ExportRequest, export_bundle
from selva_export.cli import main
from selva_export.errors import ExportError
from selva_export.graphs import AverageStep, PrepareConditions
from selva_export.rewrites import rewrite
from selva_ref.errors import CheckpointNotFoundError
from selva_ref.pipeline import sequence_rules
from selva_ref.weights import random_weights
from selva_ref.weights.loading import load_part

DEMO = selva_ref.get_preset("demo")
ROUNDING = 5e-6
"""Largest relative error of a velocity: float32 sums in another order, at most 1e-6 here."""


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("duration_s", [0.64, 1.28, 4.16])
@pytest.mark.parametrize("stems", [1, 3])
@torch.no_grad()
def test_a_step_is_a_jump_along_the_mean_velocity(duration_s: float, stems: int) -> None:
    student = load_part("student", DEMO, None)
    rules, width = sequence_rules(DEMO), DEMO.generator
    lengths = rules.lengths(duration_s)
    sync = drawn(1, stems, lengths.sync, width.sync_width)
    text, against = (drawn(seed, n, width.text_tokens, width.text_width) for seed, n in ((2, stems), (3, 1)))
    latents = drawn(4, stems, lengths.latent, width.latent_width)
    places = (torch.from_numpy(make(lengths)) for make in (latent_positions, visual_positions))
    conditions = PrepareConditions(student)(sync, text, against, torch.tensor([True]), *places)
    t, dt, strength = (torch.tensor([value]) for value in (0.25, 0.5, 3.0))
    rows = torch.from_numpy(sync_rows(rules, lengths, stems))
    forms = (AverageStep(student), rewrite(AverageStep(load_part("student", DEMO, None))))
    steps = [(form(latents, t, dt, strength, rows, *conditions) - latents) / 0.5 for form in forms]

    clip = student.empty_clip(1, lengths.visual)
    for i in range(stems):
        c = student.prepare(sync[i : i + 1], clip, text[i : i + 1], latent_length=lengths.latent)
        u = student.average(latents[i : i + 1], t, t + dt, strength, c)[0]
        assert all(float((step[i] - u).norm() / u.norm()) <= ROUNDING for step in steps)
        for other in ((t, t + 0.25, strength), (t, t + dt, strength + 2), (t + 0.1, t + 0.6, strength)):
            v = student.average(latents[i : i + 1], *other, c)[0]
            assert float((v - u).norm() / u.norm()) > 20 * ROUNDING, "time, span and strength count"


@torch.no_grad()
def test_modulations_are_computed_once_a_row() -> None:
    student, lengths = load_part("student", DEMO, None), sequence_rules(DEMO).lengths(4.16)
    step, seen = rewrite(AverageStep(student)), []
    blocks = [*(block.latent_block for block in student.joint_blocks), *student.fused_blocks]
    for block in blocks:
        block.adaLN_modulation.register_forward_hook(lambda _, given, out: seen.append(tuple(out.shape)))
    width, head = DEMO.generator.width, DEMO.generator.width // DEMO.generator.heads
    step(
        torch.zeros(2, lengths.latent, DEMO.generator.latent_width),
        *torch.ones(3, 1),
        torch.from_numpy(sync_rows(sequence_rules(DEMO), lengths, 2)),
        torch.zeros(2, lengths.sync, width),
        torch.zeros(4, lengths.visual, width),
        torch.zeros(4, DEMO.generator.text_tokens, width),
        torch.zeros(4, width),
        torch.zeros(lengths.latent, 2, head // 2),
        torch.zeros(lengths.visual, 2, head // 2),
    )
    assert seen == [(2 * lengths.sync, 6 * width)] * len(blocks)


def request(out: Path, **changes: object) -> ExportRequest:
    return ExportRequest(**{"preset": DEMO, "precision": "fp32", "checkpoints": None, "out": out, **changes})


def write_part(folder: Path, part: str) -> None:
    save_file(random_weights.state_dict(selva_ref.build(part, DEMO)), folder / f"{part}_demo.safetensors")


def flows(asked: ExportRequest) -> list[str]:
    return [quality for quality, pair in FLOWS.items() if set(pair) <= set(asked.graphs)]


def test_the_default_is_what_there_are_weights_for(tmp_path: Path) -> None:
    assert flows(request(tmp_path)) == [BEST]
    assert flows(request(tmp_path, checkpoints=tmp_path)) == [BEST]
    write_part(tmp_path, "student")
    assert flows(request(tmp_path, checkpoints=tmp_path)) == [BEST, DRAFT]
    assert flows(request(tmp_path)) == [BEST]
    for quality, found in (("best", [BEST]), ("draft", [DRAFT]), ("both", [BEST, DRAFT])):
        assert flows(request(tmp_path, checkpoints=tmp_path, quality=quality)) == found
        assert flows(request(tmp_path, quality=quality)) == found


def test_unknown_qualities_and_presets_without_a_student_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="unknown quality 'fast'; choose one of best, draft, both"):
        request(tmp_path, quality="fast")
    mmaudio = selva_ref.get_preset("demo_mmaudio")
    assert flows(request(tmp_path, preset=mmaudio, quality="best")) == [BEST]
    with pytest.raises(ExportError, match="preset demo_mmaudio has no student"):
        request(tmp_path, preset=mmaudio, quality="draft")
    asked = ["--preset", "demo_mmaudio", "--random-weights", "--quality", "both", "--out", str(tmp_path / "bundle")]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2
    assert "has no student" in result.output


def test_drafts_need_no_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    for part in ("video_encoder", "vae", "vocoder", "text_t5", "text_clip", "student"):
        write_part(weights, part)
    made = {}

    def export_part(asked, signature, path):
        made[signature.name] = asked.parts(signature.name)
        path.write_bytes(b"")
        return [bundle_module.Parity(graph="", output="", shape=(), relative_error=0, tolerance=1)]

    monkeypatch.setattr(bundle_module, "export_part", export_part)
    out = tmp_path / "bundle"
    export_bundle(request(out, checkpoints=weights, quality="draft"), say=lambda line: None)
    manifest = Bundle.open(out).manifest
    assert manifest.qualities == (DRAFT,)
    assert manifest.defaults.steps == manifest.flow.steps == 4
    assert list(made) == list(manifest.graphs)
    given = {path.name.removesuffix("_demo.safetensors") for path in weights.iterdir()}
    assert {part for parts in made.values() for part in parts} == given
    assert "student" in json.loads((out / "manifest.json").read_text())["sources"]
    with pytest.raises(CheckpointNotFoundError, match="no generator_demo"):
        export_bundle(request(tmp_path / "both", checkpoints=weights), say=lambda line: None)


def test_a_bundle_with_both_was_compared_with_both(both_bundle: Path) -> None:
    manifest = json.loads((both_bundle / "manifest.json").read_text())
    assert manifest["flow"] == {"kind": "average", "guidance": [1.0, 7.0], "steps": 4}
    assert manifest["defaults"]["steps"] == 25
    assert {name for pair in FLOWS.values() for name in pair} <= {row["graph"] for row in manifest["parity"]}
