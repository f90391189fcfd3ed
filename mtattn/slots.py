"""A decoding step in tensors that stay where they are and as large as they are, so that a CUDA graph can repeat it.

As in `mtattn.attention.BeamTree` the K hypotheses of a sentence are K queries, and their keys stand once and for all:
that of hypothesis k at step s in slot s K + k. When hypotheses change places, only what each may see does. The number
of the step is a tensor, too. Slots that are still empty are looked at and masked, so there should not be many.

Legend: N sentences, K hypotheses of each, T steps that there is room for, S source positions, V vocabulary, D d_model,
H heads, J key heads, G = H / J, E d_head, L slots (T K for the target, S for the source).
"""

from collections.abc import Iterator
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from mtattn.attention import MultiHeadAttention, Rotary, Sinusoidal
from mtattn.attention.scores import ScaledDot, Symmetric
from mtattn.history import NEVER
from mtattn.model import Transformer, decoder_layers


def supports(model: Transformer) -> bool:
    """Whether `next_logits` can compute this model's decoding steps."""
    layer, position = next(decoder_layers(model)), model.tgt_position
    return (
        model.out_embed.weight.dtype in (torch.float32, torch.bfloat16)
        and type(layer.self_attn.score) in (ScaledDot, Symmetric)
        and (type(position) in (Sinusoidal, Rotary) or position.place == "none")
    )


class Slots:
    """The keys and values of a decoder, and which of them each hypothesis may see.

    What is masked has weight 0 and still is multiplied, so that everything has to be finite: unused room holds zeros.

    Args:
        model: says how many layers and heads there are, and what positions mean.
        sentences, beams, steps, source: N, K, T, S.

    Attributes:
        step: [1] int64, how many steps were taken.
        own: (keys, values) [N, J, T K, E] of each layer's targets.
        cross: likewise [N, J, S, E] of the sources.
        bias: [N, K, T K], added to scores: 0 where a hypothesis may look, -inf elsewhere.
        memory_bias: [N, 1, S], likewise of the sources.
        turns: complex [T, E / 2], by which step t turns queries and keys; None where positions do not do that.
        waves: [T, D], what is added to embeddings; None likewise.
    """

    def __init__(self, model: Transformer, sentences: int, beams: int, steps: int, source: int) -> None:
        attn, weight = next(decoder_layers(model)).self_attn, model.out_embed.weight
        heads, size = (sentences, attn.num_kv_heads), attn.d_head
        zeros = partial(torch.zeros, dtype=weight.dtype, device=weight.device)
        self.step = torch.zeros(1, dtype=torch.int64, device=weight.device)
        self.own, self.cross = (
            [tuple(zeros(*heads, places, size) for _ in range(2)) for _ in model.decoder]
            for places in (steps * beams, source)
        )
        self.bias = zeros(sentences, beams, steps * beams).fill_(NEVER)
        self.memory_bias = zeros(sentences, 1, source)
        position, times = model.tgt_position, torch.arange(steps, device=weight.device)
        self.turns = position.turns(times) if isinstance(position, Rotary) else None
        nothing = zeros(steps, model.config.d_model)
        self.waves = position(nothing, times) if isinstance(position, Sinusoidal) else None

    def clear(self) -> None:
        """As new: no step was taken, and nothing stands anywhere."""
        self.step.zero_()
        for tensor in self.by_sentence():
            tensor.zero_()
        self.bias.fill_(NEVER)

    def fill(self, model: Transformer, src: Tensor) -> None:
        """Encode sources [M, <= S], which become the first M sentences."""
        m, s = src.shape
        memory = model.encode(src, model.source_mask(src))  # [M, S, D]
        for layer, (keys, values) in zip(decoder_layers(model), self.cross, strict=True):
            projected = layer.cross_attn.project_memory(memory)
            keys[:m, :, :s], values[:m, :, :s] = projected.keys, projected.values
        self.memory_bias[:m, 0, s:] = NEVER
        self.memory_bias[:m, 0, :s].masked_fill_(src == model.pad_id, NEVER)

    def by_sentence(self) -> Iterator[Tensor]:
        """What has the sentences as its first axis."""
        yield from (self.bias, self.memory_bias)
        for keys, values in (*self.own, *self.cross):
            yield from (keys, values)

    def extend(self, parents: Tensor) -> Tensor:
        """Begin a step: hypothesis k sees what parents[n, k] of the step before saw, and a slot of its own.

        Returns:
            The slots of this step, int64 [K].
        """
        n, k, length = self.bias.shape
        slots = self.step * k + torch.arange(k, device=parents.device)  # [K]
        bias = self.bias.gather(1, parents[:, :, None].expand(-1, -1, length))  # [N, K, T K]
        self.bias.copy_(bias.scatter_(2, slots[None, :, None].expand(n, -1, -1), 0.0))
        return slots


def next_logits(model: Transformer, slots: Slots, tokens: Tensor, parents: Tensor) -> Tensor:
    """One decoding step: what `mtattn.model.DecoderState` computes; the caller counts `slots.step` on afterwards.

    Args:
        tokens: [N, K] int64, the last token of each hypothesis.
        parents: [N, K] int64, the place, a step before, of the hypothesis that each one extends.

    Returns:
        [N K, V].
    """
    n, now = len(tokens), slots.extend(parents)
    turns = None if slots.turns is None else slots.turns.index_select(0, slots.step)  # [1, E / 2]
    x = model.tgt_embed(tokens.flatten()) * model.config.d_model**0.5  # [N K, D]
    if slots.waves is not None:
        x = x + slots.waves.index_select(0, slots.step)  # [N K, D]
    for layer, own, cross in zip(decoder_layers(model), slots.own, slots.cross, strict=True):

        def look_back(x: Tensor, attn: MultiHeadAttention = layer.self_attn, own: tuple[Tensor, ...] = own) -> Tensor:
            k = _heads(attn.k_proj or attn.q_proj, attn.k_norm or attn.q_norm, x, n, attn.d_head, turns)
            v = _heads(attn.v_proj, None, x, n, attn.d_head)  # [N, J, K, E]
            for kept, new in zip(own, (k, v), strict=True):
                kept.index_copy_(2, now, new)
            return _attend(attn, _heads(attn.q_proj, attn.q_norm, x, n, attn.d_head, turns), own, slots.bias)

        def look_over(
            x: Tensor, attn: MultiHeadAttention = layer.cross_attn, cross: tuple[Tensor, ...] = cross
        ) -> Tensor:
            return _attend(attn, _heads(attn.q_proj, attn.q_norm, x, n, attn.d_head), cross, slots.memory_bias)

        x = layer.self_attn_residual(x, look_back)
        x = layer.cross_attn_residual(x, look_over)
        x = layer.ffn_residual(x, layer.ffn)
    return model.logits(model.decoder_norm(x))  # [N K, V]


def _heads(
    project: nn.Module, norm: nn.Module | None, x: Tensor, n: int, size: int, turns: Tensor | None = None
) -> Tensor:
    """x [N K, D] -> queries, keys or values [N, H, K, E]."""
    x = project(x).view(len(x), -1, size)  # [N K, H, E]
    x = x if norm is None else norm(x)
    if turns is not None:
        pairs = torch.view_as_complex(x.float().view(*x.shape[:2], -1, 2))  # [N K, H, E / 2]
        x = torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)  # [N K, H, E]
    return x.view(n, -1, *x.shape[1:]).transpose(1, 2)  # [N, H, K, E]


def _attend(attn: MultiHeadAttention, q: Tensor, kept: tuple[Tensor, ...], bias: Tensor) -> Tensor:
    """q [N, H, K, E], keys and values [N, J, L, E], bias [N, K or 1, L] -> [N K, D]."""
    (n, h, k, e), (keys, values) = q.shape, (x.flatten(0, 1) for x in kept)  # [N J, L, E]
    q = (q * cast(ScaledDot, attn.score).scale).reshape(len(keys), -1, e)  # [N J, G K, E]
    scores = torch.bmm(q, keys.transpose(1, 2)).view(n, h, k, -1)  # [N, H, K, L]
    weights = scores.add_(bias[:, None]).softmax(-1, dtype=torch.float32).to(q.dtype)  # [N, H, K, L]
    context = torch.bmm(weights.view(len(keys), -1, keys.size(1)), values)  # [N J, G K, E]
    return attn.out_proj(context.view(n, h, k, e).transpose(1, 2).reshape(n * k, -1))  # type: ignore[no-any-return]
