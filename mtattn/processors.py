"""What a target may not contain: score processors, each one idea, for any search.

A processor gets the log-probabilities of each step before tokens are chosen, and forbids tokens by setting theirs to
-inf. It may do nothing else: all others stay the model's own. It keeps no state between calls, as hypotheses move and
sentences leave; what it has to know is in its arguments.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Processor(Protocol):
    """Forbids tokens."""

    def __call__(self, log_probs: Tensor, history: Tensor, sentences: Tensor) -> Tensor:
        """Set the log-probabilities of forbidden tokens to -inf.

        Args:
            log_probs: [N, K, V], of K hypotheses for each of N sentences; may be overwritten.
            history: [N, K, t] int64, the tokens of each hypothesis so far, without BOS.
            sentences: [N] int64, which sentence of the whole input each row is.

        Returns:
            The log-probabilities.
        """


def forbid(rules: Sequence[Processor], log_probs: Tensor, history: Tensor, sentences: Tensor, eos_id: int) -> Tensor:
    """Apply each processor. A hypothesis left with no token at all ends: EOS is allowed again.

    Arguments and result as for `Processor`.
    """
    eos = log_probs[..., eos_id].clone()
    for rule in rules:
        log_probs = rule(log_probs, history, sentences)
    stuck = log_probs.amax(-1) == -math.inf
    log_probs[..., eos_id] = torch.where(stuck, eos, log_probs[..., eos_id])
    return log_probs


class MinLength:
    """Forbids EOS until a target has as many tokens as its sentence asks for.

    Args:
        min_lens: int64, for each sentence of the whole input the tokens before EOS.
        eos_id: the token that ends a target.
    """

    def __init__(self, min_lens: Tensor, eos_id: int) -> None:
        self.min_lens, self.eos_id = min_lens, eos_id

    def __call__(self, log_probs: Tensor, history: Tensor, sentences: Tensor) -> Tensor:
        short = history.size(2) < self.min_lens[sentences]  # [N]
        log_probs[..., self.eos_id].masked_fill_(short[:, None], -math.inf)
        return log_probs


class NoRepeatNgram:
    """Forbids a token that would write an n-gram for the second time in a target.

    From Paulus et al. 2017, section 2.5, https://arxiv.org/abs/1705.04304.

    Args:
        n: size of the n-grams, 1 or more; 1 lets no token occur twice.
    """

    def __init__(self, n: int) -> None:
        if n < 1:
            raise ValueError(f"no_repeat_ngram size is {n}: it must be 1 or more")
        self.n = n

    def __call__(self, log_probs: Tensor, history: Tensor, sentences: Tensor) -> Tensor:
        length = history.size(2)
        if length < self.n:
            return log_probs
        seen = torch.ones_like(history[:, :, self.n - 1 :], dtype=torch.bool)  # [N, K, t - n + 1]
        for i in range(self.n - 1):  # does the i-th token of each n-gram equal that of the one now being written?
            seen &= history[:, :, i : length - self.n + 1 + i] == history[:, :, length - self.n + 1 + i, None]
        # Added, not assigned: of several -inf and 0 for one token, in whatever order, -inf remains.
        forbidden = torch.zeros_like(seen, dtype=log_probs.dtype).masked_fill(seen, -math.inf)
        n, k = (torch.arange(size, device=log_probs.device) for size in history.shape[:2])
        index = (n[:, None, None], k[:, None], history[:, :, self.n - 1 :])
        return log_probs.index_put_(index, forbidden, accumulate=True)


class ForcedPrefix:
    """Makes each target start with given tokens (to complete what a translator typed, or to choose a target language).

    Args:
        prefixes: the token ids for each sentence of the whole input, without BOS; an empty list leaves it free.
    """

    FREE = -1

    def __init__(self, prefixes: Sequence[Sequence[int]]) -> None:
        longest = max((len(prefix) for prefix in prefixes), default=0)
        rows = [[*prefix, *[self.FREE] * (longest - len(prefix))] for prefix in prefixes]
        self.prefixes = torch.tensor(rows, dtype=torch.int64).view(len(rows), longest)

    def __call__(self, log_probs: Tensor, history: Tensor, sentences: Tensor) -> Tensor:
        if history.size(2) >= self.prefixes.size(1):
            return log_probs
        self.prefixes = self.prefixes.to(log_probs.device)
        token = self.prefixes[sentences, history.size(2), None, None]  # [N, 1, 1]
        ids = torch.arange(log_probs.size(2), device=log_probs.device)
        return log_probs.masked_fill_((token != self.FREE) & (ids != token), -math.inf)
