"""What the demo's bundle says about the prompts that the model knows, so that the runtime can warn of others."""

from __future__ import annotations

from selva_ref.demo.world.kinds import KINDS, known_words, prompt

HEARS = tuple(prompt(kind) for kind in KINDS)
HEARS_NOT = (
    *("music", "wind", "rain", "noise", "silence", "footsteps", "cat meowing", "man speaking", "car engine", "piano"),
    *("door slamming", "explosion"),
)
"""Captions of what the world does not have: a prompt whose features are nearest to one of these names none of its
sounds. The tower learned one place for all of them, so that few suffice."""


def bounds(t5: bool) -> dict[str, list[str]]:
    """The manifest's entries, for a bundle with or without a T5 tower: only that can tell what is not heard."""
    entries = {"hears": list(HEARS), "words": known_words()}
    return {**entries, "hears_not": list(HEARS_NOT)} if t5 else entries
