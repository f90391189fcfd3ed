"""The model prepared for translation on a CPU: what `Transformer.start` computes, with fewer and larger operations.

Weights are joined, turned and perhaps quantised once (`mtattn.linear`). A step computes the hypotheses that are alive,
and no others, as rows of one matrix; only attention sees them in a grid, by sentence. Keys are kept transposed, as the
product with queries reads them, and the places of keys that no hypothesis needs any more are used again.

What cannot be prepared runs as the model itself does, and `unsupported` says why.

Legend: N sentences, K hypotheses of each, R rows (hypotheses alive), S source, L places for keys, D d_model, F d_ff,
H heads, J key heads, E d_head, V vocabulary.
"""

import threading
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtattn.attention import MultiHeadAttention, Position, RMSNorm, Rotary
from mtattn.attention.scores import ScaledDot, Symmetric
from mtattn.keys import Ancestors, Grid, Keys
from mtattn.linear import LINEARS, Linear, unavailable
from mtattn.model import (
    ACTIVATIONS,
    DecoderLayer,
    DecoderState,
    EncoderLayer,
    FeedForward,
    Residual,
    Transformer,
    decoder_layers,
)

MakeLinear = Callable[[Tensor, Tensor | None], Linear]
ENCODED = 1024  # source positions encoded at a time, padding included
COMPACT_AT = 3 / 4  # share of sentences left at which the keys of the others are thrown away: copying costs as well


def unsupported(model: Transformer) -> str:
    """Why this model cannot be prepared; "" when it can."""
    weight, attention = model.out_embed.weight, next(m for m in model.modules() if isinstance(m, MultiHeadAttention))
    if weight.device.type != "cpu":
        return f"it is on {weight.device.type}, and only a CPU profits (--device cpu)"
    if weight.dtype != torch.float32:
        return f"its weights are {weight.dtype}, not float32"
    if type(attention.score) not in (ScaledDot, Symmetric):
        return f"its score is {model.config.score!r}; scaled_dot and symmetric can be prepared"
    if model.tgt_position.place == "scores":
        return f"its positions ({model.config.position.kind}) change scores, which the prepared attention leaves alone"
    return ""


class PreparedModel:
    """A model's weights, prepared; anew when they were changed in place, as optimisers do.

    Args:
        model: stays as it is, and is used where it is `unsupported`.
        quantization: a name in `mtattn.linear.LINEARS`.

    Attributes:
        reason: why the model itself does the work; "" where it does not.

    Raises:
        ValueError: quantization is asked for, and the machine lacks it, or the model is unsupported and not in that
            format already.
    """

    def __init__(self, model: Transformer, quantization: str = "none") -> None:
        self.model, self.quantization, self.reason = model, quantization, unsupported(model)
        # as mtattn.translate places it on a GPU
        already = quantization == "bfloat16" and model.out_embed.weight.dtype == torch.bfloat16
        if self.reason and quantization != "none" and not already:
            raise ValueError(f"quantization = {quantization!r} is not possible for this model: {self.reason}")
        if why := unavailable(quantization):
            raise ValueError(f"quantization = {quantization!r} is not possible on this machine: {why}")
        self._parameters = list(model.parameters())
        self._stacks: _Stacks | None = None
        self._lock = threading.Lock()
        self._version = -1

    def start(self, src: Tensor) -> "PreparedState | DecoderState":
        """Encode sources [N, S]: a `mtattn.decode.Step`."""
        if self.reason:
            return self.model.start(src)
        with torch.inference_mode():
            return PreparedState(self.stacks(), src)

    def stacks(self) -> "_Stacks":
        """The prepared weights, made now if they were not or the model's have changed since."""
        version = sum(parameter._version for parameter in self._parameters)
        with self._lock:
            if self._stacks is None or version != self._version:
                with torch.inference_mode():
                    self._stacks, self._version = _Stacks(self.model, LINEARS[self.quantization]), version
            return self._stacks


class _Stacks:
    def __init__(self, model: Transformer, make: MakeLinear) -> None:
        self.model = model
        self.encoder = [_EncoderBlock(cast(EncoderLayer, layer), make) for layer in model.encoder]
        self.decoder = [_DecoderBlock(layer, make) for layer in decoder_layers(model)]
        self.src_turns, self.tgt_turns = (_Turns(p) for p in (model.src_position, model.tgt_position))
        self.encoder_norm = _norm(model.encoder_norm)
        self.norm, self.output = _norm(model.decoder_norm), make(model.out_embed.weight, None)

    def encode(self, src: Tensor) -> tuple[list[Keys], Tensor | None]:
        """Encode sources [N, S].

        A few sentences at a time, which stay in the core's cache; in sorted batches they also leave less padding.

        Returns:
            The keys and values of each decoder layer, and what to add to scores, [N, 1, 1, S] or None.
        """
        (n, s), real = src.shape, src != self.model.pad_id  # [N, S]
        bias = None if bool(real.all()) else torch.zeros(n, 1, 1, s).masked_fill_(~real[:, None, None], -torch.inf)
        keys = [Keys.empty(n, block.kv_heads, block.size, capacity=s) for block in self.decoder]
        step = max(1, ENCODED // s)
        for i in range(0, n, step):
            longest = max(1, int(real[i : i + step].sum(1).max()))
            padded = not bool(real[i : i + step, :longest].all())
            part = bias[i : i + step, ..., :longest] if padded and bias is not None else None
            memory = self._encode(src[i : i + step, :longest], part)  # [n S, D]
            for block, own in zip(self.decoder, keys, strict=True):
                kv = block.memory(memory).view(-1, longest, 2, block.kv_heads, block.size)  # [n, S, 2, J, E]
                own.keys[i : i + step, ..., :longest] = kv[:, :, 0].permute(0, 2, 3, 1)
                own.values[i : i + step, :, :longest] = kv[:, :, 1].transpose(1, 2)
        return keys, bias

    def _encode(self, src: Tensor, bias: Tensor | None) -> Tensor:
        x = self.model.embed_src(src).flatten(0, 1)  # [N S, D]
        turns = self.src_turns(src.size(1))  # [S, 1, E / 2] or None
        turns = None if turns is None else turns.repeat(len(src), 1, 1)  # [N S, 1, E / 2]
        for block in self.encoder:
            x = block(x, src.shape, turns, bias)
        return self.encoder_norm(x)


class _Turns:
    """The turns of rotary positions, kept from one step to the next."""

    def __init__(self, position: Position) -> None:
        self.position, self.table = position, torch.empty(0)

    def __call__(self, length: int) -> Tensor | None:
        """Of positions 0 .. length - 1: complex [length, 1, E / 2]; None where nothing is turned."""
        if not isinstance(self.position, Rotary):
            return None
        table = self.table  # another thread may put another in its place
        if len(table) < length:
            positions = torch.arange(max(length, 2 * len(table)))
            self.table = table = self.position.turns(positions[:, None])
        return table[:length]


def _norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
    if not isinstance(module, RMSNorm):
        return module
    return _RMSNorm(module.weight, module.eps)


class _RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, of size E: sqrt(E) weight x / hypot(|x|, sqrt(E eps))."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight: Tensor = weight.detach() * weight.size(-1) ** 0.5
        self.least = torch.tensor((weight.size(-1) * eps) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * self.weight).div_(norm.hypot_(self.least))


def _join(*layers: nn.Linear | None, factors: tuple[float, ...] = (1.0, 1.0, 1.0)) -> tuple[Tensor, Tensor | None]:
    """One projection that does the work of several: their weights and biases, times a factor, one after the other."""
    present = [(layer, factor) for layer, factor in zip(layers, factors, strict=False) if layer is not None]
    biases = [layer.bias * factor for layer, factor in present if layer.bias is not None]
    return torch.cat([layer.weight * factor for layer, factor in present]), torch.cat(biases) if biases else None


class _Residual:
    """x + f(norm(x)), or norm(x + f(x)); f is told what to add its result to."""

    def __init__(self, module: Residual) -> None:
        self.norm, self.pre = _norm(module.norm), module.pre

    def __call__(self, x: Tensor, sublayer: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return sublayer(self.norm(x), x) if self.pre else self.norm(sublayer(x, x))


class _FeedForward:
    def __init__(self, ffn: FeedForward, make: MakeLinear) -> None:
        self.up, self.down = make(*_join(ffn.up_proj, ffn.gate_proj)), make(*_join(ffn.down_proj))
        self.activation, self.gated = ffn.activation, ffn.gate_proj is not None

    def __call__(self, x: Tensor, add: Tensor) -> Tensor:
        inner = self.up(x)  # [R, F], or [R, 2 F]
        if self.gated:
            up, gate = inner.chunk(2, 1)
            inner = self.activation(gate).mul_(up)  # [R, F]
        elif self.activation is ACTIVATIONS["relu"]:
            inner.relu_()
        else:
            inner = self.activation(inner)
        return self.down(inner, add)  # [R, D]


class _SelfAttention:
    def __init__(self, attn: MultiHeadAttention, make: MakeLinear) -> None:
        self.heads, self.kv_heads, self.size = attn.num_heads, attn.num_kv_heads, attn.d_head
        scale = cast(ScaledDot, attn.score).scale  # of the scores; what makes the queries takes it along
        factors = (1.0 if attn.q_norm else scale, 1.0, 1.0)
        self.qkv = make(*_join(attn.q_proj, attn.k_proj or attn.q_proj, attn.v_proj, factors=factors))
        self.out = make(*_join(attn.out_proj))
        self.norm = None
        if attn.q_norm is not None:
            q_norm, k_norm = attn.q_norm, attn.k_norm or attn.q_norm
            pair = ((q_norm.weight * scale).expand(self.heads, -1), k_norm.weight.expand(self.kv_heads, -1))
            self.norm = _RMSNorm(torch.cat(pair), q_norm.eps)  # [H + J, E]

    def project(self, x: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [R, D], turns that broadcast to [R, 1, E / 2] -> scaled queries [R, H, E], keys and values [R, J, E]."""
        qkv = self.qkv(x).view(len(x), -1, self.size)  # [R, H + 2 J, E]
        qk, v = torch.split(qkv, [self.heads + self.kv_heads, self.kv_heads], 1)
        if self.norm is not None:
            qk = self.norm(qk)
        if turns is not None:
            pairs = torch.view_as_complex(qk.view(*qk.shape[:2], -1, 2))  # [R, H + J, E / 2]
            qk = torch.view_as_real(pairs * turns).flatten(-2)  # [R, H + J, E]
        q, k = torch.split(qk, [self.heads, self.kv_heads], 1)
        return q, k, v


class _EncoderBlock:
    def __init__(self, layer: EncoderLayer, make: MakeLinear) -> None:
        self.attn, self.ffn = _SelfAttention(layer.self_attn, make), _FeedForward(layer.ffn, make)
        self.attn_residual, self.ffn_residual = _Residual(layer.self_attn_residual), _Residual(layer.ffn_residual)

    def __call__(self, x: Tensor, shape: torch.Size, turns: Tensor | None, mask: Tensor | None) -> Tensor:
        """x [N * S, D], shape (N, S) -> [N * S, D]."""

        def attend(x: Tensor, add: Tensor) -> Tensor:
            parts = self.attn.project(x, turns)
            q, k, v = (part.view(*shape, -1, self.attn.size).transpose(1, 2) for part in parts)  # [N, H, S, E]
            context = F.scaled_dot_product_attention(q, k, v, mask, scale=1.0, enable_gqa=q.size(1) != k.size(1))
            return self.attn.out(context.transpose(1, 2).reshape(len(x), -1), add)  # [N * S, D]

        return self.ffn_residual(self.attn_residual(x, attend), self.ffn)


class _DecoderBlock:
    def __init__(self, layer: DecoderLayer, make: MakeLinear) -> None:
        self.attn, self.ffn = _SelfAttention(layer.self_attn, make), _FeedForward(layer.ffn, make)
        cross = layer.cross_attn
        self.heads, self.kv_heads, self.size = cross.num_heads, cross.num_kv_heads, cross.d_head
        self.q = make(*_join(cross.q_proj, factors=(cast(ScaledDot, cross.score).scale,)))
        self.out = make(*_join(cross.out_proj))
        self.memory = make(*_join(cross.k_proj or cross.q_proj, cross.v_proj))
        self.attn_residual, self.cross_residual, self.ffn_residual = (
            _Residual(part) for part in (layer.self_attn_residual, layer.cross_attn_residual, layer.ffn_residual)
        )


class PreparedState:
    """The prepared model's `mtattn.decode.Step`.

    `select` only notes which sentences remain; memory is compacted once a quarter of them have left (COMPACT_AT).
    """

    def __init__(self, stacks: _Stacks, src: Tensor) -> None:
        self.stacks, self.step = stacks, -1
        self.cross, self.memory_bias = stacks.encode(src)
        self.own = [Keys.empty(len(src), block.kv_heads, block.size) for block in stacks.decoder]
        self.kept: Tensor | None = None  # [N], where each sentence's keys are; None: all, in order
        self.ancestors: Ancestors | None = None  # None with one hypothesis a sentence, whose keys are all its own
        self.logits = torch.empty(0)

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, parents: Tensor | None, alive: Tensor | None = None) -> Tensor:
        """tokens [N, K], parents [N, K] or None -> logits [N, K, V], or [R, V] of the R places that are alive."""
        self.step += 1
        n, k = tokens.shape
        model, size = self.stacks.model, len(self.cross[0].values)
        if self.step == 0 and k > 1:
            self.ancestors = Ancestors(n, k)
        full = alive is None and self.kept is None
        places, bias = self._places(tokens, parents, alive)  # [N, K], [N, 1, K, L]
        length = self.step + 1 if bias is None else bias.size(-1)
        rows = where = None
        if not full or k > 1:
            at = (torch.arange(n) if self.kept is None else self.kept)[:, None].expand(n, k)  # [N, K]
            rows, sentences = at * k + torch.arange(k), at
            if alive is not None:
                there = alive.flatten().nonzero()[:, 0]  # [R]
                tokens, places, rows, sentences = (x.take(there) for x in (tokens, places, rows, sentences))  # [R]
            rows, where = rows.flatten(), (sentences.flatten(), places.flatten())  # [R] each
        grid = Grid(None if full else rows, size * k)

        now = torch.tensor([self.step])
        x = model.embed_tgt(tokens.flatten()[:, None], now)[:, 0]  # [R, D]
        turns = self.stacks.tgt_turns(self.step + 1)
        turns = None if turns is None else turns[-1]  # [1, E / 2]
        for block, own, cross in zip(self.stacks.decoder, self.own, self.cross, strict=True):

            def attend(x: Tensor, add: Tensor, block: _DecoderBlock = block, own: Keys = own) -> Tensor:
                q, k, v = block.attn.project(x, turns)
                own.put(length, where, k, v)
                return block.attn.out(own.attend(q, grid, length, bias), add)

            def look(x: Tensor, add: Tensor, block: _DecoderBlock = block, cross: Keys = cross) -> Tensor:
                q = block.q(x).view(len(x), block.heads, block.size)  # [R, H, E]
                return block.out(cross.attend(q, grid, cross.values.size(2), self.memory_bias), add)

            x = block.attn_residual(x, attend)
            x = block.cross_residual(x, look)
            x = block.ffn_residual(x, block.ffn)
        if len(self.logits) < len(x):
            self.logits = torch.empty(len(x), model.out_embed.num_embeddings)
        logits = self.stacks.output(self.stacks.norm(x), out=self.logits[: len(x)])  # [R, V]
        return logits if alive is not None else logits.view(n, k, -1)

    def _places(self, tokens: Tensor, parents: Tensor | None, alive: Tensor | None) -> tuple[Tensor, Tensor | None]:
        # Where the keys of this step go, int64 [N, K], and what shows each hypothesis its own, [N, 1, K, L].
        if self.ancestors is None:
            return torch.full_like(tokens, self.step), None
        places, bias = self.ancestors.extend(parents, alive), self.ancestors.bias()
        if self.kept is not None:
            size = len(self.cross[0].values)
            bias = bias.new_zeros(size, *bias.shape[1:]).index_copy_(0, self.kept, bias)
        return places, bias[:, None]

    def select(self, sentences: Tensor) -> None:
        """Keep only these sentences, in this order."""
        if self.ancestors is not None:
            self.ancestors.select(sentences)
        self.kept = sentences if self.kept is None else self.kept[sentences]
        if len(self.kept) > COMPACT_AT * len(self.cross[0].values):
            return
        for keys in (*self.own, *self.cross):
            keys.select(self.kept)
        if self.memory_bias is not None:
            self.memory_bias = self.memory_bias.index_select(0, self.kept)
        self.kept = None
