"""The arithmetic of one step of beam search: normalise logits, find the best continuations.

Legend: N sentences, K hypotheses of each, R rows of logits (N K, or fewer where places are empty), V vocabulary.
Nothing here depends on another row, on a device or on chance.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 64  # columns under one maximum: near sqrt(V) for V = 8,000, and a width that a CPU reduces fast
CACHED = 2**18  # floats (1 MiB) worked on at a time on a CPU, to stay in its cache: 3 times faster than all at once


def log_normaliser(logits: Tensor) -> Tensor:
    """log sum exp over the vocabulary, so that log_softmax(logits) = logits - log_normaliser(logits)[..., None].

    Args:
        logits: [R, V], float32 or bfloat16.

    Returns:
        [R] float32; never below the largest logit, so that no log-probability exceeds 0.
    """
    return torch.cat([_log_sum_exp(rows) for rows in row_chunks(logits)])


def _log_sum_exp(rows: Tensor) -> Tensor:
    # log_softmax is fused: a fifth faster than its parts or torch.logsumexp. A row of -inf alone gives NaN.
    return rows.amax(1) - rows.log_softmax(1).amax(1)


def best_continuations(
    logits: Tensor, rows: Tensor, offsets: Tensor, diversity: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The K best of the K * V ways to go on, by logit + offset, best first.

    A tournament (Knuth, TAOCP 3, 5.2.3) instead of a sort: the maximum of each block of columns is found once; then
    each of K rounds compares the hypotheses, the blocks of the best one, and the columns of its best block. It is
    exact, and over 8,000 columns several times faster than torch.topk on a CPU. Of equals the hypothesis in the lower
    place wins, then the lower token, as argmax and max return the first.

    Args:
        logits: [R, V]; overwritten. -inf forbids a token.
        rows: [N, K] int64, which row of logits each hypothesis has; where there is none, any of its sentence.
        offsets: [N, K] float32, what a logit lacks to be the log-probability of the whole continuation; -inf where
            there is no hypothesis.
        diversity: taken from a hypothesis's offset each time that one of its continuations is chosen.

    Returns:
        values: [N, K] float32, the chosen logit, -inf where nothing was left.
        places: [N, K] int64, the hypothesis that is continued.
        tokens: [N, K] int64, the token that continues it.
    """
    k, v, flat = rows.size(1), logits.size(1), logits.flatten()
    maxima = torch.cat([block_maxima(chunk) for chunk in row_chunks(logits)])[rows]  # [N, K, V / BLOCK]
    num_blocks, flat_maxima = maxima.size(2), maxima.flatten(1)
    place, column = torch.arange(k, device=logits.device), torch.arange(BLOCK, device=logits.device)
    starts, never = rows * v, logits.new_full((), -math.inf)
    rounds: list[tuple[Tensor, Tensor, Tensor]] = []
    while True:
        hyp = (maxima.amax(2) + offsets).argmax(1, keepdim=True)  # [N, 1]
        block = maxima.gather(1, hyp[:, :, None].expand(-1, -1, num_blocks)).argmax(2)  # [N, 1]
        ids = (block * BLOCK + column).clamp(max=v - 1)  # [N, BLOCK]
        at = starts.gather(1, hyp) + ids  # [N, BLOCK]
        value, index = flat[at].float().max(1, keepdim=True)  # [N, 1]
        token = ids.gather(1, index)  # [N, 1]
        rounds.append((value, hyp, token))
        if len(rounds) == k:
            break

        flat[at.gather(1, index)] = never  # out of the next rounds; scatter_ would copy all of a bfloat16 tensor
        flat_maxima.scatter_(1, hyp * num_blocks + block, flat[at].float().amax(1, keepdim=True))
        offsets = torch.where(place == hyp, offsets - diversity, offsets)
    values, places, tokens = (torch.cat(columns, 1) for columns in zip(*rounds, strict=True))
    return values, places, tokens


def top_continuations(log_probs: Tensor, live: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `best_continuations` finds, in few kernels and always the same ones, as a GPU wants it.

    The K best stand in the K blocks of columns with the largest maxima: one that stood in another block would have K
    blocks before it, each with something better. So one pass over all, and two short `topk`, do what one over K V
    columns would take many passes for. Of equals any may win, but which does not depend on other sentences.

    Args:
        log_probs: [N, K, V] float32; -inf forbids a token.
        live: [N, K] float32, log-probability of each hypothesis; -inf where there is none.

    Returns:
        log_probs: [N, K] float32, of the whole continuation, best first; -inf where nothing was left.
        places: [N, K] int64, the hypothesis that is continued.
        tokens: [N, K] int64, the token that continues it.
    """
    n, k, v = log_probs.shape
    maxima = block_maxima(log_probs.flatten(0, 1)).view(n, k, -1) + live[:, :, None]  # [N, K, V / BLOCK]
    num_blocks, chosen = maxima.size(2), maxima.flatten(1).topk(k).indices  # [N, K]
    hyps, starts = chosen // num_blocks, chosen % num_blocks * BLOCK  # [N, K]
    columns = starts[:, :, None] + torch.arange(BLOCK, device=live.device)  # [N, K, BLOCK]
    ids = columns.clamp(max=v - 1)  # the last block is short
    at = hyps[:, :, None] * v + ids  # [N, K, BLOCK]
    values = log_probs.flatten(1).gather(1, at.flatten(1)).view_as(at) + live.gather(1, hyps)[:, :, None]
    best = values.masked_fill_(columns >= v, -math.inf).flatten(1).topk(k)  # [N, K]
    return best.values, hyps.gather(1, best.indices // BLOCK), ids.flatten(1).gather(1, best.indices)


def block_maxima(rows: Tensor) -> Tensor:
    """The maximum of each BLOCK columns, the last block being short: [R, V] to [R, ceil(V / BLOCK)]."""
    num_whole, v = rows.size(1) // BLOCK, rows.size(1)
    maxima = rows[:, : num_whole * BLOCK].view(len(rows), num_whole, BLOCK).amax(2)
    return maxima if v % BLOCK == 0 else torch.cat([maxima, rows[:, num_whole * BLOCK :].amax(1, keepdim=True)], 1)


def row_chunks(logits: Tensor) -> Iterator[Tensor]:
    """The rows of logits [R, V] as float32, on a CPU as many at a time as stay in its cache."""
    num = max(1, CACHED // logits.size(1)) if logits.device.type == "cpu" else max(1, len(logits))
    for i in range(0, len(logits), num):
        yield logits[i : i + num].float()
