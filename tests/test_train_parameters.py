"""Which parameters each stage trains, by name and number, and that it trains no others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import selva_ref
from selva_ref.training.parameters import STAGE1, STAGE2, STUDENT, trainable

CROSS = (
    *(f"attn.{name}" for name in ("q_proj.weight", "q_proj.bias", "kv_proj.weight", "kv_proj.bias")),
    *("attn.q_norm.weight", "attn.k_norm.weight", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"),
    *("linear1.weight", "linear1.bias", "ffn.w1.weight", "ffn.w2.weight", "ffn.w3.weight"),
)
POOLING = (
    *("cls_token", "self_attn.in_proj_weight", "self_attn.in_proj_bias"),
    *("self_attn.out_proj.weight", "self_attn.out_proj.bias", "linear1.weight", "linear1.bias"),
    *("linear2.weight", "linear2.bias", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"),
)
STAGE1_NAMES = {
    "sup_text_feat",
    *(f"text_proj.{name}" for name in ("0.weight", "0.bias", "2.w1.weight", "2.w2.weight", "2.w3.weight")),
    *(f"synch_text_cross_blocks.0.{name}" for name in CROSS),
    *(f"vfeat_extractor.spatial_attn_agg.{name}" for name in POOLING),
}
ADALN = (
    *(f"joint_blocks.{block}.latent_block" for block in range(4)),
    *(f"fused_blocks.{block}" for block in range(8)),
    "final_layer",
)
STAGE2_NAMES = {
    *(f"sync_input_proj.{name}" for name in ("0.weight", "0.bias", "2.w1.weight", "2.w2.weight", "2.w3.weight")),
    *(f"{block}.adaLN_modulation.1.{kind}" for block in ADALN for kind in ("weight", "bias")),
}
STUDENT_NAMES = STAGE2_NAMES | {
    f"{name}_embed.mlp.{layer}.{kind}"
    for name in ("span", "strength")
    for layer in (0, 2)
    for kind in ("weight", "bias")
}


@pytest.mark.parametrize(
    ("part", "patterns", "names", "count"),
    [
        ("video_encoder", STAGE1, STAGE1_NAMES, 19_485_824),
        ("generator", STAGE2, STAGE2_NAMES, 22_455_104),
        ("student", STUDENT, STUDENT_NAMES, 23_087_680),
    ],
)
def test_official_parameter_sets(part: str, patterns: tuple[str, ...], names: set[str], count: int) -> None:
    with torch.device("meta"):
        network = selva_ref.build(part, "small_16k")
    chosen = trainable(network, patterns)
    assert set(chosen) == names
    assert sum(parameter.numel() for parameter in chosen.values()) == count
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == names


def test_a_pattern_without_a_parameter_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"Linear has no parameter wieght"):
        trainable(nn.Linear(2, 2), ("bias", "wieght"))
