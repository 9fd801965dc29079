"""The demo's text towers: small T5 and CLIP stacks that learn which captions mean the same kind of thing.

The official towers read any text; these know the words of `kinds` and little else. Everything else means one more kind,
`UNKNOWN`. The towers learn that from captions of what the world does not have, and from nonsense.
Shapes: C captions, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from selva_ref.demo.world.kinds import ABSENT, CAPTIONS, KINDS, SCENES, nonsense
from selva_ref.model.text import ClipTower, T5Tower

UNKNOWN = len(KINDS)
"""The number of the kind of all captions that name nothing in the world."""

NONSENSE = 1500
"""Number of texts that mean nothing among the captions."""
UNKNOWN_DRAWS = 3
"""How often a caption of nothing in the world is drawn in the towers' training, compared with one of each kind."""


class TaughtTowers(nn.Module):
    """Both towers, each with a head that names the kind from the mean of its tokens."""

    def __init__(self, t5: T5Tower, clip: ClipTower, width: int) -> None:
        super().__init__()
        self.t5, self.clip = t5, clip
        self.t5_head, self.clip_head = nn.Linear(width, UNKNOWN + 1), nn.Linear(width, UNKNOWN + 1)


class Prompts:
    """Every caption to train with in every scene, tokenised for both towers."""

    def __init__(self, tokenizers: dict[str, Tokenizer]) -> None:
        each = [*(CAPTIONS[kind] for kind in KINDS), ABSENT]
        texts = [(scene.format(c), k) for k, captions in enumerate(each) for c in captions for scene in SCENES]
        texts += [(text, UNKNOWN) for text in nonsense(NONSENSE, 0)]
        self.texts = [text for text, _ in texts]
        self.kinds = np.array([kind for _, kind in texts])
        """(C,) kind of each caption; `UNKNOWN` for one that names nothing in the world."""
        self._first, self._count = np.unique(self.kinds, return_index=True, return_counts=True)[1:]
        ids = [tokenizers["t5"].encode(text).ids for text in self.texts]
        longest = max(len(one) for one in ids)
        self.t5_ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in ids])
        self.t5_mask = torch.tensor([[True] * len(one) + [False] * (longest - len(one)) for one in ids])
        self.clip_tokenizer = tokenizers["clip"]
        self.clip_ids = self._clip_ids(self.texts)

    def _clip_ids(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([self.clip_tokenizer.encode(text).ids for text in texts])

    def draw_all(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Draws captions of all kinds and of none, (B,) indices."""
        return self.draw(rng, np.minimum(rng.integers(len(KINDS) + UNKNOWN_DRAWS, size=batch), UNKNOWN))

    def draw(self, rng: np.random.Generator, kinds: np.ndarray) -> np.ndarray:
        """Draws one caption for each kind, (B,) indices."""
        out: np.ndarray = self._first[kinds] + rng.integers(self._count[kinds])
        return out

    def plain(self, kinds: np.ndarray) -> np.ndarray:
        """The plain caption of each kind, (B,) indices."""
        out: np.ndarray = self._first[kinds]
        return out

    @torch.no_grad()
    def features(self, t5: T5Tower, clip: ClipTower) -> tuple[Tensor, Tensor]:
        """T5 features (C, L, D), zero where masked, and CLIP features (C, tokens, D) of all captions."""
        return t5(self.t5_ids, self.t5_mask) * self.t5_mask[..., None], clip(self.clip_ids)

    @torch.no_grad()
    def clip_features(self, clip: ClipTower, texts: Sequence[str]) -> Tensor:
        """CLIP features of any texts, (B, tokens, D) float32."""
        with torch.autocast("cpu", enabled=False):
            y: Tensor = clip(self._clip_ids(texts))
        return y


def text_loss(towers: TaughtTowers, prompts: Prompts, rows: np.ndarray) -> Tensor:
    """Cross-entropy of the kind, for each tower."""
    kinds, mask = torch.from_numpy(prompts.kinds[rows]), prompts.t5_mask[rows]
    t5 = (towers.t5(prompts.t5_ids[rows], mask) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    clip = towers.clip(prompts.clip_ids[rows]).mean(1)
    return F.cross_entropy(towers.t5_head(t5), kinds) + F.cross_entropy(4 * towers.clip_head(clip), kinds)
