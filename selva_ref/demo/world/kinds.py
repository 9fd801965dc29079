"""The eight kinds of objects in the demo's world, and the words for them."""

from __future__ import annotations

CAPTIONS: dict[str, tuple[str, ...]] = {
    "ball": ("ball bouncing", "a ball bounces", "bouncing ball", "ball hits the ground", "basketball bouncing"),
    "hammer": ("hammer striking", "a hammer strikes metal", "hammer on an anvil", "hammering", "hammer striking metal"),
    "dog": ("dog barking", "a dog barks", "barking dog", "dog", "puppy barking"),
    "lamp": ("lamp beeping", "a lamp beeps", "electronic beep", "beeping lamp", "beep of a lamp"),
    "tap": ("water dripping", "dripping tap", "a tap drips", "drop of water", "drops of water falling"),
    "bell": ("bell ringing", "a bell rings", "ringing bell", "bell", "church bell ringing"),
    "drum": ("snare drum", "drum hit", "a drum is hit", "drumming", "drums"),
    "bird": ("bird chirping", "a bird chirps", "chirping bird", "bird", "bird singing"),
}
"""Several captions per kind; the first is the plain one that evaluations use."""

KINDS = tuple(CAPTIONS)

SCENES = ("{}", "{} outdoors", "{} in a room", "the sound of {}", "loud {}", "{} in the distance")
"""Templates for the words around a caption."""


def known_words() -> list[str]:
    """Every word of every caption and scene; the text towers are trained with these."""
    texts = [*SCENES, *(caption for captions in CAPTIONS.values() for caption in captions)]
    return sorted({word for text in texts for word in text.replace("{}", "").split()})


def prompt(kind: str) -> str:
    """The plain caption of a kind."""
    return CAPTIONS[kind][0]
