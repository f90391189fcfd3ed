"""What a search found: which token stood in which place at each step, and the hypotheses read off that backwards.

Legend: N sentences, K places (hypotheses) of each, t steps so far. Log-probabilities are in nats.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = -math.inf  # the log-probability of what is not there


@dataclass(frozen=True)
class Hypothesis:
    """One target sentence that a search found."""

    ids: list[int]  # the tokens, without BOS and EOS
    log_prob: float  # log p(target | source), the sum of token_log_probs
    score: float  # log_prob / length ** length_penalty, what hypotheses are ranked by
    token_log_probs: list[float]  # one for each of ids, then EOS's if finished
    finished: bool  # False: cut at max_len, before EOS


class History:
    """What each step put in each place of each sentence, t steps so far; hypotheses are read off it backwards.

    Args:
        num_sentences, width, longest: N, K, and the most steps that there will be.

    Attributes:
        tokens: [N, K, longest] int64.
        parents: [N, K, longest] int64, the place, a step before, of the hypothesis that each one extends.
        log_probs: [N, K, longest] float32, of the whole hypothesis so far; -inf where there is none.
    """

    def __init__(self, num_sentences: int, width: int, longest: int, device: torch.device) -> None:
        shape = num_sentences, width, longest
        self.tokens, self.parents = (torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(2))
        self.log_probs = torch.full(shape, NEVER, device=device)
        self.length = 0

    def add(self, sentences: Tensor, tokens: Tensor, parents: Tensor, log_probs: Tensor) -> None:
        """One more step of these sentences (int64 [M]), the others [M, K]; or C more steps, the others [M, K, C]."""
        num_steps = 1 if tokens.dim() == 2 else tokens.size(2)
        for kept, new in ((self.tokens, tokens), (self.parents, parents), (self.log_probs, log_probs)):
            place = kept.narrow(2, self.length, num_steps)  # [N, K, C]
            place.index_copy_(0, sentences, new.view(*new.shape[:2], num_steps))
        self.length += num_steps

    def cpu(self) -> "History":
        """The steps so far, on the CPU."""
        copy = History(0, 0, 0, torch.device("cpu"))
        parts = (self.tokens, self.parents, self.log_probs)
        copy.tokens, copy.parents, copy.log_probs = (part[:, :, : self.length].cpu() for part in parts)
        copy.length = self.length
        return copy

    def trace(self, rows: Tensor, lengths: Tensor, places: Tensor) -> Tensor:
        """Follow the back-pointers of M hypotheses from their last token to their first.

        Args: rows, lengths, places: [M] int64; hypothesis m ends in sentence rows[m], step lengths[m] - 1, places[m].
        Returns: [M, t] int64, the place of each of its tokens; without meaning from lengths[m] on.
        """
        path, place = [], places
        for t in reversed(range(self.length)):
            path.append(place)
            place = torch.where(t < lengths, self.parents[rows, place, t], place)
        return torch.stack(path[::-1], 1)

    def so_far(self, sentences: Tensor) -> Tensor:
        """[M, K, t] int64: the tokens of the hypothesis in each place of these sentences, without BOS."""
        m, k, t = len(sentences), self.tokens.size(1), self.length
        if not t:
            return self.tokens[sentences, :, :0]
        rows, places = sentences.repeat_interleave(k), torch.arange(k, device=sentences.device).repeat(m)
        path = self.trace(rows, torch.full_like(rows, t), places)
        return self.tokens[rows[:, None], path, torch.arange(t, device=rows.device)].view(m, k, t)


def nbest_lists(
    history: History, max_len: Tensor, eos_id: int, *, nbest: int, length_penalty: float
) -> list[list[Hypothesis]]:
    """The n-best list of each sentence, from the back-pointers: finished first, then by score, then the shorter.

    Args:
        max_len: [N], the most tokens that a hypothesis of each sentence may have; one that has them ends there.

    Raises:
        ValueError: a sentence has no hypothesis.
    """
    history, max_len = history.cpu(), max_len.cpu()  # a GPU would answer a hundred small questions slowly
    tokens, log_probs = history.tokens, history.log_probs  # [N, K, t]
    lengths = torch.arange(1, history.length + 1)
    ends = (log_probs > NEVER) & ((tokens == eos_id) | (lengths == max_len[:, None, None]))
    row, place, last = at = ends.nonzero(as_tuple=True)  # [M] each: M hypotheses, at most K a sentence, by row
    if not row.bincount(minlength=len(max_len)).all() or log_probs.amax().isnan():
        raise ValueError("a sentence has no hypothesis: the logits of a step were NaN, or -inf for all that is allowed")
    cut = tokens[at] != eos_id
    score = log_probs[at] / (last + 1) ** length_penalty
    order = torch.arange(len(row))
    for key in (last, -score, cut, row):  # the least important first, since each sort keeps the order of equals
        order = order[key[order].argsort(stable=True)]
    rank = order.argsort()
    rank -= torch.searchsorted(row, row)  # among its sentence's
    order = order[(rank < nbest)[order]]  # [M']

    row, place, last, score, cut = (x[order] for x in (row, place, last, score, cut))
    history.length = int(last.max()) + 1  # later steps were others', or in vain
    steps = torch.arange(history.length)
    path = (row[:, None], history.trace(row, last + 1, place), steps)
    totals = log_probs[path]  # [M', t]
    log_prob = totals.gather(1, last[:, None])[:, 0]
    inside = steps <= last[:, None]  # [M', t]
    ids = tokens[path][inside].tolist()  # of one hypothesis after the other
    token_log_probs = totals.diff(prepend=torch.zeros_like(totals[:, :1]))[inside].tolist()
    lists: list[list[Hypothesis]] = [[] for _ in max_len]
    begin, numbers = 0, (row, last + 1, cut, log_prob, score)
    for n, length, is_cut, total, value in zip(*(x.tolist() for x in numbers), strict=True):
        end = begin + length
        own = ids[begin : end - (not is_cut)]
        lists[n].append(Hypothesis(own, total, value, token_log_probs[begin:end], finished=not is_cut))
        begin = end
    return lists
