"""The eight kinds of objects in the demo's world, and the words for them.

The captions of a kind are put together from its words. Some of them are kept out of training, so that an evaluation can
ask with phrases that the model never read, of words that it did. Captions of what is not in the world teach it silence.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Words:
    """How people say that one kind of thing is heard."""

    things: tuple[str, ...]
    doing: tuple[str, ...]
    does: tuple[str, ...]
    """The same as `doing`, in the third person."""
    phrases: tuple[str, ...]
    """Whole captions. The first is the plain one that evaluations use."""
    calls: tuple[str, ...]
    """What it sounds like, in a syllable."""


WORDS: dict[str, Words] = {
    "ball": Words(
        things=("ball", "basketball", "tennis ball", "football", "rubber ball", "volleyball"),
        doing=("bouncing", "dribbling", "hopping", "thumping"),
        does=("bounces", "dribbles", "hops", "thumps"),
        phrases=("ball bouncing", "ball hits the ground", "ball hits the floor", "bounce of a ball", "basketball"),
        calls=("boing", "thump"),
    ),
    "hammer": Words(
        things=("hammer", "blacksmith", "mallet", "sledgehammer", "smith"),
        doing=("striking", "hammering", "pounding", "banging", "forging", "at work"),
        does=("strikes", "hammers", "pounds", "bangs", "forges", "works"),
        phrases=("hammer striking", "hammer on an anvil", "a hammer strikes metal", "hammering", "blows on an anvil"),
        calls=("clang", "bang"),
    ),
    "dog": Words(
        things=("dog", "puppy", "hound", "terrier", "poodle"),
        doing=("barking", "yapping", "yelping", "growling", "woofing"),
        does=("barks", "yaps", "yelps", "growls", "woofs"),
        phrases=("dog barking", "dog", "puppy", "bark of a dog", "barking"),
        calls=("woof", "arf", "bow wow"),
    ),
    "lamp": Words(
        things=("lamp", "lantern", "warning light", "alarm lamp", "signal lamp"),
        doing=("beeping", "bleeping", "blinking", "flashing"),
        does=("beeps", "bleeps", "blinks", "flashes"),
        phrases=("lamp beeping", "electronic beep", "beep of a lamp", "lamp", "warning beep"),
        calls=("beep", "bleep"),
    ),
    "tap": Words(
        things=("tap", "faucet", "water", "sink", "pipe"),
        doing=("dripping", "leaking", "dropping", "trickling"),
        does=("drips", "leaks", "drops", "trickles"),
        phrases=("water dripping", "drop of water", "drops of water falling", "leaky faucet", "water drops"),
        calls=("drip", "plip", "plop"),
    ),
    "bell": Words(
        things=("bell", "church bell", "handbell", "chime", "school bell"),
        doing=("ringing", "tolling", "chiming", "pealing"),
        does=("rings", "tolls", "chimes", "peals"),
        phrases=("bell ringing", "bell", "toll of a bell", "church bells", "ringing"),
        calls=("ding", "dong"),
    ),
    "drum": Words(
        things=("drum", "snare drum", "drummer", "bongo", "snare"),
        doing=("drumming", "beating", "rolling", "playing"),
        does=("drums", "beats", "rolls", "plays"),
        phrases=("snare drum", "drum hit", "a drum is hit", "drums", "drum beat"),
        calls=("rat tat", "boom"),
    ),
    "bird": Words(
        things=("bird", "sparrow", "robin", "canary", "finch"),
        doing=("chirping", "tweeting", "singing", "twittering"),
        does=("chirps", "tweets", "sings", "twitters"),
        phrases=("bird chirping", "bird", "birdsong", "song of a bird", "chirping"),
        calls=("tweet", "cheep"),
    ),
}
KINDS = tuple(WORDS)

ABSENT: tuple[str, ...] = (
    *(
        "cat meowing",
        "rooster crowing",
        "cow mooing",
        "horse galloping",
        "sheep bleating",
        "frog croaking",
        "bee buzzing",
    ),
    *("owl hooting", "crickets", "man speaking", "woman speaking", "child laughing", "baby crying", "crowd cheering"),
    *("people clapping", "choir", "person coughing", "sneezing", "footsteps", "footsteps on gravel", "door slamming"),
    *("door creaking", "door knocking", "clock ticking", "telephone", "keyboard typing", "glass breaking", "waterfall"),
    *(
        "toilet flushing",
        "vacuum cleaner",
        "hair dryer",
        "sawing wood",
        "drill",
        "chainsaw",
        "lawn mower",
        "car engine",
    ),
    *("car horn", "motorcycle", "truck reversing", "bus", "train passing", "train whistle", "aeroplane", "ship horn"),
    *("police siren", "ambulance", "fire crackling", "fireworks", "explosion", "gunshot", "rain", "rain on a roof"),
    *(
        "wind",
        "ocean waves",
        "stream",
        "electric guitar",
        "bass guitar",
        "piano",
        "organ",
        "flute",
        "clarinet",
        "trumpet",
    ),
    *("trombone", "harp", "accordion", "banjo", "tambourine", "cymbal crash", "skateboarding", "bowling", "swimming"),
    *("splash", "whoosh", "hum", "hiss", "rumble", "noise", "music", "silence", "cello"),
)
"""Captions of what the world does not have, for training."""
UNSEEN_ABSENT: tuple[str, ...] = (
    *("helicopter", "violin", "thunder", "acoustic guitar", "saxophone", "cat purring", "lion roaring", "tractor"),
    *("washing machine", "wind chimes", "gong", "elephant trumpeting", "crowd chanting", "zipper", "camera shutter"),
    *("paper tearing", "popcorn popping", "ice cracking", "kettle whistling", "typewriter"),
)
"""The same, never trained with."""

SCENES = ("{}", "{} outdoors", "{} in a room", "the sound of {}", "loud {}", "{} in the distance")
"""Templates for the words around a caption."""
HELD_OUT = ("woof woof", "leaking faucet", "ding dong", "sparrow tweeting", "blacksmith at work")
"""Phrases that are never trained with, besides those that `_kept_out` draws."""
_KEPT_OUT_SHARE = 0.15


def _every_caption(kind: str) -> list[str]:
    words = WORDS[kind]
    pairs = [
        (thing, doing, does) for thing in words.things for doing, does in zip(words.doing, words.does, strict=True)
    ]
    made = [
        *words.phrases,
        *(f"{thing} {doing}" for thing, doing, _ in pairs),
        *(f"a {thing} {does}" for thing, _, does in pairs),
        *(f"{doing} {thing}" for thing, doing, _ in pairs if " " not in doing),
        *words.calls,
        *(f"{a} {b}" for a in words.calls for b in words.calls),
        *(f"{thing} goes {call}" for thing in words.things for call in words.calls),
    ]
    return list(dict.fromkeys(made))


def _kept_out(caption: str) -> bool:
    """Whether a caption is never trained with: always the same captions."""
    drawn = int.from_bytes(hashlib.sha256(caption.encode()).digest()[:4], "big") / 2**32
    return caption in HELD_OUT or drawn < _KEPT_OUT_SHARE


CAPTIONS: dict[str, tuple[str, ...]] = {
    kind: tuple(c for c in _every_caption(kind) if c in WORDS[kind].phrases + WORDS[kind].calls or not _kept_out(c))
    for kind in KINDS
}
"""Captions to train with, by kind. The first is the plain one."""
UNSEEN_CAPTIONS: dict[str, tuple[str, ...]] = {
    kind: tuple(c for c in _every_caption(kind) if c not in CAPTIONS[kind]) for kind in KINDS
}
"""Captions of the same words that are kept out of training."""


def nonsense(count: int, seed: int) -> list[str]:
    """Makes texts of one to three words that mean nothing: parts of words of `ABSENT` and letters."""
    rng = np.random.default_rng([seed, 8])
    words, letters = sorted({word for text in ABSENT for word in text.split()}), list("abcdefghijklmnopqrstuvwxyz")

    def word() -> str:
        if rng.random() < 0.4:
            return "".join(rng.choice(letters, int(rng.integers(2, 9))))
        start, end = (str(one) for one in rng.choice(words, 2))
        return start[: 1 + int(rng.integers(len(start)))] + end[int(rng.integers(len(end))) :]

    return [" ".join(word() for _ in range(int(rng.integers(1, 4)))) for _ in range(count)]


def known_words() -> list[str]:
    """Every word of every caption and scene; the text towers are trained with these."""
    texts = [*SCENES, *(caption for captions in CAPTIONS.values() for caption in captions)]
    return sorted({word for text in texts for word in text.replace("{}", "").split()})


def prompt(kind: str) -> str:
    """The plain caption of a kind."""
    return CAPTIONS[kind][0]
