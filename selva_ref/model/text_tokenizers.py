"""The two tokenizers as JSON of the `tokenizers` library, so complete that a runtime needs nothing else.

A hub's tokenizer files leave some of the published model's text processing to other libraries: the end token,
truncation, lower case and padding. Here all of it is in the JSON. Two things that open_clip's tokenizer does are
missing, because JSON cannot express them: repairing wrongly decoded text and decoding HTML entities. A prompt with
either is tokenised as written.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreSequence
from tokenizers.processors import RobertaProcessing

from selva_bundle.atomic import atomic_write
from selva_ref.errors import CheckpointError, CheckpointNotFoundError
from selva_ref.model.presets import TextConfig

DEMO = "demo"
"""Use this instead of a folder to get the tokenizers of the `demo` preset, which are part of the package."""

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_PAD_ID = 0
T5_END = "</s>"

_DATA = Path(__file__).parents[1] / "data" / "tokenizers"
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def t5_tokenizer(folder: str | Path, text: TextConfig) -> Tokenizer:
    """T5's tokenizer from `folder`'s `tokenizer.json`, or `DEMO`: cut at `t5_max_tokens`, ends with `</s>`, no padding.

    Raises:
        CheckpointNotFoundError: the file does not exist.
        CheckpointError: the tokenizer does not fit the tower.
    """
    path = _DATA / "t5_demo.json" if folder == DEMO else Path(folder) / "tokenizer.json"
    tokenizer = _read(path)
    tokenizer.no_padding()
    tokenizer.enable_truncation(text.t5_max_tokens)
    if tokenizer.encode("a").tokens[-1:] != [T5_END]:
        raise CheckpointError(f"{path}: does not end a text with {T5_END}, so it is not T5's tokenizer")
    return _fitting(tokenizer, text.t5_vocabulary, path)


def clip_tokenizer(folder: str | Path, text: TextConfig) -> Tokenizer:
    """CLIP's tokenizer from `folder`, or `DEMO`: lower case, cut to `clip_tokens` with the end token, padded with 0.

    Takes only the vocabulary from `tokenizer.json`, or from `vocab.json` and `merges.txt`.

    Raises:
        CheckpointNotFoundError: the files do not exist.
        CheckpointError: the tokenizer does not fit the tower.
    """
    if folder == DEMO:
        path = _DATA / "clip_demo.json"
        model = _read(path).model
    else:
        path = Path(folder)
        whole = path / "tokenizer.json"
        model = _read(whole).model if whole.is_file() else _read_bpe(path)
    if not isinstance(model, BPE) or model.token_to_id(CLIP_END) is None or model.token_to_id(CLIP_START) is None:
        raise CheckpointError(f"{path}: not CLIP's tokenizer: it is no byte-pair model with {CLIP_START}, {CLIP_END}")
    return _fitting(clip_pipeline(model, text.clip_tokens), text.clip_vocabulary, path)


def clip_pipeline(model: BPE, tokens: int) -> Tokenizer:
    """Adds CLIP's text processing to a byte-pair vocabulary."""
    start_id, end_id = model.token_to_id(CLIP_START), model.token_to_id(CLIP_END)
    assert start_id is not None
    assert end_id is not None
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = Sequence([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    tokenizer.pre_tokenizer = PreSequence(
        [Split(Regex(_CLIP_WORDS), "removed", invert=True), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.post_processor = RobertaProcessing(
        (CLIP_END, end_id), (CLIP_START, start_id), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([CLIP_START, CLIP_END])
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens, pad_id=CLIP_PAD_ID, pad_token=model.id_to_token(CLIP_PAD_ID))
    return tokenizer


def save(tokenizer: Tokenizer, path: str | Path) -> None:
    """Writes the tokenizer as one JSON file, completely or not at all."""
    with atomic_write(Path(path)) as temporary:
        tokenizer.save(str(temporary), pretty=False)


def _read(path: Path) -> Tokenizer:
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path}: no such file; selva-fetch gets the tokenizers with the weights")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path}: not a tokenizer ({str(error).splitlines()[0]})") from error


def _read_bpe(folder: Path) -> BPE:
    vocabulary_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    for path in (vocabulary_path, merges_path):
        if not path.is_file():
            raise CheckpointNotFoundError(f"{path}: no such file, nor tokenizer.json; selva-fetch gets them")
    try:
        vocabulary = json.loads(vocabulary_path.read_text(encoding="utf-8"))
        lines = merges_path.read_text(encoding="utf-8").split("\n")
        pairs = (line.split(" ") for line in lines if line and not line.startswith("#version"))
        merges = [(left, right) for left, right in pairs]
        return BPE(vocabulary, merges, unk_token=CLIP_END, end_of_word_suffix="</w>")
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{folder}: vocab.json and merges.txt do not fit ({error})") from error


def _fitting(tokenizer: Tokenizer, vocabulary: int, path: Path) -> Tokenizer:
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise CheckpointError(f"{path}: has token {largest}, but the text tower knows {vocabulary} tokens only")
    return tokenizer
