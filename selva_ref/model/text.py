"""The two text towers: transformers' own T5 and CLIP blocks, in our own loops.

We do not use transformers' model classes, because three things they do between the blocks do not work in an exported
graph. They build masks in ways that break tracing. They sort T5's relative distances into buckets with a float32
logarithm, which runtimes round differently at the bucket edges, so we bake the buckets. In half precision, a softmax
and a feed-forward output exceed the range of float16. So in float16 the residual stream, the norm statistics, the
softmax and T5's feed-forward output stay float32; every weight is stored in float16.

Shapes: B batch, L tokens, W width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from selva_ref.model.layers import LayerNorm
from selva_ref.model.official import OfficialModule
from selva_ref.model.presets import TextConfig

_MASKED = torch.finfo(torch.float32).min
Layer = TypeVar("Layer", bound=nn.Module)
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float = 1.0,
    position_bias: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention with transformers' interface; bias and softmax are float32. T5 passes the bias, CLIP the mask."""
    scores_BHLL = ((query * scaling) @ key.transpose(-1, -2)).float()
    bias = attention_mask if position_bias is None else position_bias
    assert bias is not None
    probabilities = (scores_BHLL + bias).softmax(-1).to(value.dtype)
    return (probabilities @ value).transpose(1, 2), None


AttentionInterface.register("selva", _attention)


class _Norm(LayerNorm):
    """Layer norm of the float32 residual stream; the output has the precision of the weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(self.weight.dtype)


class Float32Linear(nn.Linear):
    """Linear layer without bias; its product and result are float32 whatever its weight's data type."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float() @ self.weight.T.float()


class T5Tower(OfficialModule):
    """T5 v1.1 encoder (gated GELU). The weights have the names of transformers' `T5EncoderModel`."""

    ignored_names = ("decoder.*", "lm_head.*")

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        t5_config = T5Config(
            vocab_size=config.t5_vocabulary,
            d_model=config.t5_width,
            num_layers=config.t5_depth,
            num_heads=config.t5_heads,
            d_kv=config.t5_head_width,
            d_ff=config.t5_mlp,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
        model = T5EncoderModel(t5_config)
        model.config._attn_implementation = "selva"
        self.shared = model.shared
        self.encoder = nn.ModuleDict({"block": model.encoder.block, "final_layer_norm": model.encoder.final_layer_norm})
        for block in self.encoder["block"].children():
            wo = Float32Linear(config.t5_mlp, config.t5_width, bias=False)
            name = "layer.1.DenseReluDense.wo"
            block.set_submodule(name, _same_weights(block.get_submodule(name), wo))
        distances = torch.arange(1 - config.t5_max_tokens, config.t5_max_tokens)
        buckets = self._first_attention._relative_position_bucket(distances)  # private, but the one used in training
        self.bucket_of_distance = nn.Buffer(buckets, persistent=False)
        self.max_tokens = config.t5_max_tokens

    @property
    def _first_attention(self) -> T5Attention:
        """The attention layer that holds the position table of all blocks."""
        attention = self.get_submodule("encoder.block.0.layer.0.SelfAttention")
        assert isinstance(attention, T5Attention)
        return attention

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids int64 (B, L) and mask bool (B, L), True for text, L <= t5_max_tokens -> features float32 (B, L, W)."""
        x_BLW = self.shared(ids).float()
        bias_BHLL = self._position_bias(ids.shape[1]).masked_fill(~mask[:, None, None, :], _MASKED)
        for block in self.encoder["block"].children():
            x_BLW = block(x_BLW, position_bias=bias_BHLL)[0]
        y: Tensor = self.encoder["final_layer_norm"](x_BLW).float()
        return y

    def _position_bias(self, tokens: int) -> Tensor:
        position = torch.arange(tokens, device=self.bucket_of_distance.device)
        distance_LL = position[None, :] - position[:, None] + self.max_tokens - 1
        bias_of_distance = self._first_attention.relative_attention_bias(self.bucket_of_distance)
        return F.embedding(distance_LL, bias_of_distance).float().permute(2, 0, 1)[None]

    def load_official(self, state_dict: Mapping[str, Tensor]) -> Self:
        """Loads FLAN-T5 (without decoder and head) or this tower's own names.

        Raises:
            CheckpointError: the weights do not fit.
        """
        tensors = {name: tensor for name, tensor in state_dict.items() if name not in _EMBEDDINGS}
        tied = [state_dict[name] for name in _EMBEDDINGS if name in state_dict]
        if tied:
            tensors["shared.weight"] = tied[0]
        return super().load_official(tensors)


class ClipTower(OfficialModule):
    """CLIP text transformer (QuickGELU, causal, padding visible). Names as in transformers' `CLIPTextModel`."""

    ignored_names = (
        "visual.*",
        "vision_model.*",
        "visual_projection.*",
        "text_projection*",
        "logit_*",
        "attn_mask",
        "*position_ids",
    )

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        clip_config = CLIPTextConfig(
            vocab_size=config.clip_vocabulary,
            hidden_size=config.clip_width,
            num_hidden_layers=config.clip_depth,
            num_attention_heads=config.clip_heads,
            intermediate_size=config.clip_mlp,
            max_position_embeddings=config.clip_tokens,
            hidden_act="quick_gelu",
            bos_token_id=config.clip_vocabulary - 2,
            eos_token_id=config.clip_vocabulary - 1,
        )
        model = CLIPTextModel(clip_config)
        model.config._attn_implementation = "selva"
        self.embeddings = model.embeddings
        self.encoder = nn.ModuleDict({"layers": model.encoder.layers})
        self.final_layer_norm = _norm(model.final_layer_norm)
        for layer in self.encoder["layers"].children():
            for name in ("layer_norm1", "layer_norm2"):
                layer.set_submodule(name, _norm(layer.get_submodule(name)))
        future = torch.ones(config.clip_tokens, config.clip_tokens, dtype=torch.bool).triu(1)
        self.future = nn.Buffer(future, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids int64 (B, clip_tokens) -> features float32 (B, clip_tokens, W), each token normalised to length 1."""
        x_BLW = self.embeddings(ids).float()
        mask_LL = torch.zeros(self.future.shape, device=ids.device).masked_fill(self.future, _MASKED)
        for layer in self.encoder["layers"].children():
            x_BLW = layer(x_BLW, attention_mask=mask_LL)
        return F.normalize(self.final_layer_norm(x_BLW).float(), dim=-1)

    def load_official(self, state_dict: Mapping[str, Tensor]) -> Self:
        """Loads open_clip's or transformers' names, without the image tower and projections.

        Raises:
            CheckpointError: the weights do not fit.
        """
        tensors: dict[str, Tensor] = {}
        for name, tensor in state_dict.items():
            tensors.update(_clip_names(name, tensor))
        return super().load_official(tensors)


_OPEN_CLIP_NAMES = (
    ("token_embedding.", "embeddings.token_embedding."),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("transformer.resblocks.", "encoder.layers."),
    (".attn.", ".self_attn."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    ("ln_final.", "final_layer_norm."),
)


def _clip_names(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Renames one tensor of a CLIP checkpoint for this tower; open_clip stacks query, key and value in one tensor."""
    if name.startswith(("embeddings.", "encoder.", "visual.", "vision_model.")):
        return {name: tensor}
    name = name.removeprefix("text_model.").removeprefix("text.")
    if name.startswith(("token_embedding", "positional_embedding", "transformer.", "ln_final")):
        for theirs, ours in _OPEN_CLIP_NAMES:
            name = name.replace(theirs, ours)
    if ".self_attn.in_proj_" in name:
        return {
            name.replace("in_proj_", f"{which}_proj."): part
            for which, part in zip("qkv", tensor.chunk(3), strict=False)  # a wrong row count is reported later by name
        }
    return {name: tensor}


def _norm(norm: nn.Module) -> _Norm:
    assert isinstance(norm, nn.LayerNorm)
    return _same_weights(norm, _Norm(norm.normalized_shape, eps=norm.eps))


def _same_weights(old: nn.Module, new: Layer) -> Layer:
    new.load_state_dict(old.state_dict())
    return new
