"""The encoder-decoder Transformer (Vaswani et al. 2017), pre-norm by default, built on `mtattn.attention`.

Legend: B batch, S source, T target, D d_model, F d_ff, V vocabulary, N sentences and K beams in decoding.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtattn.attention import (
    IMPLS,
    POSITIONS,
    SCORES,
    BeamTree,
    KVCache,
    Mask,
    MultiHeadAttention,
    Position,
    causal,
    key_padding,
)
from mtattn.attention.norm import RMSNorm
from mtattn.dropout import Dropout
from mtattn.packing import Packing


@dataclass(frozen=True)
class PositionConfig:
    """How the model knows word order: a `kind` of `mtattn.attention.POSITIONS`, and the settings that this kind has.

    base, scaling, factor: rotary's. max_len: learned's. num_buckets, max_distance: t5's.
    """

    kind: str = "rotary"
    base: float = 10_000.0
    scaling: Literal["linear", "ntk"] | None = None
    factor: float = 1.0
    max_len: int = 1024
    num_buckets: int = 32
    max_distance: int = 128
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.kind not in POSITIONS:
            raise ValueError(f"kind is {self.kind!r}; allowed: {', '.join(POSITIONS)}")
        for name in ("max_len", "num_buckets", "max_distance"):
            if not 1 <= getattr(self, name) <= 65_536:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 to 65536")
        with torch.random.fork_rng(devices=[]):
            for bidirectional in (True, False):  # the kind itself knows what else cannot be; the smallest sizes will do
                self.build(2, 1, 2, bidirectional=bidirectional)

    def build(self, d_model: int, num_heads: int, d_head: int, *, bidirectional: bool) -> Position:
        """The module for a stack of layers of these sizes; an encoder is bidirectional, a decoder is not."""
        kind = POSITIONS[self.kind]
        settings = {**asdict(self), "bidirectional": bidirectional}
        known = inspect.signature(kind).parameters
        return kind.build(d_model, num_heads, d_head, **{key: settings[key] for key in settings if key in known})


@dataclass(frozen=True)
class ModelConfig:
    """The `[model]` section.

    preset: a name in PRESETS whose values stand where the section says nothing.
    num_kv_heads: key/value heads; fewer than num_heads is grouped-query attention, 1 multi-query; 0 means num_heads.
    dropout: on embeddings and on each sublayer's output. inner_dropout: inside the feed-forward layer.
    attention_dropout: on the attention weights.
    norm_position: "pre" normalises a sublayer's input, "post" the sum after it (the paper's).
    activation: "relu", "gelu", or "swiglu" (Shazeer 2020, a gate of its own beside the F inner values).
    score: the kind of attention, a name in `mtattn.attention.SCORES`.
    qk_norm: RMSNorm of queries and keys in self-attention (Dehghani et al. 2023).
    tied_embeddings: one table for source, target and output (target and output alone with separate vocabularies).
    attention: how attention is computed, a name in `mtattn.attention.IMPLS` but "banded", or "auto".
    """

    preset: str = ""
    d_model: int = 256
    d_ff: int = 1024
    num_heads: int = 4
    num_kv_heads: int = 0
    encoder_layers: int = 3
    decoder_layers: int = 3
    dropout: float = 0.3
    inner_dropout: float = 0.1
    attention_dropout: float = 0.0
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_position: Literal["pre", "post"] = "pre"
    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    position: PositionConfig = PositionConfig()
    score: str = "scaled_dot"
    qk_norm: bool = True
    bias: bool = False
    tied_embeddings: bool = True
    attention: str = "auto"
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("d_model", "d_ff", "num_heads", "encoder_layers", "decoder_layers"):
            if not 1 <= getattr(self, name) <= 65_536:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 to 65536")
        for name in ("dropout", "inner_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 <= {name} < 1")
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}")
        if self.num_kv_heads < 0 or self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.score not in SCORES:
            raise ValueError(f"score is {self.score!r}; allowed: {', '.join(SCORES)}")
        if SCORES[self.score].shares_projection and self.num_kv_heads not in (0, self.num_heads):
            raise ValueError(
                f"score {self.score!r} projects queries and keys alike, so num_kv_heads must be num_heads "
                f"{self.num_heads} (or 0), not {self.num_kv_heads}"
            )
        # banded needs a window that is bounded on both sides, which no layer here has.
        if self.attention not in (allowed := ("auto", *(name for name in IMPLS if name != "banded"))):
            raise ValueError(f"attention is {self.attention!r}; allowed: {', '.join(allowed)}")
        if self.attention in ("chunked", "flex") and self.attention_dropout:
            raise ValueError(
                f"attention {self.attention!r} has no dropout; set attention_dropout = 0, or leave it on auto"
            )
        if self.attention != "auto" and not SCORES[self.score].is_dot_product:
            raise ValueError(f"score {self.score!r} is computed in one way alone; leave attention on auto")
        if self.position.kind == "rotary" and (self.d_model // self.num_heads) % 2:
            raise ValueError(
                f"d_model {self.d_model} in {self.num_heads} heads makes {self.d_model // self.num_heads} features a "
                "head; rotary positions turn pairs of features, so that must be even"
            )
        if self.position.kind == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"d_model is {self.d_model}; sinusoidal positions come in pairs, so it must be even")


PRESETS: dict[str, dict[str, Any]] = {
    # About 1 M parameters beside the embeddings: seconds on a laptop.
    "tiny": {"d_model": 128, "d_ff": 512, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.1},
    # Table 3 of Vaswani et al. 2017, row "base".
    "vaswani": {
        "d_model": 512,
        "d_ff": 2048,
        "num_heads": 8,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "dropout": 0.1,
        "inner_dropout": 0.0,
        "norm": "layernorm",
        "norm_position": "post",
        "position": {"kind": "sinusoidal"},
        "qk_norm": False,
        "bias": True,
    },
}


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "swiglu": F.silu}


class FeedForward(nn.Module):
    """down(act(up(x))), or down(silu(gate(x)) * up(x)) for SwiGLU; the same for every position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.gate_proj = (
            nn.Linear(config.d_model, config.d_ff, bias=config.bias) if config.activation == "swiglu" else None
        )
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.inner_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        if self.gate_proj is None:
            inner = self.activation(self.up_proj(x))  # [B, T, F]
        else:
            inner = self.activation(self.gate_proj(x)) * self.up_proj(x)  # [B, T, F]
        return self.down_proj(self.dropout(inner))  # type: ignore[no-any-return]  # [B, T, D]


class Residual(nn.Module):
    """What a sublayer computes is added, element by element, to its input: x + f(norm(x)), or norm(x + f(x)).

    For attention this is the residual form: the weighted sum of values plus the sequence that asked for it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.dropout = Dropout(config.dropout)
        self.pre = config.norm_position == "pre"

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        if self.pre:
            return x + self.dropout(sublayer(self.norm(x)))  # type: ignore[no-any-return]
        return self.norm(x + self.dropout(sublayer(x)))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """Self-attention over the source, then a feed-forward layer."""

    def __init__(self, config: ModelConfig, position: Position | None) -> None:
        super().__init__()
        self.self_attn = make_attention(config, position, qk_norm=config.qk_norm)
        self.ffn = FeedForward(config)
        self.self_attn_residual = Residual(config)
        self.ffn_residual = Residual(config)

    def forward(self, x: Tensor, mask: Mask | Tensor | None, positions: Tensor | None = None) -> Tensor:
        """x [B, S, D], mask over keys S, positions [B, S] of the tokens (None: 0 .. S-1) -> [B, S, D]."""
        x = self.self_attn_residual(x, lambda h: self.self_attn(h, mask=mask, positions=positions))
        return self.ffn_residual(x, self.ffn)  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Self-attention over the target so far, attention to the source, then a feed-forward layer."""

    def __init__(self, config: ModelConfig, position: Position | None) -> None:
        super().__init__()
        self.self_attn = make_attention(config, position, qk_norm=config.qk_norm)
        self.cross_attn = make_attention(config, None, qk_norm=False)
        self.ffn = FeedForward(config)
        self.self_attn_residual = Residual(config)
        self.cross_attn_residual = Residual(config)
        self.ffn_residual = Residual(config)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None,
        mask: Mask | Tensor | None,
        memory_mask: Mask | None,
        caches: tuple[KVCache, KVCache] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """One layer, for whole targets (memory given) or for the newest tokens (caches given).

        Args:
            x: [B, T, D].
            memory: [B, S, D], the encoder's output; None when `caches` holds its keys and values.
            mask: which target tokens see which. memory_mask: which source tokens may be seen.
            caches: (self-attention's, cross-attention's). positions: of x's tokens, when decoding or packed.

        Returns:
            [B, T, D].
        """
        own, cross = caches or (None, None)
        x = self.self_attn_residual(x, lambda h: self.self_attn(h, mask=mask, cache=own, positions=positions))
        x = self.cross_attn_residual(x, lambda h: self.cross_attn(h, memory, mask=memory_mask, cache=cross))
        return self.ffn_residual(x, self.ffn)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Source ids to a distribution over target ids.

    Args:
        config: sizes and kinds.
        src_vocab_size, tgt_vocab_size: pieces a side.
        joint: both sides share one vocabulary, so that tied embeddings are one table.
        pad_id: ids equal to this are padding.
    """

    def __init__(
        self, config: ModelConfig, src_vocab_size: int, tgt_vocab_size: int, *, joint: bool = True, pad_id: int = 0
    ) -> None:
        super().__init__()
        self.config, self.pad_id = config, pad_id
        self.tgt_embed = nn.Embedding(tgt_vocab_size, config.d_model)
        share = config.tied_embeddings and joint
        self.src_embed = self.tgt_embed if share else nn.Embedding(src_vocab_size, config.d_model)
        self.out_embed = self.tgt_embed if config.tied_embeddings else nn.Embedding(tgt_vocab_size, config.d_model)
        sizes = config.d_model, config.num_heads, config.d_model // config.num_heads
        self.src_position = config.position.build(*sizes, bidirectional=True)
        self.tgt_position = config.position.build(*sizes, bidirectional=False)
        self.encoder = nn.ModuleList(EncoderLayer(config, self.src_position) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config, self.tgt_position) for _ in range(config.decoder_layers))
        pre = config.norm_position == "pre"
        self.encoder_norm = make_norm(config) if pre else nn.Identity()
        self.decoder_norm = make_norm(config) if pre else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw fresh weights: embeddings N(0, 1/D), matrices N(0, 1/fan_in).

        With pre-norm, the projections that write into the residual stream start at zero, so that every layer starts
        as the identity (Zhang et al. 2019, Fixup, is the idea's source). Post-norm needs them, and Xavier's scale.
        """
        writers = {"out_proj", "down_proj"}
        for table in dict.fromkeys((self.src_embed, self.tgt_embed, self.out_embed)):  # a set has no order to repeat
            table.weight.normal_(std=self.config.d_model**-0.5)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if module.bias is not None:
                    module.bias.zero_()
                if self.config.norm_position == "post":
                    nn.init.xavier_uniform_(module.weight)
                elif name.rsplit(".", 1)[-1] in writers:
                    module.weight.zero_()
                else:
                    module.weight.normal_(std=module.in_features**-0.5)

    def embed_src(self, src: Tensor, positions: Tensor | None = None) -> Tensor:
        """Source ids [B, S], positions [B, S] or [S] (None: 0 .. S-1) -> what the encoder reads, [B, S, D]."""
        return self._embed(self.src_embed, self.src_position, src, positions)

    def embed_tgt(self, tgt_in: Tensor, positions: Tensor | None = None) -> Tensor:
        """Target ids [B, T], positions [B, T] or [T] (None: 0 .. T-1) -> what the decoder reads, [B, T, D]."""
        return self._embed(self.tgt_embed, self.tgt_position, tgt_in, positions)

    def source_mask(self, src: Tensor) -> Mask:
        """Which source positions may be attended to: where padding becomes a mask."""
        return key_padding(src != self.pad_id)

    def encode(self, src: Tensor, mask: Mask | Tensor | None, positions: Tensor | None = None) -> Tensor:
        """Source ids [B, S], their `source_mask`, and positions [B, S] (None: 0 .. S-1) -> memory [B, S, D]."""
        x = self.embed_src(src, positions)  # [B, S, D]
        for layer in self.encoder:
            x = layer(x, mask, positions)
        return self.encoder_norm(x)  # type: ignore[no-any-return]

    def decode(
        self,
        tgt_in: Tensor,
        memory: Tensor,
        memory_mask: Mask | None,
        mask: Mask | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Whole target prefixes at once, as in training: tgt_in [B, T], memory [B, S, D] -> hidden [B, T, D].

        The mask is causal when None: padding stands at the right, so that hides it from every real token.
        """
        x = self.embed_tgt(tgt_in, positions)  # [B, T, D]
        mask = mask or causal()
        for layer in self.decoder:
            x = layer(x, memory, mask, memory_mask, None, positions)
        return self.decoder_norm(x)  # type: ignore[no-any-return]

    def hidden(self, src: Tensor, tgt_in: Tensor, packing: Packing | None = None) -> Tensor:
        """src [B, S], tgt_in [B, T] -> the decoder's output [B, T, D], one product short of logits.

        With a packing, each row holds many pairs, which see nothing of each other.
        """
        if packing is None:
            mask = self.source_mask(src)
            return self.decode(tgt_in, self.encode(src, mask), mask)
        memory = self.encode(src, packing.encoder_mask(), packing.src_positions)  # [B, S, D]
        return self.decode(tgt_in, memory, packing.cross_mask(), packing.decoder_mask(), packing.tgt_positions)

    def forward(self, src: Tensor, tgt_in: Tensor) -> Tensor:
        """src [B, S], tgt_in [B, T] -> logits [B, T, V]."""
        return self.logits(self.hidden(src, tgt_in))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> logits [..., V]."""
        return F.linear(hidden, self.out_embed.weight)

    @torch.no_grad()
    def start(self, src: Tensor) -> "DecoderState":
        """Encode sources [N, S] once, ready to be decoded step by step."""
        return DecoderState(self, src)

    def _embed(self, table: nn.Module, position: Position, ids: Tensor, positions: Tensor | None) -> Tensor:
        # Vaswani 2017, section 3.4: the table, of std 1 / sqrt(D), is also the output's; as input it gets variance 1.
        x = table(ids) * self.config.d_model**0.5  # [B, T, D]
        return self.dropout(position(x, positions))  # type: ignore[no-any-return]


class DecoderState:
    """What a search needs of the model (`mtattn.decode.Step`): one step for N sentences with K hypotheses each.

    The K hypotheses are the query axis: keys and values of the source stand there once a sentence, those of the target
    are appended and never moved, and which of them a hypothesis may see is the BeamTree's mask.
    """

    def __init__(self, model: Transformer, src: Tensor) -> None:
        self.model, self.src = model, src
        self.memory_mask = model.source_mask(src)
        memory = model.encode(src, self.memory_mask)
        self.caches = [(KVCache(), layer.cross_attn.project_memory(memory)) for layer in decoder_layers(model)]
        self.tree: BeamTree | None = None

    @torch.no_grad()
    def __call__(self, tokens: Tensor, parents: Tensor | None, alive: Tensor | None = None) -> Tensor:
        """tokens [N, K], parents [N, K] or None -> logits [N, K, V], or [R, V] of the R places that are alive."""
        if self.tree is None:
            self.tree = BeamTree(tokens.shape[0], tokens.shape[1], tokens.device)
        mask = self.tree.extend(parents)  # [N, 1, K, L] or None
        positions = self.tree.positions  # [K]
        x = self.model.embed_tgt(tokens, positions)  # [N, K, D]: K queries of each sentence, all at one position
        for layer, caches in zip(decoder_layers(self.model), self.caches, strict=True):
            x = layer(x, None, mask, self.memory_mask, caches, positions)
        return self.model.logits(self.model.decoder_norm(x if alive is None else x[alive]))  # [N, K, V] or [R, V]

    def select(self, sentences: Tensor) -> None:
        """Keep only these sentences, in this order."""
        for own, cross in self.caches:
            own.select(sentences)
            cross.select(sentences)
        self.src = self.src.index_select(0, sentences)
        self.memory_mask = self.model.source_mask(self.src)
        if self.tree is not None:
            self.tree.select(sentences)


def decoder_layers(model: Transformer) -> Iterator[DecoderLayer]:
    """The decoder's layers, with their type."""
    yield from cast("list[DecoderLayer]", model.decoder)


def make_norm(config: ModelConfig) -> nn.Module:
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016) over D."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.d_model, eps=1e-6)
    return nn.LayerNorm(config.d_model, bias=config.bias)  # eps 1e-5, as other toolkits' post-norm models have


def make_attention(config: ModelConfig, position: Position | None, *, qk_norm: bool) -> MultiHeadAttention:
    """Multi-head attention as the config says; of positions those that act inside it."""
    if position is not None and position.place == "embedding":
        position = None
    return MultiHeadAttention(
        config.d_model,
        config.num_heads,
        config.num_kv_heads or None,
        score=config.score,
        position=position,
        qk_norm=qk_norm,
        dropout=config.attention_dropout,
        bias=config.bias,
        impl=config.attention,
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off, no gradients, and the mode the model had restored afterwards."""
    was_training = model.training
    if was_training:  # a walk over every module, and some call this for each sentence
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_training:
            model.train()
