"""Compares text towers with independent implementations and with their ONNX graphs, and tests the tokenizers."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.export import Dim
from transformers import CLIPTokenizer, T5Config, T5EncoderModel

import selva_ref
from selva_ref.demo.world import vocabularies
from selva_ref.errors import CheckpointError, CheckpointNotFoundError
from selva_ref.model.presets import PRESETS
from selva_ref.model.text import ClipTower, T5Tower
from selva_ref.model.text_tokenizers import DEMO, clip_tokenizer, save, t5_tokenizer
from selva_ref.weights.random_weights import state_dict as random_weights

# The demo's sizes with a slightly wider T5 feed-forward: the exporter folds casts of very small weights.
TEXT = replace(PRESETS["demo"].text, t5_mlp=192)
PROMPTS = [
    "dog barking",
    "The  sound of RAIN\ton a roof!",
    "don't stop, it's 42 o'clock",
    "犬が吠える 🐕 звук",
    "",
    "x" * 400,
]


def relative_error(got: Tensor | np.ndarray, wanted: Tensor | np.ndarray) -> float:
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def ids_and_mask(batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Makes random ids; if there are several items, the first is half as long as the others."""
    generator = torch.Generator().manual_seed(batch * 1000 + tokens)
    ids = torch.randint(0, TEXT.t5_vocabulary, (batch, tokens), generator=generator)
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    if batch > 1:
        mask[0, (tokens + 1) // 2 :] = False
    return ids, mask


def clip_ids(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, TEXT.clip_vocabulary, (batch, TEXT.clip_tokens), generator=generator)


def filled(tower: nn.Module) -> nn.Module:
    return tower.load_official(random_weights(tower)).requires_grad_(False)


@pytest.fixture(scope="module")
def t5() -> T5Tower:
    return filled(T5Tower(TEXT))


@pytest.fixture(scope="module")
def clip() -> ClipTower:
    return filled(ClipTower(TEXT))


def transformers_t5(tower: T5Tower) -> T5EncoderModel:
    config = T5Config(
        vocab_size=TEXT.t5_vocabulary,
        d_model=TEXT.t5_width,
        num_layers=TEXT.t5_depth,
        num_heads=TEXT.t5_heads,
        d_kv=TEXT.t5_head_width,
        d_ff=TEXT.t5_mlp,
        feed_forward_proj="gated-gelu",
    )
    model = T5EncoderModel(config).eval()
    weights = tower.state_dict()
    model.load_state_dict(weights | {"encoder.embed_tokens.weight": weights["shared.weight"]})
    return model


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (2, 9), (3, TEXT.t5_max_tokens)])
def test_t5_computes_what_transformers_does(t5, batch, tokens):
    ids, mask = ids_and_mask(batch, tokens)
    with torch.no_grad():
        wanted = transformers_t5(t5)(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert relative_error(t5(ids, mask)[mask], wanted[mask]) < 1e-5


def test_t5_padding_changes_nothing(t5):
    ids, mask = ids_and_mask(1, 7)
    padded, padded_mask = F.pad(ids, (0, 5), value=3), F.pad(mask, (0, 5), value=False)
    assert relative_error(t5(padded, padded_mask)[:, :7], t5(ids, mask)) < 1e-6


def test_t5_takes_the_official_file(t5):
    weights = t5.state_dict()
    embedding = weights.pop("shared.weight")
    rest = {"lm_head.weight": torch.ones(2), "decoder.block.0.layer.0.layer_norm.weight": torch.ones(2)}
    for tied in ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        other = T5Tower(TEXT).load_official(weights | rest | {tied: embedding})
        assert all(
            torch.equal(a, b) for a, b in zip(other.state_dict().values(), t5.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize("tower", ["t5", "clip"])
def test_a_wrong_file_is_one_error_with_every_name(tower, request):
    tower = request.getfixturevalue(tower)
    weights = tower.state_dict()
    names = sorted(weights)
    del weights[names[1]], weights[names[3]]
    weights |= {names[5]: torch.ones(1, 2, 3), "what.is.this": torch.ones(1)}
    with pytest.raises(CheckpointError) as error:
        tower.load_official(weights)
    message = str(error.value)
    assert (
        f"missing: {names[1]}, {names[3]}; unexpected: what.is.this; wrong shape: {names[5]} (1x2x3, needs" in message
    )


def open_clip_weights() -> dict[str, Tensor]:
    """A small CLIP text tower with open_clip's names."""
    generator = torch.Generator().manual_seed(5)
    width, mlp = TEXT.clip_width, TEXT.clip_mlp
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (TEXT.clip_vocabulary, width),
        "positional_embedding": (TEXT.clip_tokens, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    for i in range(TEXT.clip_depth):
        block = {
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (mlp, width),
            "mlp.c_fc.bias": (mlp,),
            "mlp.c_proj.weight": (width, mlp),
            "mlp.c_proj.bias": (width,),
        }
        shapes |= {f"transformer.resblocks.{i}.{name}": shape for name, shape in block.items()}
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def plain_clip(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """CLIP's text transformer written out, one head after another."""
    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    head_width = TEXT.clip_width // TEXT.clip_heads
    for i in range(TEXT.clip_depth):
        p = f"transformer.resblocks.{i}."
        y = F.layer_norm(x, x.shape[-1:], w[p + "ln_1.weight"], w[p + "ln_1.bias"])
        q, k, v = (y @ w[p + "attn.in_proj_weight"].T + w[p + "attn.in_proj_bias"]).split(TEXT.clip_width, dim=-1)
        heads = []
        for h in range(TEXT.clip_heads):
            at = slice(h * head_width, (h + 1) * head_width)
            scores = q[..., at] @ k[..., at].mT / math.sqrt(head_width)
            for row in range(TEXT.clip_tokens):
                scores[:, row, row + 1 :] = -math.inf
            heads.append(scores.softmax(-1) @ v[..., at])
        x = x + torch.cat(heads, -1) @ w[p + "attn.out_proj.weight"].T + w[p + "attn.out_proj.bias"]
        y = F.layer_norm(x, x.shape[-1:], w[p + "ln_2.weight"], w[p + "ln_2.bias"])
        y = y @ w[p + "mlp.c_fc.weight"].T + w[p + "mlp.c_fc.bias"]
        x = x + (y * torch.sigmoid(1.702 * y)) @ w[p + "mlp.c_proj.weight"].T + w[p + "mlp.c_proj.bias"]
    x = F.layer_norm(x, x.shape[-1:], w["ln_final.weight"], w["ln_final.bias"])
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("prefix", ["", "text."])
def test_clip_computes_what_open_clip_states(prefix):
    weights, ids = open_clip_weights(), clip_ids(3)
    others = {
        "visual.transformer.resblocks.0.attn.in_proj_weight": torch.ones(1),
        "visual.positional_embedding": torch.ones(1),
        "logit_scale": torch.tensor(1.0),
        f"{prefix}text_projection": torch.ones(2),
        f"{prefix}attn_mask": torch.ones(2, 2),
    }
    tower = ClipTower(TEXT).load_official({prefix + name: tensor for name, tensor in weights.items()} | others)
    with torch.no_grad():
        features = tower(ids)
    assert features.dtype == torch.float32
    assert relative_error(features, plain_clip(weights, ids)) < 1e-6


def test_clip_takes_transformers_names(clip):
    weights = {f"text_model.{name}": tensor for name, tensor in clip.state_dict().items()}
    weights |= {
        "text_model.embeddings.position_ids": torch.arange(32)[None],
        "vision_model.post_layernorm.weight": torch.ones(2),
        "visual_projection.weight": torch.ones(2),
        "text_projection.weight": torch.ones(2),
        "logit_scale": torch.tensor(1.0),
    }
    other = ClipTower(TEXT).load_official(weights)
    assert torch.equal(other(clip_ids(2)), clip(clip_ids(2)))


def test_clip_is_causal_and_sees_the_padding(clip):
    ids = clip_ids(1)
    ids[:, 10:] = 0
    changed = ids.clone()
    changed[:, 20] = 1
    before, after = clip(ids), clip(changed)
    assert torch.equal(before[:, :20], after[:, :20])
    assert (before[:, 20:] - after[:, 20:]).abs().amax(-1).min() > 1e-3
    assert torch.allclose(before.norm(dim=-1), torch.ones(1, TEXT.clip_tokens))


def test_half_precision_keeps_a_feed_forward_that_float16_cannot_hold():
    tower = filled(T5Tower(TEXT))
    for block in tower.encoder["block"]:
        block.layer[1].DenseReluDense.wo.weight *= 1e5
    ids, mask = ids_and_mask(2, 12)
    wanted = tower(ids, mask)
    largest = []
    tower.encoder["block"][0].layer[1].register_forward_hook(lambda *a: largest.append(a[2].abs().max().item()))
    got = tower.half()(ids, mask)
    assert largest[0] > torch.finfo(torch.float16).max
    assert got.dtype == torch.float32
    assert relative_error(got, wanted) < 5e-3


def graph(tower: nn.Module, args: tuple[Tensor, ...], shapes: tuple[dict[int, Dim], ...], path: Path) -> Path:
    names = ["ids", "mask"][: len(args)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            tower,
            args,
            path,
            input_names=names,
            output_names=["features"],
            dynamic_shapes=shapes,
            opset_version=20,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return path


def run(path: Path, *args: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return session.run(None, {name: arg.numpy() for name, arg in zip(names, args, strict=True)})[0]


def weight_types(path: Path) -> set[int]:
    """Element types of the weight matrices in a file."""
    return {w.data_type for w in onnx.load(path).graph.initializer if math.prod(w.dims) > 8192 and len(w.dims) > 1}


TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2}
"""Relative error between a graph on ONNX Runtime and its module; the second includes two roundings to float16."""
BATCH, TOKENS = Dim("batch", min=1, max=64), Dim("tokens", min=1, max=TEXT.t5_max_tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_t5_graph_matches(tmp_path, dtype):
    tower = filled(T5Tower(TEXT)).to(dtype)
    axes = {0: BATCH, 1: TOKENS}
    path = graph(tower, ids_and_mask(2, 9), (axes, axes), tmp_path / "t5.onnx")
    for batch, tokens in ((1, 1), (3, 16), (2, TEXT.t5_max_tokens)):
        args = ids_and_mask(batch, tokens)
        got = run(path, *args)
        assert got.dtype == np.float32
        assert relative_error(got, tower(*args)) < TOLERANCE[dtype], (batch, tokens)
    assert weight_types(path) == {onnx.helper.np_dtype_to_tensor_dtype(np.dtype(str(dtype).removeprefix("torch.")))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_clip_graph_matches(tmp_path, dtype):
    tower = filled(ClipTower(TEXT)).to(dtype)
    path = graph(tower, (clip_ids(2),), ({0: BATCH},), tmp_path / "clip.onnx")
    for batch in (1, 3):
        got = run(path, clip_ids(batch))
        assert got.dtype == np.float32
        assert relative_error(got, tower(clip_ids(batch))) < TOLERANCE[dtype], batch
    assert weight_types(path) == {onnx.helper.np_dtype_to_tensor_dtype(np.dtype(str(dtype).removeprefix("torch.")))}


def write_clip_files(folder: Path) -> Path:
    """Writes the demo's byte pairs as the two files of a CLIP repository."""
    model = json.loads(clip_tokenizer(DEMO, TEXT).to_str())["model"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    (folder / "merges.txt").write_text("\n".join(merges))
    return folder


def test_clip_tokens_are_those_of_transformers_padded_with_zero(tmp_path):
    folder = write_clip_files(tmp_path / "clip")
    ours = clip_tokenizer(folder, TEXT)
    theirs = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    for prompt in PROMPTS:
        wanted = theirs(prompt, truncation=True, max_length=TEXT.clip_tokens)["input_ids"]
        ids = ours.encode(prompt).ids
        assert ids == wanted + [0] * (TEXT.clip_tokens - len(wanted)), prompt
        assert clip_tokenizer(DEMO, TEXT).encode(prompt).ids == ids


def test_clip_keeps_the_end_token_when_it_cuts():
    ids = clip_tokenizer(DEMO, TEXT).encode("x" * 400).ids
    assert (len(ids), ids[0], ids[-1]) == (32, TEXT.clip_vocabulary - 2, TEXT.clip_vocabulary - 1)


def test_clip_reads_a_tokenizer_json_but_pads_its_own_way(tmp_path):
    other = clip_tokenizer(DEMO, TEXT)
    other.enable_padding(pad_id=5, pad_token="a", length=40)
    save(other, tmp_path / "tokenizer.json")
    assert clip_tokenizer(tmp_path, TEXT).encode("rain").ids == clip_tokenizer(DEMO, TEXT).encode("rain").ids


def test_t5_tokens_end_and_are_cut_and_not_padded(tmp_path):
    plain = t5_tokenizer(DEMO, TEXT)
    plain.no_truncation()
    plain.enable_padding(length=200)
    save(plain, tmp_path / "tokenizer.json")
    tokenizer = t5_tokenizer(tmp_path, TEXT)
    assert tokenizer.encode("dog barking").tokens == ["▁dog", "▁barking", "</s>"]
    assert tokenizer.encode("").tokens == ["</s>"]
    cut = tokenizer.encode("x" * 400)
    assert (len(cut.ids), cut.tokens[-1]) == (TEXT.t5_max_tokens, "</s>")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_demo_tokenizers_take_any_prompt(prompt):
    for tokenizer, size in ((t5_tokenizer(DEMO, TEXT), 512), (clip_tokenizer(DEMO, TEXT), 640)):
        ids = tokenizer.encode(prompt).ids
        assert ids
        assert all(0 <= id_ < size for id_ in ids)


def test_the_demo_tokenizers_are_what_their_script_makes(tmp_path):
    for name, make, read in (
        ("t5_demo.json", vocabularies.make_t5, t5_tokenizer),
        ("clip_demo.json", vocabularies.make_clip, clip_tokenizer),
    ):
        kept = Path(selva_ref.__file__).with_name("data") / "tokenizers" / name
        made = make()
        save(made, tmp_path / name)
        assert json.loads((tmp_path / name).read_text()) == json.loads(kept.read_text())
        assert kept.stat().st_size < 60_000
        assert read(DEMO, TEXT).to_str() == made.to_str()
        assert Tokenizer.from_file(str(kept)).encode("rain").ids == made.encode("rain").ids  # code sets no options


def test_wrong_tokenizers_are_one_error(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"tokenizer\.json: no such file"):
        t5_tokenizer(tmp_path, TEXT)
    with pytest.raises(CheckpointNotFoundError, match=r"vocab\.json: no such file"):
        clip_tokenizer(tmp_path, TEXT)
    with pytest.raises(CheckpointError, match="the text tower knows 100 tokens only"):
        t5_tokenizer(DEMO, replace(TEXT, t5_vocabulary=100))
    save(clip_tokenizer(DEMO, TEXT), tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="not T5's tokenizer"):
        t5_tokenizer(tmp_path, TEXT)
    save(t5_tokenizer(DEMO, TEXT), tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="not CLIP's tokenizer"):
        clip_tokenizer(tmp_path, TEXT)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        t5_tokenizer(tmp_path, TEXT)
    folder = write_clip_files(tmp_path / "clip")
    (folder / "merges.txt").write_text("q q\nzzz zzz\n")
    with pytest.raises(CheckpointError, match="do not fit"):
        clip_tokenizer(folder, TEXT)
