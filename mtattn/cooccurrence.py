"""Where embeddings start: pieces that stand beside the same pieces of the other language start out alike.

Before the first step the corpus itself says a good deal about each piece: translations of lines with "guitar" often
have "spielt" in them, and so do those of lines with "violin", but not those with "river". Pointwise mutual information
of a source and a target piece in one pair, without its negative values, factorised by a truncated SVD (Levy and
Goldberg 2014; Levy et al. 2015), gives vectors that say so, and a model that starts from them need not learn it (Qi et
al. 2018 start from vectors of other text).

Legend: S source and T target pieces in the vocabularies, P pairs, D features.
"""

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtattn.batch import IntArray, TokenTable
from mtattn.model import Transformer

SHARE = 0.5  # of an embedding's squared length that the corpus decides; chance decides the rest
MOST_COUNTED = 30_000_000  # times that two pieces share a pair: 157,000 short pairs; some seconds
FEWEST = 2  # pairs that two pieces must share: once may be chance
NOISE = 1e-4  # a shorter vector is taken for rounding error
ITERATIONS = 4  # of the randomised SVD (Halko et al. 2011); other numbers were not tried


@torch.no_grad()
def start_embeddings(model: Transformer, src: TokenTable, tgt: TokenTable, *, seed: int) -> None:
    """Let the embeddings of a fresh model, which are random, start from what the training pairs say of each piece.

    In a table that both sides share, half of the features say how a piece is used as a source and half how it is used
    as a target: a word and its translation begin with the same numbers, in different places, so that the decoder, which
    predicts with the same table, can tell them apart.

    Args:
        src, tgt: the sides of the training pairs.
        seed: of what is left to chance.
    """
    shared = model.src_embed is model.tgt_embed
    dim = model.config.d_model // (2 if shared else 1)
    left, right = cooccurrence_vectors(
        src, tgt, len(model.src_embed.weight), len(model.tgt_embed.weight), dim, seed=seed
    )
    if shared:
        starts = {model.tgt_embed: F.pad(torch.cat([left, right], 1), (0, model.config.d_model % 2))}  # [V, D]
    else:
        starts = {model.src_embed: left, model.tgt_embed: right, model.out_embed: right}
    for table, vectors in starts.items():
        known = F.normalize(vectors).to(table.weight)
        table.weight.mul_((1 - SHARE * known.norm(dim=1, keepdim=True)).sqrt()).add_(known, alpha=SHARE**0.5)


def cooccurrence_vectors(
    src: TokenTable, tgt: TokenTable, num_src: int, num_tgt: int, dim: int, *, seed: int
) -> tuple[Tensor, Tensor]:
    """Vectors of source pieces [S, D] and of target pieces [T, D], of length 1, or 0 where nothing is known.

    A source and a target piece have a large product when they share more pairs than chance would have it.

    Args:
        src, tgt: the sides of the training pairs.
        num_src, num_tgt: S, T.
        dim: D.
        seed: of the choice of pairs, where there is more than MOST_COUNTED to count, and of the randomised SVD.
    """
    order = np.random.default_rng(seed).permutation(len(tgt))
    counted = np.cumsum(src.lens[order] * tgt.lens[order])
    chosen = np.sort(order[: max(1, int(np.searchsorted(counted, MOST_COUNTED)))])
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.simplefilter("ignore")  # torch says once that its sparse products are young
        information = _information(_presence(src, chosen, num_src), _presence(tgt, chosen, num_tgt))
        left, values, right = torch.svd_lowrank(information, min(dim, num_src, num_tgt), ITERATIONS)
    return _directions(left * values.sqrt(), dim), _directions(right * values.sqrt(), dim)


def _presence(table: TokenTable, chosen: IntArray, size: int) -> Tensor:
    """Which piece is in which of the chosen texts: sparse [pieces, P] of ones."""
    texts = np.repeat(np.arange(len(chosen)), table.lens[chosen])
    cells = np.unique(table.flat(chosen) * len(chosen) + texts)
    places = torch.from_numpy(np.stack([cells // len(chosen), cells % len(chosen)]))
    return torch.sparse_coo_tensor(places, torch.ones(len(cells)), (size, len(chosen)), check_invariants=False)


def _information(src: Tensor, tgt: Tensor) -> Tensor:
    """Positive pointwise mutual information of pieces in one pair: sparse [S, T]."""
    counts = torch.sparse.mm(src, tgt.t()).coalesce()  # [S, T]: pairs that hold both
    often = counts.values() >= FEWEST
    places, values = counts.indices()[:, often], counts.values()[often]
    of_src, of_tgt = (torch.sparse.sum(counts, axis).to_dense() for axis in (1, 0))  # [S], [T]
    expected = of_src[places[0]] * of_tgt[places[1]] / of_src.sum()
    return torch.sparse_coo_tensor(places, (values / expected).log().clamp(min=0), counts.shape, check_invariants=False)


def _directions(vectors: Tensor, dim: int) -> Tensor:
    """Vectors [V, R] at length 1, or 0 where there is only rounding error; with zeros up to D features."""
    lengths = vectors.norm(dim=1, keepdim=True)
    return F.pad(torch.where(lengths > NOISE, vectors / lengths, 0), (0, dim - vectors.shape[1]))
