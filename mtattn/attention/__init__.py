"""Attention: readable, exact and fast. The folder is self-contained: copy it into any project that has torch.

Begin with `textbook.py` (the formula), then `reference.py` (with heads, masks and bias), `multihead.py` (the layer of a
Transformer), `predicate.py` and `masks.py`, `positions.py` and `scores.py`; `functional.py` (`attend`) chooses among
the fast paths.
"""

from .cache import BeamTree, KVCache
from .capture import capture_weights
from .flex import block_mask
from .functional import IMPLS, attend, attention_weights, chosen_impl
from .masks import (
    MASKS,
    causal,
    distance_windows,
    key_padding,
    packed,
    prefix_lm,
    sliding_window,
)
from .multihead import MultiHeadAttention
from .norm import RMSNorm
from .positions import POSITIONS, ALiBi, Learned, Position, Rotary, Sinusoidal, T5Bias
from .predicate import Mask
from .scores import SCORES
from .textbook import Attention

__all__ = [
    "IMPLS",
    "MASKS",
    "POSITIONS",
    "SCORES",
    "ALiBi",
    "Attention",
    "BeamTree",
    "KVCache",
    "Learned",
    "Mask",
    "MultiHeadAttention",
    "Position",
    "RMSNorm",
    "Rotary",
    "Sinusoidal",
    "T5Bias",
    "attend",
    "attention_weights",
    "block_mask",
    "capture_weights",
    "causal",
    "chosen_impl",
    "distance_windows",
    "key_padding",
    "packed",
    "prefix_lm",
    "sliding_window",
]
