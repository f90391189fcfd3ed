"""Draw tokens from logits, with temperature, top-k and top-p, and with random numbers that depend on their place alone.

A generator's next number depends on how many were drawn before, so a sentence's sample would depend on its neighbours.
Here each number is a hash of where it is used instead (counter-based random numbers: Salmon et al. 2011,
https://doi.org/10.1145/2063384.2063405), the same in every batch and on every device.
"""

import torch
from torch import Tensor

# SplitMix64 (Steele et al. 2014, https://doi.org/10.1145/2660193.2660195), as signed 64-bit integers that wrap around.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64


def mixed(x: Tensor) -> Tensor:
    """The output function of SplitMix64: int64 of any shape to int64, each bit of it dependent on all bits of x."""
    x = x + GOLDEN
    x = (x ^ (x >> 30 & 2**34 - 1)) * MIX_1  # >> keeps the sign, so the bits that it repeats are masked off
    x = (x ^ (x >> 27 & 2**37 - 1)) * MIX_2
    return x ^ (x >> 31 & 2**33 - 1)


def uniform(seeds: Tensor, seed: int, step: int, num_samples: int) -> Tensor:
    """Random numbers in (0, 1], one for each sample of each sentence at one step.

    Args:
        seeds: [N] int64, each sentence's own seed.
        seed: the seed of the whole run, any 64-bit integer.
        step: tokens that the samples have so far.
        num_samples: K.

    Returns:
        [N, K] float32, a function of (seed, the sentence's seed, k, step) alone.
    """
    k = torch.arange(num_samples, device=seeds.device)
    bits = mixed(mixed(mixed(mixed(torch.full_like(seeds, seed)) ^ seeds)[:, None] ^ k) ^ step)  # [N, K]
    return ((bits >> 40 & 2**24 - 1) + 1).float() / 2**24  # the 24 highest bits: all that a float32 can tell apart


def draw(logits: Tensor, randoms: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Draw a token from each row of softmax(logits / temperature), cut to its likeliest tokens.

    Args:
        logits: [N, K, V].
        randoms: [N, K] in (0, 1].
        temperature: more than 0.
        top_k: draw among the k likeliest tokens and those as likely as the k-th (Fan et al. 2018,
            https://arxiv.org/abs/1805.04833); 0: among all.
        top_p: then draw among the fewest likeliest tokens whose probabilities reach top_p, and those as likely as the
            last of them (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751); 1: among all.

    Returns:
        [N, K] int64; never a token whose logit is -inf. A random number within the rounding of the model (1e-6) of the
        border between two tokens may fall to either.
    """
    logits = logits.float() / temperature
    if 0 < top_k < logits.size(-1):
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probs = logits.softmax(-1)
    if top_p < 1:
        ordered = probs.sort(-1, descending=True).values
        kept = ordered.cumsum(-1) - ordered < top_p  # the mass before it is short of top_p; the likeliest always is
        least = ordered.masked_fill(~kept, 1).amin(-1, keepdim=True)
        probs = probs.masked_fill(probs < least, 0)
    # The first token at which the cumulative probability reaches a random share of the total: since the share is
    # positive, that token adds to it; since it is at most the total, there is one.
    mass = probs.cumsum(-1)
    return torch.searchsorted(mass, randoms[..., None] * mass[..., -1:])[..., 0]
