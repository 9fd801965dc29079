"""Turn prompts into features with little memory: the two text towers are loaded only for new prompts.

At full size the towers hold more weights than the generator, and a host that stays open sees the same few prompts
again and again. So features are cached, in memory and on the disk, and each tower is released as soon as its new
prompts are done. Prompts run one by one, so the features of one prompt do not depend on the others.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Event

import numpy as np
from tokenizers import Encoding, Tokenizer

from selva_bundle.bundle import Bundle
from selva_bundle.errors import BundleError, RequestError
from selva_bundle.ports import TEXT_CLIP, TEXT_T5
from selva_runtime.backends.executor import EXACT, Array, Executor, Tensor
from selva_runtime.cache import Cache
from selva_runtime.lru_cache import LruCache
from selva_runtime.placing import Placing
from selva_runtime.text_cache import TextCache
from selva_runtime.turns import Turns

MAX_PROMPT_CHARACTERS = 1000
_CACHED_PROMPTS = 64
_WORD = re.compile(r"[^\W\d_]+")


def check_prompt(prompt: str, *, may_be_empty: bool = False) -> None:
    """Check that a prompt is one that a model can use. A negative prompt may be empty.

    Raises:
        RequestError: the prompt is no text, is empty, is too long or holds control characters.
    """
    if not isinstance(prompt, str):
        raise RequestError(f"a prompt must be a string, not {type(prompt).__name__}")
    if not prompt.strip() and not (may_be_empty and not prompt):
        raise RequestError("a prompt is empty; say what should be heard, such as 'dog barking'")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise RequestError(
            f"the prompt {short(prompt)} has {len(prompt)} characters; use at most {MAX_PROMPT_CHARACTERS}"
        )
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in prompt):
        raise RequestError(f"the prompt {short(prompt)} holds control or undecodable characters; remove them")


def short(prompt: str) -> str:
    """Quote a prompt for a message: one line, shortened."""
    return repr(prompt if len(prompt) <= 40 else prompt[:39] + "…")


class TextTower:
    """One text tower: its tokenizer, its graph and the cached features of recent prompts. `stored` has more of them."""

    def __init__(
        self,
        executor: Executor,
        graph: str,
        tokenizer: Tokenizer,
        feeds: Callable[[Encoding], dict[str, Array]],
        stored: TextCache | None,
    ):
        self.tokenizer = tokenizer
        self._executor = executor
        self._graph = graph
        self._feeds = feeds
        self._stored = stored
        self._cache: LruCache[str, Tensor] = LruCache(_CACHED_PROMPTS)

    def cached(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the features that need not be computed."""
        found = {prompt: self._cache[prompt] for prompt in prompts if prompt in self._cache}
        if self._stored is not None:
            for prompt in dict.fromkeys(prompts):
                if prompt not in found and (features := self._stored.find(self._feeds_of(prompt))) is not None:
                    found[prompt] = self._cache[prompt] = features
        return found

    def features(
        self,
        prompts: Sequence[str],
        cached: Mapping[str, Tensor],
        *,
        keep: bool,
        cancel: Event | None,
        on_done: Callable[[], None],
    ) -> dict[str, Tensor]:
        """(tokens, width) features of each prompt. `on_done` is called after each prompt that is not `cached`.

        Raises:
            BackendError: the backend failed.
            Cancelled: `cancel` was set.
        """
        found = dict(cached)
        try:
            for prompt in dict.fromkeys(prompts):
                if prompt not in cached:
                    feeds = self._feeds_of(prompt)
                    found[prompt] = self._cache[prompt] = self._executor.run(self._graph, feeds, cancel)["features"][0]
                    if self._stored is not None:
                        self._stored.keep(feeds, found[prompt], prompt)
                    on_done()
        finally:
            if not keep:
                self._executor.release(self._graph)
        return found

    def means(self, prompts: Sequence[str], cancel: Event | None, *, keep: bool) -> Array:
        """(prompts, width) float32 features of each prompt, averaged over its own tokens.

        Raises:
            BackendError: the backend failed.
            Cancelled: `cancel` was set.
        """
        found = self.features(prompts, self.cached(prompts), keep=keep, cancel=cancel, on_done=lambda: None)
        own = [found[prompt][: len(self.tokenizer.encode(prompt).ids)] for prompt in prompts]
        return np.stack([features.astype(np.float32).mean(0) for features in self._executor.read(*own)])

    def _feeds_of(self, prompt: str) -> dict[str, Array]:
        return self._feeds(self.tokenizer.encode(prompt))


class TextEncoder:
    """The text towers of a bundle. `keep` leaves them loaded between calls. MMAudio has no T5.

    `cache` keeps features on the disk. They depend on the `precision` of the computation. `features` runs in a turn of
    its caller, `warnings` takes one of `turns` if it needs it.

    Raises:
        BundleError: a tokenizer cannot be read, or a prompt that the manifest names is none.
    """

    def __init__(
        self,
        bundle: Bundle,
        executor: Executor,
        *,
        turns: Turns,
        keep: bool = False,
        cache: Cache | None = None,
        precision: str = EXACT,
    ) -> None:
        self._manifest = bundle.manifest
        _check_known(bundle)
        self._cache = cache
        rules = bundle.manifest.text
        clip = _load_tokenizer(bundle, rules.clip_tokenizer, rules.clip_tokens)

        def t5_feeds(encoding: Encoding) -> dict[str, Array]:
            count = len(encoding.ids)
            length = next((length for length in executor.text_lengths if length >= count), count)
            ids = np.zeros((1, length), dtype=np.int64)
            ids[0, :count] = encoding.ids
            return {"ids": ids, "mask": _first(count, length)}

        def clip_feeds(encoding: Encoding) -> dict[str, Array]:
            ids = np.full((1, rules.clip_tokens), rules.clip_pad_id, dtype=np.int64)
            ids[0, : len(encoding.ids)] = encoding.ids
            return {"ids": ids}

        def stored(graph: str) -> TextCache | None:
            key = {"graph": bundle.graph_hash(graph), "backend": executor.backend, "precision": precision}
            return None if cache is None else TextCache(cache, executor, key, bundle.manifest.preset)

        self.t5: TextTower | None = None
        self._placing: Placing | None = None
        if rules.t5_tokenizer is not None:
            t5 = _load_tokenizer(bundle, rules.t5_tokenizer, rules.t5_max_tokens)
            self.t5 = TextTower(executor, TEXT_T5, t5, t5_feeds, stored(TEXT_T5))
            self._placing = Placing(bundle.manifest, partial(self.t5.means, keep=keep), turns)
        self.clip_text = TextTower(executor, TEXT_CLIP, clip, clip_feeds, stored(TEXT_CLIP))
        self._keep = keep

    def mask(self, prompt: str, length: int) -> Array:
        """(1, length) bool: true for the prompt's own T5 tokens, false for padding."""
        assert self.t5 is not None
        return _first(len(self.t5.tokenizer.encode(prompt).ids), length)

    def warnings(self, prompts: Sequence[str], cancel: Event | None) -> dict[str, tuple[str, ...]]:
        """Return warnings about what the model ignores in each prompt.

        If the manifest names what the model does not hear, the T5 tower tells which prompts mean such a thing. That
        waits for other calls. If the tower cannot run, only words are checked: the call that generates says why.

        Raises:
            BundleError: a file was altered.
            Cancelled: `cancel` was set.
        """
        heard_not = set() if self._placing is None else self._placing.heard_not(prompts, cancel)
        return {prompt: self._warnings(prompt, is_heard=prompt not in heard_not) for prompt in prompts}

    def _warnings(self, prompt: str, *, is_heard: bool) -> tuple[str, ...]:
        encodings = [tower.tokenizer.encode(prompt) for tower in (self.t5, self.clip_text) if tower is not None]
        warnings = []
        if self.t5 is not None and (unknown := _unknown(prompt, encodings[0], self.t5.tokenizer)):
            sample = "".join(dict.fromkeys("".join(unknown)))[:12]
            warnings.append(
                f"the prompt {short(prompt)} has characters that the model does not know ({sample}); use plain English"
            )
        if ignored := self._ignored(prompt, is_heard=is_heard):
            warnings.append(f"the {self._manifest.preset} model {ignored}; it hears: {', '.join(self._manifest.hears)}")
        cut = [encoding for encoding in encodings if encoding.overflowing]
        if cut:
            end = min(max(end for _, end in e.offsets) for e in cut)
            words = len(prompt[:end].split())
            warnings.append(
                f"the prompt {short(prompt)} is longer than the model reads: only its first {words} words are used"
            )
        return tuple(warnings)

    def new_cache_warnings(self) -> tuple[str, ...]:
        """Return what went wrong with the cache since the last call."""
        return () if self._cache is None else self._cache.new_warnings()

    def _ignored(self, prompt: str, *, is_heard: bool) -> str:
        """Say what a limited model does not understand: the prompt, or words of it. Empty if it does."""
        if not is_heard:
            return f"cannot tell which of its sounds {short(prompt)} means"
        unknown_words = self._unknown_words(prompt)
        return f"does not know {unknown_words}" if unknown_words else ""

    def _unknown_words(self, prompt: str) -> str:
        """Quote the words that a limited model was not trained with. Empty if the model has no list of words."""
        if not self._manifest.words:
            return ""
        words = dict.fromkeys(_WORD.findall(prompt.lower()))
        return ", ".join(short(word) for word in words if word not in self._manifest.words)

    def features(
        self,
        prompts: Sequence[str],
        negative: str | None,
        *,
        cancel: Event | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """T5 features (tokens, width) of the prompts, and CLIP features (77, width) of them and the negative prompt.

        T5 features may have more rows than the prompt has tokens; `mask` tells which count. MMAudio has none.

        `on_progress(done, total)` counts the prompts that had to be computed, once for each tower.

        Raises:
            BackendError: the backend failed.
            Cancelled: `cancel` was set.
        """
        clip_prompts = [*prompts, *([] if negative is None else [negative])]
        clip_cached = self.clip_text.cached(clip_prompts)
        t5_cached = {} if self.t5 is None else self.t5.cached(prompts)
        total = len({*clip_prompts} - {*clip_cached}) + (0 if self.t5 is None else len({*prompts} - {*t5_cached}))
        done = 0

        def on_done() -> None:
            nonlocal done
            done += 1
            if on_progress is not None:
                on_progress(done, total)

        t5: dict[str, Tensor] = {}
        if self.t5 is not None:
            t5 = self.t5.features(prompts, t5_cached, keep=self._keep, cancel=cancel, on_done=on_done)
        clip = self.clip_text.features(clip_prompts, clip_cached, keep=self._keep, cancel=cancel, on_done=on_done)
        return t5, clip


def _check_known(bundle: Bundle) -> None:
    for prompt in (*bundle.manifest.hears, *bundle.manifest.hears_not):
        try:
            check_prompt(prompt)
        except RequestError as error:
            raise BundleError(f"{bundle.path}: among what it hears, {error}; export the bundle again") from error


def _unknown(prompt: str, encoding: Encoding, tokenizer: Tokenizer) -> list[str]:
    """The parts of a prompt that the tokenizer does not know."""
    unknown = tokenizer.token_to_id("<unk>")
    places = zip(encoding.ids, encoding.offsets, strict=True)
    return [prompt[start:end] for id_, (start, end) in places if id_ == unknown]


def _first(count: int, length: int) -> Array:
    return (np.arange(length) < count)[None]


def _load_tokenizer(bundle: Bundle, name: str, max_tokens: int) -> Tokenizer:
    content = bundle.read(name)
    try:
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
    except Exception as error:  # tokenizers raises bare Exception
        raise BundleError(
            f"{bundle.path / name} is not a tokenizer: {str(error).splitlines()[0]}; export the bundle again"
        ) from error
    return tokenizer
