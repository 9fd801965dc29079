"""Which parameters each stage trains, by official name. All others stay identical, bit for bit."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

STAGE1: tuple[str, ...] = (
    "sup_text_feat",
    "text_proj.*",
    "synch_text_cross_blocks.*",
    "vfeat_extractor.spatial_attn_agg.*",
)
"""Video encoder: [SUP] tokens, text projection, cross-attention, spatial pooling. 19.5 M at official widths."""

STAGE2: tuple[str, ...] = (
    "sync_input_proj.*",
    "joint_blocks.*.latent_block.adaLN_modulation.*",
    "fused_blocks.*.adaLN_modulation.*",
    "final_layer.adaLN_modulation.*",
)
"""Generator: sync projection and the latent stream's adaLN. 22.5 M in small_16k."""

STUDENT: tuple[str, ...] = (*STAGE2, "span_embed.*", "strength_embed.*")
"""Student: what stage 2 trains, and the embeddings of the span and of the guidance strength. 23.1 M in small_16k."""


def trainable(module: nn.Module, patterns: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Freezes `module` except the parameters that `patterns` (fnmatch) name, and returns those by name.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    chosen: dict[str, nn.Parameter] = {}
    unused = set(patterns)
    for name, parameter in module.named_parameters():
        hits = {pattern for pattern in patterns if fnmatchcase(name, pattern)}
        parameter.requires_grad_(bool(hits))
        unused -= hits
        if hits:
            chosen[name] = parameter
    if unused:
        raise ValueError(f"{type(module).__name__} has no parameter {', '.join(sorted(unused))}")
    return chosen
