"""Makes the demo preset's two small tokenizers: `python -m selva_ref.demo.world.vocabularies`.

They are learned from the captions of the demo's world, so that the demo needs no third-party files: the same captions
give the same bytes. Words that are kept out of training are spelled in pieces.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE, Unigram
from tokenizers.normalizers import NFKC, Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.processors import TemplateProcessing

from selva_ref.demo.world.kinds import ABSENT, CAPTIONS, SCENES
from selva_ref.model.presets import PRESETS
from selva_ref.model.text_tokenizers import CLIP_END, CLIP_START, T5_END, clip_pipeline, save

TEXT = PRESETS["demo"].text

_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()-+/&%"


def captions() -> list[str]:
    """Combines every scene with every caption that is trained with."""
    sources = [*ABSENT, *(caption for found in CAPTIONS.values() for caption in found)]
    return [scene.format(source) for scene, source in product(SCENES, sources)]


def make_t5() -> Tokenizer:
    """Makes a Unigram tokenizer like T5's: `<pad>`, `</s>`, `<unk>`, words with a leading `▁`, parts, characters."""
    words = Counter(f"▁{word}" for caption in captions() for word in caption.split())
    characters = sorted({"▁", *_CHARACTERS, *"".join(words)})
    fragments = sorted(_fragments(words).items(), key=lambda item: (-item[1] * len(item[0]), item[0]))
    special = ["<pad>", T5_END, "<unk>"]
    room = TEXT.t5_vocabulary - len(special) - len(characters) - len(words)
    pieces = [*sorted(words), *(fragment for fragment, _ in fragments[:room])]
    # scores that make the fewest pieces win, and whole words before fragments
    scored = [(piece, -10.0 - rank / 1024) for rank, piece in enumerate(pieces)]
    vocabulary = [(name, 0.0) for name in special] + scored + [(character, -20.0) for character in characters]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = Sequence([NFKC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.decoder = MetaspaceDecoder()
    tokenizer.post_processor = TemplateProcessing(single=f"$A {T5_END}", special_tokens=[(T5_END, 1)])
    tokenizer.add_special_tokens(special)
    tokenizer.enable_truncation(TEXT.t5_max_tokens)
    return tokenizer


def _fragments(words: Counter[str]) -> Counter[str]:
    """Beginnings and endings of the words, of two characters or more, that are not words themselves."""
    fragments: Counter[str] = Counter()
    for word, count in words.items():
        beginnings = {word[:end] for end in range(3, len(word))}
        endings = {word[start:] for start in range(2, len(word) - 1)}
        for fragment in (beginnings | endings) - words.keys():
            fragments[fragment] += count
    return fragments


def make_clip() -> Tokenizer:
    """Makes a byte-pair tokenizer like CLIP's: 256 bytes, the same at a word's end, the merges, then start and end."""
    alphabet = sorted(ByteLevel.alphabet())
    special = [CLIP_START, CLIP_END]
    vocabulary = [*alphabet, *(f"{character}</w>" for character in alphabet)]
    words: Counter[tuple[str, ...]] = Counter()
    for caption in captions():
        for word in caption.split():
            words[(*word[:-1], f"{word[-1]}</w>")] += 1
    merges = _learn_merges(words, TEXT.clip_vocabulary - len(vocabulary) - len(special))
    names = [*vocabulary, *("".join(pair) for pair in merges), *special]
    ids = {name: number for number, name in enumerate(names)}
    return clip_pipeline(BPE(ids, merges, unk_token=CLIP_END, end_of_word_suffix="</w>"), TEXT.clip_tokens)


def _learn_merges(words: Counter[tuple[str, ...]], number: int) -> list[tuple[str, str]]:
    """Returns the `number` most frequent pairs, one after the other; ties go to the alphabetically first."""
    merges = []
    for _ in range(number):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = Counter({_merged(word, best): count for word, count in words.items()})
    return merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def main() -> None:
    """Writes both files into the package."""
    folder = Path(__file__).parents[2] / "data" / "tokenizers"
    save(make_t5(), folder / "t5_demo.json")
    save(make_clip(), folder / "clip_demo.json")
    print(f"wrote {folder}/t5_demo.json and clip_demo.json")


if __name__ == "__main__":
    main()
