"""Positions: how attention, which sees a set, is told the order of its tokens.

Three places to act, one method each; a class overrides the one it uses and the others stay the identity:
`forward` adds to the embeddings, `rotate` turns queries and keys, `bias` is added to the scores.
Letters: B batch, T queries, S keys, H heads, E d_head, D d_model, P = B or 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Position(nn.Module):
    """No positions at all, and the base of those that are: every method is the identity.

    Attributes:
        place: where it acts: "none", "embedding", "query_key" or "scores".
        sized_by: which of a model's sizes its first argument is: "d_model", "num_heads", "d_head", or "" for none.
    """

    place = "none"
    sized_by = ""

    @classmethod
    def build(cls, d_model: int, num_heads: int, d_head: int, **options: Any) -> Position:
        """Make one for a model of these sizes; `options` are the other arguments of the class."""
        sizes = {"d_model": d_model, "num_heads": num_heads, "d_head": d_head}
        own = {name: size for name, size in sizes.items() if name == cls.sized_by}
        return cls(**own, **options)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Add positions to embeddings.

        Args:
            x: [B, T, D].
            positions: int64 [T] or [B, T]; 0 .. T-1 when None.
        """
        return x

    def rotate(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Turn queries or keys.

        Args:
            x: [B, H, T, E].
            positions: int64 [T] or [B, T]; 0 .. T-1 when None.
        """
        return x

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor | None:
        """Return what is added to the scores, [P, H, T, S], or None.

        Args:
            q_pos: positions of the queries, int64 [T] or [B, T].
            k_pos: positions of the keys, int64 [S] or [B, S].
        """
        return None


class _Waves(Position):
    """Positions as angles: position times frequency.

    Attributes:
        frequencies: [size/2], on the device that was last asked for, so that nothing is copied to it twice.
    """

    frequencies: Tensor

    def _angles(self, positions: Tensor) -> Tensor:
        # In float32 the angle of position 10,000 would already be off by 0.0005; MPS has nothing better.
        dtype = torch.float32 if positions.device.type == "mps" else torch.float64
        self.frequencies = self.frequencies.to(positions.device, dtype)
        return positions[..., None] * self.frequencies  # [..., size/2]


class Sinusoidal(_Waves):
    """Fixed waves of geometric wavelengths added to the embeddings (Vaswani 2017, section 3.5).

    PE[pos, 2i] = sin(pos / 10000^(2i/D)), PE[pos, 2i+1] = cos(pos / 10000^(2i/D)).

    Args:
        d_model: D, even.
    """

    place = "embedding"
    sized_by = "d_model"

    def __init__(self, d_model: int) -> None:
        super().__init__()
        if d_model % 2:
            raise ValueError(f"Sinusoidal: d_model must be even (pairs of sine and cosine), got {d_model}")
        self.frequencies = _frequencies(d_model, 10000.0)  # [D/2]

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        positions = _default(positions, x)
        angles = self._angles(positions)  # [P, T, D/2]
        waves = torch.stack((angles.sin(), angles.cos()), dim=-1)  # [P, T, D/2, 2]
        return x + waves.flatten(-2).to(x.dtype)  # [B, T, D]


class Learned(Position):
    """A learned vector for each position, added to the embeddings (Gehring 2017).

    Args:
        d_model: D.
        max_len: positions 0 .. max_len-1 exist; a longer input is an error.
    """

    place = "embedding"
    sized_by = "d_model"

    def __init__(self, d_model: int, max_len: int = 512) -> None:
        super().__init__()
        if max_len < 1:
            raise ValueError(f"Learned: max_len must be at least 1, got {max_len}")
        self.table = nn.Embedding(max_len, d_model)
        nn.init.normal_(self.table.weight, std=d_model**-0.5)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        max_len = self.table.num_embeddings
        longest = x.shape[-2] if positions is None else int(positions.max()) + 1
        if longest > max_len:
            raise ValueError(f"Learned: position {longest - 1} is beyond the table of {max_len}; raise max_len")
        vectors: Tensor = self.table(_default(positions, x))  # [P, T, D]
        return x + vectors  # [B, T, D]


class Rotary(_Waves):
    """Turn each pair of features of q and k by an angle that grows with the position (RoFormer, Su 2021).

    Then q_m . k_n depends on m - n alone. Pair i is the features (2i, 2i+1), as in the paper (equation 34; other
    code pairs i with i + E/2, which is the same up to the order of features). Its angle at position m is
    m * base^(-2i/E).

    Args:
        d_head: E, even.
        base: wavelengths run from 2 pi to 2 pi base.
        scaling: None; "linear" divides positions by `factor` (Chen 2023); "ntk" raises the base to
            base * factor^(E / (E - 2)), so the slowest pair is slowed by `factor` and the fastest not at all.
        factor: how many times longer than in training the input may be, at least 1.
    """

    place = "query_key"
    sized_by = "d_head"

    def __init__(self, d_head: int, base: float = 10000.0, scaling: str | None = None, factor: float = 1.0) -> None:
        super().__init__()
        if d_head % 2 or d_head < 2:
            raise ValueError(f"Rotary: d_head must be even (features turn in pairs), got {d_head}")
        if scaling not in (None, "linear", "ntk"):
            raise ValueError(f"Rotary: scaling must be None, 'linear' or 'ntk', got {scaling!r}")
        if not (0 < base < math.inf and 1 <= factor < math.inf):
            raise ValueError(f"Rotary: base must be positive and factor at least 1, got {base} and {factor}")
        if scaling == "ntk" and d_head > 2:
            base *= factor ** (d_head / (d_head - 2))
        frequencies = _frequencies(d_head, base)
        self.frequencies = frequencies / factor if scaling == "linear" else frequencies  # [E/2]
        self._table = torch.empty(0, d_head // 2, dtype=torch.complex64)

    def rotate(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        # A pair is a complex number and turning it one multiplication: a single pass over memory, against five for
        # x cos + rotate_half(x) sin (0.8 ms against 2.8 ms forward and backward, [256, 4, 16, 64] on a CPU).
        if positions is None:
            turns = self._from_zero(x)  # [T, E/2]
        else:  # [T, E/2], or [B, 1, T, E/2]
            turns = self.turns(positions if positions.dim() == 1 else positions[:, None], _complex(x))
        pairs = torch.view_as_complex(_at_least_float(x).view(*x.shape[:-1], x.shape[-1] // 2, 2))  # [B, H, T, E/2]
        turned = pairs * turns
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)  # [B, H, T, E]

    def turns(self, positions: Tensor, dtype: torch.dtype = torch.complex64) -> Tensor:
        """Return what pairs of features are multiplied by: e^(i angle), complex [..., E/2], of positions [...]."""
        angles = self._angles(positions)
        return torch.complex(angles.cos(), angles.sin()).to(dtype)

    def _from_zero(self, x: Tensor) -> Tensor:
        # Of positions 0 .. T-1 the last table is kept.
        table, length = self._table, x.shape[2]
        useless = table.is_inference() and not torch.is_inference_mode_enabled()  # autograd refuses it
        if len(table) < length or table.device != x.device or table.dtype != _complex(x) or useless:
            self._table = table = self.turns(torch.arange(length, device=x.device), _complex(x))
        return table[:length]


class ALiBi(Position):
    """Subtract from each score the distance times a slope of the head: bias = -slope[h] |q - k| (Press 2022).

    Slopes are 2^(-8/H), 2^(-16/H), ... for H a power of two, and interleaved from two such series otherwise.

    Args:
        num_heads: H.
    """

    place = "scores"
    sized_by = "num_heads"

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"ALiBi: num_heads must be at least 1, got {num_heads}")
        self.register_buffer("slopes", torch.tensor(_alibi_slopes(num_heads)), persistent=False)  # [H]

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = (_offsets(q_pos, k_pos)).abs()  # [P, 1, T, S]
        return -self.get_buffer("slopes")[:, None, None] * distance  # [P, H, T, S]


class T5Bias(Position):
    """A learned bias for each head and bucket of the distance k - q (T5, Raffel 2020, section 2.1).

    Half of the buckets are exact distances, the other half grow logarithmically up to `max_distance`, beyond which
    all share the last. T5 itself leaves out 1 / sqrt(E) and starts its queries smaller instead; here the scale is
    `attend`'s business.

    Args:
        num_heads: H.
        num_buckets: buckets in all, even; half for each direction when bidirectional.
        max_distance: distance from which on the last bucket is used.
        bidirectional: True for an encoder; False puts every later key into bucket 0, for causal attention.
    """

    place = "scores"
    sized_by = "num_heads"

    def __init__(
        self, num_heads: int, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
    ) -> None:
        super().__init__()
        exact = num_buckets // (4 if bidirectional else 2)
        if num_buckets % 2 or exact < 1 or max_distance <= exact:
            raise ValueError(
                "T5Bias: num_buckets must be even and at least 4, and max_distance above the exact distances, "
                f"got {num_buckets} and {max_distance}"
            )
        self.num_buckets, self.max_distance, self.bidirectional = num_buckets, max_distance, bidirectional
        self.table = nn.Embedding(num_buckets, num_heads)
        nn.init.zeros_(self.table.weight)

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        buckets = self.bucket(_offsets(q_pos, k_pos)[:, 0])  # [P, T, S]
        values: Tensor = self.table(buckets)  # [P, T, S, H]
        return values.permute(0, 3, 1, 2)  # [P, H, T, S]

    def bucket(self, offset: Tensor) -> Tensor:
        """Return the bucket, 0 .. num_buckets-1, of each k - q (int64, any shape)."""
        buckets, first = self.num_buckets, torch.zeros_like(offset)
        if self.bidirectional:
            buckets //= 2
            first = (offset > 0) * buckets
            distance = offset.abs()
        else:
            distance = (-offset).clamp(min=0)
        exact = buckets // 2
        log_ratio = (distance.clamp(min=1) / exact).log() / math.log(self.max_distance / exact)
        far = (exact + (log_ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
        return first + torch.where(distance < exact, distance, far)


POSITIONS: dict[str, type[Position]] = {
    "none": Position,
    "sinusoidal": Sinusoidal,
    "learned": Learned,
    "rotary": Rotary,
    "t5": T5Bias,
    "alibi": ALiBi,
}


def _frequencies(size: int, base: float) -> Tensor:
    # Kept as a plain float64 tensor: as a buffer it would be rounded by module.bfloat16(), and angles with it.
    return base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)  # [size/2]


def _complex(x: Tensor) -> torch.dtype:
    return torch.complex128 if x.dtype == torch.float64 else torch.complex64


def _at_least_float(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x


def _default(positions: Tensor | None, x: Tensor) -> Tensor:
    return torch.arange(x.shape[-2], device=x.device) if positions is None else positions


def _offsets(q_pos: Tensor, k_pos: Tensor) -> Tensor:
    offsets = k_pos[..., None, :] - q_pos[..., :, None]  # [T, S] or [B, T, S]
    return offsets[None, None] if offsets.dim() == 2 else offsets[:, None]  # [P, 1, T, S]


def _alibi_slopes(num_heads: int) -> list[float]:
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2 ** (-8 * (i + 0.5) / power) for i in range(power)]
    return slopes + between[: num_heads - power]
