"""How much the demo trains: one plan for the shipped model, and one that only checks that every stage runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from selva_ref.demo.fitting import Fit


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """Sizes of the data and lengths of the trainings. After a change, train again from the first stage that uses it."""

    sounds: int = 768
    """Soundtracks for the autoencoder and the vocoder."""
    clips: int = 5000
    """Rendered clips of one source: 1.3 MB of memory each."""
    mixes: int = 4000
    """Pairs of clips side by side: 0.3 MB of disk each."""
    pairs: int = 3000
    """Rendered scenes of two sources, for the network that makes one mixed track: 1.3 MB of disk each."""
    absent: float = 0.3
    """Share of the generator's and both stages' examples whose text names what is not shown: silence is right."""
    paths: int = 4000
    """Paths of the guided flow from noise to sound that the student learns from: 0.1 MB of disk each."""
    tests: int = 48
    """Scenes in each test set; every scene gives two stems."""
    text: Fit = field(default_factory=lambda: Fit(steps=3000, rate=1e-3))
    listener: Fit = field(default_factory=lambda: Fit(steps=400, rate=1e-3))
    vae: Fit = field(default_factory=lambda: Fit(steps=2500, rate=1e-2, bf16=True))
    vocoder: Fit = field(default_factory=lambda: Fit(steps=4000, rate=3e-3, ema=0.99))
    voicing: Fit = field(default_factory=lambda: Fit(steps=1500, rate=2e-3, ema=0.99))
    teacher: Fit = field(default_factory=lambda: Fit(steps=1600, rate=1e-3, warmup=200, bf16=True))
    base: Fit = field(default_factory=lambda: Fit(steps=1600, rate=1e-3, warmup=200, bf16=True))
    stage1: Fit = field(default_factory=lambda: Fit(steps=1600, rate=1e-3, bf16=True))
    stage2: Fit = field(default_factory=lambda: Fit(steps=800, rate=3e-4, bf16=True))
    student: Fit = field(default_factory=lambda: Fit(steps=5000, rate=1e-3, bf16=True))
    image: Fit = field(default_factory=lambda: Fit(steps=800, rate=1e-3, bf16=True))
    bed: Fit = field(default_factory=lambda: Fit(steps=4000, rate=1e-3, warmup=200, bf16=True))


FULL = DemoPlan()

_FEW = Fit(steps=2, rate=1e-3, warmup=1, ema=0.5)
QUICK = DemoPlan(
    sounds=16,
    clips=16,
    mixes=8,
    pairs=8,
    paths=16,
    tests=2,
    text=_FEW,
    listener=_FEW,
    vae=_FEW,
    vocoder=_FEW,
    voicing=_FEW,
    teacher=_FEW,
    base=_FEW,
    stage1=_FEW,
    stage2=_FEW,
    student=_FEW,
    image=_FEW,
    bed=_FEW,
)
"""Runs every stage for two steps; the resulting model only makes noise."""
