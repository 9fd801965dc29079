"""T5 features of any texts, whether the tower was trained with them or not.

Shapes: C texts, L tokens of the longest, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import selva_ref
from selva_ref.demo.bounds import HEARS, HEARS_NOT
from selva_ref.demo.run import PRESET, DemoRun
from selva_ref.weights.loading import load_tokenizers
from selva_runtime.placing import is_heard_not


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """One row for each text."""

    t5: Tensor
    """(C, L, D), zero where masked."""
    mask: Tensor
    """(C, L) bool: true for the text's own tokens."""

    @classmethod
    @torch.no_grad()
    def of(cls, run: DemoRun, texts: Sequence[str]) -> TextFeatures:
        """Computes the features with the finished tower of a run."""
        tokenizer = load_tokenizers(PRESET, None)["t5"]
        ids = [tokenizer.encode(text).ids for text in texts]
        longest = max(len(one) for one in ids)
        mask = torch.tensor([[True] * len(one) + [False] * (longest - len(one)) for one in ids])
        padded = torch.tensor([[*one, *[0] * (longest - len(one))] for one in ids])
        t5 = run.load(selva_ref.build("text_t5", PRESET), "text_t5")
        return cls(t5=t5(padded, mask) * mask[..., None], mask=mask)

    def means(self) -> npt.NDArray[np.float32]:
        """Mean T5 feature of each text over its tokens, (C, D)."""
        out: npt.NDArray[np.float32] = (self.t5.sum(1) / self.mask.sum(1, keepdim=True)).numpy()
        return out


def warned_of(run: DemoRun, texts: Sequence[str]) -> list[bool]:
    """Whether the runtime warns that it cannot tell which of its sounds each text means."""
    means = TextFeatures.of(run, [*texts, *HEARS, *HEARS_NOT]).means()
    asked, hears, hears_not = np.split(means, [len(texts), len(texts) + len(HEARS)])
    return [is_heard_not(mean, hears, hears_not) for mean in asked]
