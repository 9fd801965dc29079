"""The scores of stems that another system made: right ones, exchanged ones, a mix, and what is no stem."""

import json

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from selva_bench.other_systems import main, score_folder
from selva_ref.demo.evaluation.report import TEST_SEED
from selva_ref.demo.world.scenes import composed_scene
from selva_ref.demo.world.sounds import RATE_HZ
from selva_runtime.media.resampler import Resampler
from selva_runtime.media.video import read_clip

COUNT, OTHER_RATE_HZ = 6, 44_100


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    result = CliRunner().invoke(main, ["scenes", str(folder), "--count", str(COUNT)])
    assert result.exit_code == 0, result.output
    return folder


def write(path, sound):
    """In stereo at another rate, as other systems write."""
    resampler = Resampler(RATE_HZ, OTHER_RATE_HZ)
    audio = np.concatenate([resampler.push(sound.astype(np.float32)), resampler.finish()])
    soundfile.write(path, np.stack([audio, audio], axis=1), OTHER_RATE_HZ)


def true_sounds(number):
    return [source.sound() for source in composed_scene((TEST_SEED, 5, number)).sources]


def test_the_scenes_are_videos_with_prompts_and_events(scenes):
    listed = json.loads((scenes / "scenes.json").read_text())
    assert sorted(path.stem for path in scenes.glob("*.mp4")) == sorted(listed) == [f"{i:03}" for i in range(COUNT)]
    for name, sources in listed.items():
        assert len(sources) == 2
        assert all(source["prompt"] and source["events_s"] for source in sources)
        assert read_clip(scenes / f"{name}.mp4", size=64).duration_s == pytest.approx(4.16)


def test_true_stems_score_well_and_exchanged_ones_do_not(scenes, tmp_path):
    for folder, order in (("right", (0, 1)), ("exchanged", (1, 0))):
        (tmp_path / folder).mkdir()
        for number in range(COUNT):
            sounds = true_sounds(number)
            for stem, source in enumerate(order):
                write(tmp_path / folder / f"{number:03}-{stem + 1}.wav", sounds[source])
    right, exchanged = (score_folder(scenes, tmp_path / folder) for folder in ("right", "exchanged"))
    assert (right["stems"], right["missing"]) == (2 * COUNT, 0)
    assert right["f1"] > 0.95
    assert right["leak"] < 0.05
    assert exchanged["f1"] < 0.5
    assert exchanged["leak"] > 0.9


def test_a_mix_leaks_and_what_is_missing_is_counted(scenes, tmp_path):
    write(tmp_path / "000.wav", sum(true_sounds(0)))
    found = score_folder(scenes, tmp_path)
    assert (found["stems"], found["missing"]) == (2, 2 * COUNT - 2)
    assert found["leak"] > 0.5


def test_the_command_prints_json_last(scenes, tmp_path):
    write(tmp_path / "000-1.wav", true_sounds(0)[0])
    result = CliRunner().invoke(main, ["score", str(scenes), str(tmp_path)])
    assert json.loads(result.stdout.splitlines()[-1])["stems"] == 1


def test_what_cannot_be_scored_is_one_line(scenes, tmp_path):
    run = CliRunner().invoke
    assert "no stem such as 000-1.wav" in run(main, ["score", str(scenes), str(tmp_path)]).output
    assert "write it with the command scenes" in run(main, ["score", str(tmp_path), str(tmp_path)]).output
    (tmp_path / "000.wav").write_bytes(b"no sound")
    assert "is no sound file" in run(main, ["score", str(scenes), str(tmp_path)]).output
