"""Classes of `transformers` that compute what some of our models compute: Pegasus and Marian.

Both are encoder-decoders with LayerNorm, sinusoidal positions, plain feed-forward layers and one embedding table, times
sqrt(D); Pegasus normalises before each sublayer and at the end, Marian after each sublayer. Where theirs has a bias and
ours has none, it is zero. They lay out sines and cosines in halves (first all sines) and we in turns, as the paper
writes it: so the features of their residual stream are ours in another order, in every weight that touches it.
"""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from mtattn.attention.positions import Sinusoidal
from mtattn.checkpoint import weights_of
from mtattn.config import Config
from mtattn.decode import DecodeConfig
from mtattn.export.exporter import Trained, extra
from mtattn.export.parity import Ids, score
from mtattn.model import Transformer
from mtattn.tokenizer import Tokenizer

MIN_POSITIONS = 1024  # rows of their table of positions, at least


class StockClass(NamedTuple):
    """A class of transformers, and its name in config.json."""

    name: str
    model_type: str


CLASSES = {
    "pre": StockClass("PegasusForConditionalGeneration", "pegasus"),
    "post": StockClass("MarianMTModel", "marian"),
}

Touches = Literal["reads", "writes"]
"""Where the residual stream is in a weight: a layer that reads it has it in its columns, one that writes it, or a norm,
in its rows and bias."""

LAYER: dict[str, tuple[str, Touches]] = {
    "self_attn.q_proj": ("self_attn.q_proj", "reads"),
    "self_attn.k_proj": ("self_attn.k_proj", "reads"),
    "self_attn.v_proj": ("self_attn.v_proj", "reads"),
    "self_attn.out_proj": ("self_attn.out_proj", "writes"),
    "self_attn_residual.norm": ("self_attn_layer_norm", "writes"),
    "cross_attn.q_proj": ("encoder_attn.q_proj", "reads"),
    "cross_attn.k_proj": ("encoder_attn.k_proj", "reads"),
    "cross_attn.v_proj": ("encoder_attn.v_proj", "reads"),
    "cross_attn.out_proj": ("encoder_attn.out_proj", "writes"),
    "cross_attn_residual.norm": ("encoder_attn_layer_norm", "writes"),
    "ffn.up_proj": ("fc1", "reads"),
    "ffn.down_proj": ("fc2", "writes"),
    "ffn_residual.norm": ("final_layer_norm", "writes"),
}
"""Our names inside a layer -> theirs."""


def obstacles(config: Config) -> list[str]:
    """What a model's config would have to say for a class of transformers to compute it, where it does not."""
    model = config.model
    needed = (
        ("model.norm", model.norm, "layernorm"),
        ("model.position.kind", model.position.kind, "sinusoidal"),
        ("model.activation", model.activation, "relu" if model.activation == "swiglu" else model.activation),
        ("model.score", model.score, "scaled_dot"),
        ("model.qk_norm", model.qk_norm, False),
        ("model.num_kv_heads", model.num_kv_heads or model.num_heads, model.num_heads),
        ("model.tied_embeddings", model.tied_embeddings, True),
        ("tokenizer.joint", config.tokenizer.joint, True),
    )
    return [f"{name} = {json.dumps(want)}, not {json.dumps(found)}" for name, found, want in needed if found != want]


def stock_weights(model: Transformer) -> dict[str, Tensor]:
    """The model's weights under the names, and in the order of features, that these classes have."""
    ours = weights_of(model)
    halves = _halves(model.config.d_model)
    places: dict[str, tuple[str, Touches]] = {}
    for side, layers in (("encoder", model.encoder), ("decoder", model.decoder)):
        for number in range(len(layers)):
            for mine, (theirs, touches) in LAYER.items():
                places[f"{side}.{number}.{mine}"] = f"model.{side}.layers.{number}.{theirs}", touches
        places[f"{side}_norm"] = f"model.{side}.layer_norm", "writes"
    found = {"model.shared.weight": ours["tgt_embed.weight"][:, halves]}
    for mine, (theirs, touches) in places.items():
        weight = ours.get(f"{mine}.weight")
        if weight is None:
            continue  # an encoder has no cross-attention, and post-norm nothing at the end
        bias = ours.get(f"{mine}.bias", torch.zeros(len(weight), device=weight.device))
        found[f"{theirs}.weight"] = weight[:, halves] if touches == "reads" else weight[halves]
        found[f"{theirs}.bias"] = bias if touches == "reads" else bias[halves]
    found["final_logits_bias"] = torch.zeros(1, len(found["model.shared.weight"]))
    return found


def stock_files(trained: Trained) -> dict[str, bytes]:
    """File name -> content of all that transformers reads: config, weights, and the tokenizer as Marian's reads it."""
    tokenizer = trained.tokenizer
    weights = {name: weight.float().cpu().contiguous() for name, weight in stock_weights(trained.model).items()}
    if trained.config.model.norm_position == "pre":  # Pegasus would compute the same, but say that it is missing
        size = trained.config.model.d_model
        table = Sinusoidal(size)(torch.zeros(1, _positions(trained.config), size))[0, :, _halves(size)]
        weights |= {f"model.{side}.embed_positions.weight": table.clone() for side in ("encoder", "decoder")}
    (pieces,) = tokenizer.to_files().values()
    vocabulary = {piece: i for i, piece in enumerate(tokenizer.src_pieces(range(tokenizer.src_vocab_size)))}
    return {
        "config.json": _json(_config(trained)),
        "generation_config.json": _json(_generation(trained)),
        "model.safetensors": save(weights, metadata={"format": "pt"}),
        "source.spm": pieces,
        "target.spm": pieces,
        "vocab.json": _json(vocabulary),
        "tokenizer_config.json": _json(_tokenizer(trained)),
    }


def _halves(size: int) -> Tensor:
    """Their feature -> ours."""
    return torch.cat((torch.arange(0, size, 2), torch.arange(1, size, 2)))


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def _config(trained: Trained) -> dict[str, Any]:
    model, stock = trained.config.model, CLASSES[trained.config.model.norm_position]
    sides = {
        f"{side}_{name}": value
        for side, layers in (("encoder", model.encoder_layers), ("decoder", model.decoder_layers))
        for name, value in (("layers", layers), ("attention_heads", model.num_heads), ("ffn_dim", model.d_ff))
    }
    return {
        "architectures": [stock.name],
        "model_type": stock.model_type,
        "is_encoder_decoder": True,
        "d_model": model.d_model,
        **sides,
        "activation_function": model.activation,
        "dropout": model.dropout,
        "activation_dropout": model.inner_dropout,
        "attention_dropout": model.attention_dropout,
        "vocab_size": trained.tokenizer.tgt_vocab_size,
        "max_position_embeddings": _positions(trained.config),
        "scale_embedding": True,
        "tie_word_embeddings": True,
        "share_encoder_decoder_embeddings": True,
        "forced_eos_token_id": None,
        **special_ids(trained.tokenizer),
    }


def _generation(trained: Trained) -> dict[str, Any]:
    """Greedy search, and what ours never generates is not generated here. Their beam ends by other rules."""
    tokenizer, decode = trained.tokenizer, trained.config.decode
    never = [tokenizer.pad_id, tokenizer.bos_id]
    return {
        **special_ids(tokenizer),
        "num_beams": 1,
        "do_sample": False,
        "max_length": _positions(trained.config),
        "min_length": decode.min_len + 1,  # BOS is counted
        "no_repeat_ngram_size": decode.no_repeat_ngram_size,
        "suppress_tokens": never,
    }


def _positions(config: Config) -> int:
    """Enough for every text that mtattn does not split and every translation that it does not cut, BOS included."""
    longest = config.filter.max_len
    return max(MIN_POSITIONS, longest, config.decode.max_len(longest) + 1)


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The special pieces' ids, by the names that configs of transformers have for them."""
    return {
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "decoder_start_token_id": tokenizer.bos_id,
    }


def _tokenizer(trained: Trained) -> dict[str, Any]:
    return {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": trained.config.data.src,
        "target_lang": trained.config.data.tgt,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": _positions(trained.config),
        "split_special_tokens": True,  # "</s>" in a text is text
        "clean_up_tokenization_spaces": False,
    }


class StockEngine:
    """Run a folder with the class of transformers that its config.json names."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        transformers = extra("transformers")
        self.tokenizer = tokenizer
        self.model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True).eval()

    def score(self, src: Ids, tgt: Ids) -> list[list[float]]:
        return score(self._logits, src, tgt, self.tokenizer)

    def _logits(self, src: Tensor, tgt_in: Tensor) -> Tensor:
        real = (src != self.tokenizer.pad_id).long()
        with torch.inference_mode():
            out = self.model(input_ids=src, attention_mask=real, decoder_input_ids=tgt_in, use_cache=False)
        return out.logits  # type: ignore[no-any-return]  # [B, T, V]

    def translate(self, src: Ids, config: DecodeConfig) -> list[list[int]]:
        """Greedy search, one by one, since here a batch has one limit for all."""
        found = []
        for row in src:
            ids = self.model.generate(
                input_ids=torch.tensor([row]),
                max_length=None,
                max_new_tokens=config.max_len(len(row)),
                min_length=config.min_len + 1,
                no_repeat_ngram_size=config.no_repeat_ngram_size,
            )[0, 1:]
            found.append([i for i in ids.tolist() if i != self.tokenizer.eos_id])
        return found
