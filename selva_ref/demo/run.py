"""Every stage of the demo, from scratch to a folder of checkpoints that can be exported like any other.

A stage writes one file, and a stage whose file exists is not run again. `run.json` records the plan and the seed of the
folder, and a hash of the world and the networks. A run with others is refused, so that two runs never mix.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import selva_ref
from selva_bundle.atomic import atomic_write
from selva_ref.demo.fitting import Fit, draws, fit
from selva_ref.demo.models.audio import (
    SoundBank,
    quiet_level,
    reconstructed,
    set_mel_statistics,
    start_vocoder,
    step_seed,
    vae_loss,
    vocoder_loss,
)
from selva_ref.demo.models.generator import (
    Examples,
    generator_loss,
    posteriors,
    set_latent_statistics,
    start_generator,
)
from selva_ref.demo.models.listener import Listener, listener_loss
from selva_ref.demo.models.teacher import CLEAN_SHARE, TaughtTeacher, draw_segments, teacher_loss
from selva_ref.demo.models.text import Prompts, TaughtTowers, text_loss
from selva_ref.demo.origin import origin_sha256
from selva_ref.demo.plan import DemoPlan
from selva_ref.demo.selection import (
    Mixes,
    clean_features,
    held,
    make_mixes,
    selected,
    selection_loss,
    still_features,
)
from selva_ref.demo.world.clip_bank import ClipBank, single_scenes
from selva_ref.demo.world.kinds import KINDS
from selva_ref.demo.world.scenes import SAMPLES
from selva_ref.model.generator import Generator
from selva_ref.model.mel import MelSpectrogram
from selva_ref.model.official import OfficialModule
from selva_ref.model.presets import PRESETS, Preset
from selva_ref.training.errors import TrainingError
from selva_ref.training.initial import fresh_encoder
from selva_ref.training.parameters import STAGE1, STAGE2, trainable
from selva_ref.weights.checkpoints import read_checkpoint
from selva_ref.weights.loading import load_tokenizers

PRESET = PRESETS["demo"]
TEXT_BATCH = 64
TEACHER_BATCH = 96
BATCH = 16

Network = TypeVar("Network", bound=OfficialModule)


@dataclass(kw_only=True)
class DemoRun:
    """The folder, the plan and the seed of one run. Networks and data are made when a stage first needs them."""

    folder: Path
    plan: DemoPlan
    seed: int
    compiled: bool = False
    """Use torch.compile for the two heaviest losses: a third faster, but needs a C++ compiler."""

    def __post_init__(self) -> None:
        """Checks that the folder belongs to this run.

        Raises:
            TrainingError: it holds a run with another plan or seed, or of another version of the world or the networks.
        """
        path = self.folder / "run.json"
        origin = {"seed": self.seed, "plan": asdict(self.plan), "world_and_networks_sha256": origin_sha256()}
        told = json.dumps(origin, indent=1) + "\n"
        if path.exists() and path.read_text(encoding="utf-8") != told:
            raise TrainingError(
                f"{path}: this folder holds a run with another plan, seed, world or network; choose another --out"
            )
        with atomic_write(path) as temporary:
            temporary.write_text(told, encoding="utf-8")

    def file(self, name: str) -> Path:
        """Path of the network called `name`."""
        return self.folder / f"{name}_demo.safetensors"

    def load(self, network: Network, name: str) -> Network:
        """Fills a network from the finished file called `name`."""
        return network.load_official(read_checkpoint(self.file(name)))

    def save(self, network: nn.Module, name: str) -> None:
        """Saves a network under the official names, completely or not at all."""
        with atomic_write(self.file(name)) as temporary:
            save_file({key: value.contiguous() for key, value in network.state_dict().items()}, temporary)

    def fit(
        self, stage: str, network: nn.Module, loss: Callable[[np.random.Generator, int], Tensor], plan: Fit
    ) -> None:
        """Runs `fitting.fit` with this run's random numbers; `loss` takes a step's random numbers and the step."""
        fit(
            stage, network, lambda step: loss(draws(self.seed, stage, step), step), plan, self.folder / f"{stage}.state"
        )

    def fast(self, network: nn.Module) -> Callable[..., Any]:
        """The network, compiled if requested."""
        return torch.compile(network.train()) if self.compiled else network

    # -- data ---------------------------------------------------------------------------------------------------------

    @cached_property
    def mel(self) -> MelSpectrogram:
        return MelSpectrogram(PRESET.audio)

    @cached_property
    def sounds(self) -> SoundBank:
        return SoundBank(self.mel, self.plan.sounds, self.seed)

    @cached_property
    def bank(self) -> ClipBank:
        return ClipBank(single_scenes(self.plan.clips, self.seed), self.folder / "clips.npy")

    @cached_property
    def prompts(self) -> Prompts:
        return Prompts(load_tokenizers(PRESET, None))

    @cached_property
    def captions(self) -> tuple[Tensor, Tensor]:
        """T5 and CLIP features of every caption."""
        return self.prompts.features(
            self.load(selva_ref.build("text_t5", PRESET), "text_t5"),
            self.load(selva_ref.build("text_clip", PRESET), "text_clip"),
        )

    @cached_property
    def clean(self) -> Tensor:
        """The teacher's features of every clip alone."""
        return self.kept(
            "clean", lambda: clean_features(self.load(selva_ref.build("teacher", PRESET), "teacher"), self.bank)
        )

    @cached_property
    def latents(self) -> tuple[Tensor, Tensor]:
        """Posteriors of every clip's sound."""
        mean, deviation = self.kept("latents", lambda: self.posteriors(self.bank))
        return mean, deviation

    def posteriors(self, bank: ClipBank) -> Tensor:
        """Posterior means and deviations of all that sounds in each clip, (2, clips, T, Z)."""
        return self.posterior(torch.from_numpy(np.stack([scene.sound() for scene in bank.scenes])))

    def posterior(self, waves_BN: Tensor) -> Tensor:
        """Posterior means and deviations of waveforms, (2, B, T, Z)."""
        vae = self.load(selva_ref.build("vae", PRESET), "vae")
        return torch.stack(posteriors(vae, torch.cat([self.mel(part) for part in waves_BN.split(32)])))

    @cached_property
    def mixes(self) -> Mixes:
        return make_mixes(
            self.load(selva_ref.build("teacher", PRESET), "teacher"),
            self.bank,
            self.plan.mixes,
            self.seed,
            self.folder / "mixes.npy",
        )

    def kept(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Loads a result from its file, or makes and saves it if an earlier part of the run did not."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.save(file, make().numpy())
        return torch.from_numpy(np.load(path))

    def examples(self, sync: Tensor, items: np.ndarray, silent: tuple[Tensor, np.ndarray] | None = None) -> Examples:
        """Rows for the generator: the features `sync`, and the sounds of the clips `items`.

        Then `silent` rows: features, and the kinds of captions with which silence is right.
        """
        quiet = self.posterior(torch.zeros(1, SAMPLES))
        mean, deviation = (torch.cat(parts) for parts in zip(self.latents, quiet, strict=True))
        kinds = self.bank.kinds[items]
        if silent is not None:
            still, asked = silent
            sync, kinds = torch.cat((sync, still)), np.concatenate((kinds, asked))
            items = np.concatenate((items, np.full(len(asked), len(mean) - 1)))
        return Examples(sync=sync, mean=mean, deviation=deviation, items=items, kinds=kinds)

    def silent_rows(self, rows: int, share: float) -> int:
        """Number of silent rows to add to `rows` others, at most as many, for a `share` of all."""
        return min(rows, round(rows * share / (1 - share)))

    # -- stages -------------------------------------------------------------------------------------------------------

    def text(self) -> None:
        """Trains both text towers."""
        torch.manual_seed(self.seed + 4)
        towers = TaughtTowers(
            selva_ref.build("text_t5", PRESET), selva_ref.build("text_clip", PRESET), PRESET.text.t5_width
        )

        def loss(rng: np.random.Generator, step: int) -> Tensor:
            return text_loss(towers, self.prompts, self.prompts.draw_all(rng, TEXT_BATCH))

        self.fit("text", towers, loss, self.plan.text)
        self.save(towers.clip, "text_clip")
        self.save(towers.t5, "text_t5")

    def listener(self) -> None:
        """Trains the judge of the evaluation."""
        torch.manual_seed(self.seed + 6)
        listener = Listener(PRESET.audio.mel_bands)
        kinds = torch.arange(len(self.sounds.mels_BMT)) % len(KINDS)

        def loss(rng: np.random.Generator, step: int) -> Tensor:
            rows = rng.integers(len(kinds), size=32)
            return listener_loss(listener, self.sounds.mels_BMT[rows], kinds[rows], int(rng.integers(2**62)))

        self.fit("listener", listener, loss, self.plan.listener)
        self.save(listener, "listener")

    def vae(self) -> None:
        """Trains the mel autoencoder."""
        torch.manual_seed(self.seed + 1)
        vae = selva_ref.build("vae", PRESET)
        set_mel_statistics(vae, self.sounds.mels_BMT)

        def loss(rng: np.random.Generator, step: int) -> Tensor:
            return vae_loss(vae, self.sounds.mels(rng, BATCH), step_seed(self.seed, "vae", step))

        self.fit("vae", vae, loss, self.plan.vae)
        self.save(vae, "vae")

    def vocoder(self) -> None:
        """Trains the vocoder on true mels."""
        torch.manual_seed(self.seed + 2)
        vocoder = selva_ref.build("vocoder", PRESET)
        start_vocoder(vocoder)
        make = self.fast(vocoder)

        def loss(rng: np.random.Generator, step: int) -> Tensor:
            mels, waves = self.sounds.crops(self.sounds.mels_BMT, rng, BATCH // 2)
            return vocoder_loss(make, self.mel, mels, waves, quiet_level(step / self.plan.vocoder.steps))

        self.fit("vocoder", vocoder, loss, self.plan.vocoder)
        self.save(vocoder, "vocoder_true")

    def voicing(self) -> None:
        """Trains the vocoder further, on the autoencoder's reconstructions, which are blurred like generated mels."""
        vocoder, vae = (
            self.load(selva_ref.build("vocoder", PRESET), "vocoder_true"),
            self.load(selva_ref.build("vae", PRESET), "vae"),
        )
        make = self.fast(vocoder)
        blurred = self.kept("blurred", lambda: reconstructed(vae, self.sounds.mels_BMT, self.seed))

        def loss(rng: np.random.Generator, step: int) -> Tensor:
            mels, waves = self.sounds.crops(self.sounds.mels_BMT if step % 4 == 0 else blurred, rng, BATCH // 2)
            return vocoder_loss(make, self.mel, mels, waves, quiet_level(1.0))

        self.fit("voicing", vocoder, loss, self.plan.voicing)
        self.save(vocoder, "vocoder")

    def teacher(self) -> None:
        """Trains the teacher that replaces Synchformer."""
        torch.manual_seed(self.seed + 3)
        taught = TaughtTeacher(selva_ref.build("teacher", PRESET))
        see = self.fast(taught)

        def loss(rng: np.random.Generator, step: int) -> Tensor:
            mixed = TEACHER_BATCH // 2 if step >= CLEAN_SHARE * self.plan.teacher.steps else 0
            return teacher_loss(see, *draw_segments(self.bank, rng, TEACHER_BATCH, mixed))

        self.fit("teacher", taught, loss, self.plan.teacher)
        self.save(taught.teacher, "teacher")

    def base(self) -> None:
        """Trains the generator that replaces MMAudio, on every clip alone."""
        torch.manual_seed(self.seed + 5)
        generator = selva_ref.build("generator", PRESET)
        rng, count = np.random.default_rng([self.seed, 9]), self.silent_rows(len(self.bank), self.plan.absent)
        teacher = self.load(selva_ref.build("teacher", PRESET), "teacher")
        stills = held(still_features(teacher, self.bank.frames[:count, 0]))
        examples = self.examples(
            self.clean, np.arange(len(self.bank)), (stills, rng.integers(len(KINDS) + 1, size=count))
        )
        set_latent_statistics(generator, *self.latents)
        start_generator(generator)
        self._fit_generator("base", generator, examples, self.plan.base)
        self.save(generator, "mmaudio")

    def stage1(self, name: str = "video_encoder", preset: Preset = PRESET, absent: float | None = None) -> None:
        """Trains the paper's first stage, with the plan's share of texts for what is absent unless another is given."""
        student = fresh_encoder(preset, self.file("teacher"), self.seed + 7)
        trainable(student, STAGE1)
        t5, _ = self.captions
        share = self.plan.absent if absent is None else absent

        def loss(rng: np.random.Generator, step: int) -> Tensor:
            return selection_loss(student, self.mixes, self.clean, self.prompts, t5, rng, BATCH, share)

        self.fit(f"stage1 {name}", student, loss, self.plan.stage1)
        self.save(student, name)

    def stage2(self, name: str = "generator", encoder: str = "video_encoder", preset: Preset = PRESET) -> None:
        """Trains the paper's second stage, on what the trained encoder selects from mixed clips."""
        self.adapt(name, self.selections(encoder, preset))

    def selections(
        self, encoder: str = "video_encoder", preset: Preset = PRESET, absent: float | None = None
    ) -> Examples:
        """What an encoder selects from every row of the mixes, and from some of them for what they do not show."""
        share = self.plan.absent if absent is None else absent
        student = self.load(selva_ref.build("video_encoder", preset), encoder)
        rng, rows = np.random.default_rng([self.seed, 3]), np.arange(len(self.mixes))
        quiet, asked = self.absent_rows(rng, share)

        def sync(rows: np.ndarray, kinds: np.ndarray) -> Tensor:
            return selected(student, self.mixes, rows, kinds, self.prompts, self.captions[0], rng)

        found = sync(rows, self.mixes.kinds_of(rows))
        silent = (sync(quiet, asked), asked) if len(quiet) else None
        return self.examples(found, self.mixes.targets(rows), silent)

    def absent_rows(self, rng: np.random.Generator, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Draws rows of the mixes, and for each a kind that it does not show: a `share` of all, if added to all."""
        quiet = rng.permutation(len(self.mixes))[: self.silent_rows(len(self.mixes), share)]
        return quiet, self.mixes.absent_kinds(rng, quiet)

    def adapt(self, name: str, examples: Examples) -> None:
        """Trains stage 2 on given examples."""
        generator = self.load(selva_ref.build("generator", PRESET), "mmaudio")
        trainable(generator, STAGE2)
        self._fit_generator(f"stage2 {name}", generator, examples, self.plan.stage2)
        self.save(generator, name)

    def student(self) -> None:
        """Distils the generator into one that needs few evaluations."""
        from selva_ref.demo.student import train_student  # it imports this module

        train_student(self)

    def _fit_generator(self, stage: str, generator: Generator, examples: Examples, plan: Fit) -> None:
        def loss(rng: np.random.Generator, step: int) -> Tensor:
            return generator_loss(generator, examples, self.prompts, self.captions[1], rng, BATCH)

        self.fit(stage, generator, loss, plan)
