"""Find the likeliest target sentences: greedy, beam and sampling search, over a step function that may be any model.

One loop, `search`, drives every kind; a kind is one function that chooses how hypotheses go on (SEARCHES). A beam works
as in Sutskever et al. (2014, https://arxiv.org/abs/1409.3215): each step keeps the K best of all continuations, and one
that ends keeps its place, so that one fewer goes on. Greedy search is a beam of one, exactly.

Legend: N sentences still searched, K hypotheses of each, V vocabulary, t tokens so far. Log-probabilities are in nats,
and the model's own: log_softmax of what the step returned, whatever was forbidden afterwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor

from mtattn.beam import best_continuations
from mtattn.history import NEVER, History, Hypothesis, nbest_lists
from mtattn.processors import MinLength, NoRepeatNgram, Processor, forbid
from mtattn.sampling import draw, uniform

# A CPU knows at once what is done and which places are empty. A GPU would have to wait for that, and computes all.
KNOWN_AT_ONCE = ("cpu",)
MAX_WIDTH = 1000  # hypotheses a sentence: memory holds their logits
Quantization = Literal["none", "bfloat16", "float16", "int8"]
SYNC_EVERY = 8  # steps between looks at the result on a GPU, for which the host has to wait each time


class Step(Protocol):
    """One decoding step for N sentences with K hypotheses each. It remembers the hypotheses of its previous call."""

    def __call__(self, tokens: Tensor, parents: Tensor | None, alive: Tensor | None = None) -> Tensor:
        """Extend each hypothesis by one token.

        Args:
            tokens: [N, K] int64, the last token of each hypothesis (BOS at the first call).
            parents: [N, K] int64, from 0 to K - 1: the hypothesis of the previous call that each one extends; None at
                the first call, and when each extends itself.
            alive: [N, K] bool, the places where there is a hypothesis to extend, R in all and at least one a sentence;
                None: everywhere.

        Returns:
            Logits, float32 or bfloat16, unnormalised: [N, K, V], or with `alive` [R, V], in the order of the places.
            The next call may overwrite them.
        """

    def select(self, sentences: Tensor) -> None:
        """Keep only these sentences (int64 [M], indices into the current N), in this order."""


@dataclass(frozen=True)
class DecodeConfig:
    """How to search: the [decode] section of the configuration. Raises ValueError when a value is out of its range."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    search: Literal["beam", "sample"] = "beam"  # a key of SEARCHES
    beam_size: int = 5  # K, the hypotheses that a beam keeps of each sentence; 1 is greedy search
    nbest: int = 1  # hypotheses returned for each sentence; for `sample`, the number of samples
    length_penalty: float = 1.0  # alpha in score = log_prob / length ** alpha, length counting EOS; larger: longer
    max_len_ratio: float = 2.0  # a target has at most max_len_ratio * source length + max_len_extra tokens, with EOS
    max_len_extra: int = 10
    min_len_ratio: float = 0.0  # EOS is allowed after min_len_ratio * source length tokens, and after
    min_len: int = 0  # so many
    max_sentences: int = 0  # lines of more are translated in parts; 0: training sets it to what its lines hold
    # of the weights while translating: see mtattn.linear; on a GPU none or bfloat16
    quantization: Quantization = "none"
    no_repeat_ngram_size: int = 0  # no n-gram of this size occurs twice in a target; 0: any may
    # `beam`: nats by which each better sibling sets a continuation back, in the choice but not in its score, for n-best
    # lists with fewer near-copies (Li et al. 2016, https://arxiv.org/abs/1611.08562)
    diversity: float = 0.0
    temperature: float = 1.0  # `sample`: logits are divided by it; below 1 is bolder, above 1 is more varied
    top_k: int = 0  # `sample`: draw among the k likeliest tokens; 0: among all
    top_p: float = 1.0  # `sample`: draw among the fewest likeliest tokens whose probabilities reach top_p
    seed: int = 0  # `sample`: the same seed draws the same samples

    def __post_init__(self) -> None:
        most, up_to = (self.beam_size, "beam_size ({})") if self.search == "beam" else (MAX_WIDTH, "{}")
        for name, allowed, fits in (
            ("search", " or ".join(sorted(SEARCHES)), self.search in SEARCHES),
            ("beam_size", f"from 1 to {MAX_WIDTH}", 1 <= self.beam_size <= MAX_WIDTH),
            ("nbest", f"from 1 to {up_to.format(most)}", 1 <= self.nbest <= most),
            ("quantization", "none, bfloat16, float16 or int8", self.quantization in get_args(Quantization)),
            ("length_penalty", "from 0 to 5", 0 <= self.length_penalty <= 5),  # lengths to that power fit a float32
            ("max_len_ratio", "from 0 to 100", 0 <= self.max_len_ratio <= 100),  # memory holds what may be written
            ("max_len_extra", "from 1 to 10,000", 1 <= self.max_len_extra <= 10_000),
            ("min_len_ratio", "from 0 to max_len_ratio", 0 <= self.min_len_ratio <= self.max_len_ratio),
            ("min_len", "from 0 to 10,000", 0 <= self.min_len <= 10_000),
            ("max_sentences", "0 (what training sets) or more", self.max_sentences >= 0),
            ("no_repeat_ngram_size", "0 (off) or more", self.no_repeat_ngram_size >= 0),
            ("diversity", "from 0 (off) to 1,000,000", 0 <= self.diversity <= 1e6),
            ("temperature", "from 0.001 to 1,000,000", 0.001 <= self.temperature <= 1e6),
            ("top_k", "0 (all) or more", self.top_k >= 0),
            ("top_p", "more than 0, at most 1", 0 < self.top_p <= 1),
            ("seed", "a signed 64-bit integer", -(2**63) <= self.seed < 2**63),
        ):
            if not fits:
                raise ValueError(f"{name} = {getattr(self, name)!r}: it must be {allowed}")

    @property
    def width(self) -> int:
        """K, the hypotheses a sentence."""
        return self.beam_size if self.search == "beam" else self.nbest

    @property
    def reorders(self) -> bool:
        """Whether a hypothesis can extend one that stood in another place."""
        return self.search == "beam" and self.beam_size > 1

    def least_len(self, src_len: int) -> int:
        """The fewest tokens, without EOS, that a target may have; src_len: its source's, with EOS."""
        return max(self.min_len, int(src_len * self.min_len_ratio))

    def max_len(self, src_len: int) -> int:
        """The most tokens, with EOS, that a target may have; src_len: its source's, with EOS."""
        return int(src_len * self.max_len_ratio) + self.max_len_extra


Choice = tuple[Tensor, Tensor, Tensor]
"""How hypotheses go on, [N, K] each: the log-probability of the whole (float32; -inf: none), the place of the
hypothesis that it extends (int64), the token (int64)."""


@dataclass
class SearchState:
    """What a search knows of the sentences that are not done. Row n is one; its outcome depends on no other."""

    sentences: Tensor  # [N] int64, which sentence of the input each row is
    seeds: Tensor  # [N] int64, the random seed of each sentence, for sampling
    max_len: Tensor  # [N] int64, the most tokens that its targets may have, with EOS
    live: Tensor  # [N, K] float32, log_prob of each hypothesis that goes on; -inf where there is none
    finished: Tensor  # [N, K] float32, scores of those that ended with EOS, best first; -inf where there is none
    num_steps: int = 0  # taken so far

    def select(self, rows: Tensor) -> "SearchState":
        """The state of these rows alone (int64 [M])."""
        parts = (self.sentences, self.seeds, self.max_len, self.live, self.finished)
        sentences, seeds, max_len, live, finished = (part.index_select(0, rows) for part in parts)
        return SearchState(sentences, seeds, max_len, live, finished, self.num_steps)


@torch.inference_mode()
def search(
    step: Step,
    src_lens: Tensor,
    config: DecodeConfig,
    *,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    processors: Sequence[Processor] = (),
    seeds: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Search N sentences together; the outcome of each is the one that it would have alone.

    Args:
        step: the model, with N sentences encoded.
        src_lens: [N] integer, source lengths in tokens; 0 is allowed. The search runs on its device.
        config: how to search.
        bos_id: what targets start from; never generated, unless it is eos_id.
        eos_id: what ends a target.
        pad_id: never generated.
        processors: what is forbidden, beyond what config says (see mtattn.processors).
        seeds: one for each sentence, for sampling: its line number in the corpus, say, so that its samples do not
            depend on its batch. Default: its place among the N.

    Returns:
        For each sentence, in the order of the input, nbest hypotheses: the finished ones, best score first, then those
        cut at max_len. A beam returns fewer where it found fewer different ones, never none; samples may repeat.

    Raises:
        ValueError: seeds are not N; a step's logits have the wrong shape, or are NaN or nowhere finite.
    """
    num_sentences, device = len(src_lens), src_lens.device
    if not num_sentences:
        return []
    state = start(src_lens, config, range(num_sentences) if seeds is None else seeds)
    max_len, choose = state.max_len, SEARCHES[config.search]
    rules = [*processors]
    if config.min_len or config.min_len_ratio:
        least = torch.tensor([config.least_len(length) for length in src_lens.tolist()], device=device)  # [N]
        rules.append(MinLength(least, eos_id))
    if config.no_repeat_ngram_size:
        rules.append(NoRepeatNgram(config.no_repeat_ngram_size))
    never = torch.tensor(sorted({pad_id, bos_id} - {eos_id}), device=device)  # some models start targets with EOS
    tokens = torch.full_like(state.live, bos_id, dtype=torch.int64)  # [N, K]
    parents: Tensor | None = None
    history = History(num_sentences, config.width, int(max_len.max()), device)
    at_once = device.type in KNOWN_AT_ONCE
    skips = at_once and config.reorders and not rules

    for length in range(1, history.tokens.size(2) + 1):
        alive = state.live != NEVER if skips else None  # [N, K]
        if alive is not None and bool(alive.all()):
            alive = None
        logits = step(tokens, parents, alive)  # [N, K, V] or [R, V]
        logits, rows = as_rows(logits, tokens, alive)  # [R, V], [N, K]
        choices = logits.log_softmax(-1, dtype=torch.float32).index_fill_(-1, never, NEVER)  # [R, V]
        if rules:
            grid = choices.view(*tokens.shape, -1)  # [N, K, V]
            choices = forbid(rules, grid, history.so_far(state.sentences), state.sentences, eos_id).flatten(0, 1)

        log_probs, places, tokens = choose(choices, rows, state, config)  # [N, K] each
        history.add(state.sentences, tokens, places, log_probs)

        state.live, state.finished, done = end_step(
            log_probs, tokens, state.finished, state.max_len, length, config, eos_id
        )
        state.num_steps = length
        parents = places if config.reorders else None

        if at_once or length % SYNC_EVERY == 0:
            staying = (~done).nonzero()[:, 0]
            if not len(staying):
                break
            if len(staying) < len(done):
                step.select(staying)
                state, tokens = state.select(staying), tokens[staying]
                parents = None if parents is None else parents[staying]
    return nbest_lists(history, max_len, eos_id, nbest=config.nbest, length_penalty=config.length_penalty)


def end_step(
    log_probs: Tensor,
    tokens: Tensor,
    finished: Tensor,
    max_len: Tensor,
    length: int | Tensor,
    config: DecodeConfig,
    eos_id: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Which hypotheses end with a step, and which sentences are done.

    A sentence is done when nothing that goes on can enter its n-best list. Proof: let the best of its live hypotheses
    have log_prob l <= 0. Further tokens add log p <= 0, and it ends at a length L <= max_len, so none that lives will
    score above l / L ** alpha <= l / max_len ** alpha (alpha >= 0, l <= 0). Once the nbest-th finished score reaches
    that bound, no score to come is better.

    Args:
        log_probs, tokens: [N, K], of each hypothesis as the step left it, and its last token.
        finished, max_len: of the state before the step.
        length: tokens that the hypotheses have now.

    Returns:
        live [N, K] and finished [N, K] of the state after it; done, bool [N].
    """
    ended, alpha = tokens == eos_id, config.length_penalty
    scores = (log_probs / length**alpha).masked_fill(~ended, NEVER)  # [N, K]
    finished = torch.cat([finished, scores], 1).topk(scores.size(1)).values  # [N, K]
    live = log_probs.masked_fill(ended, NEVER)  # [N, K]
    bound = live.amax(1) / max_len**alpha  # [N]
    done = (finished[:, config.nbest - 1] >= bound) | (length >= max_len)  # [N]
    return live.masked_fill(done[:, None], NEVER), finished, done


def as_rows(logits: Tensor, tokens: Tensor, alive: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a step returned as rows [R, V], and which row is whose: [N, K] int64, anything where none is alive."""
    n, k = tokens.shape
    shape = tokens.shape if alive is None else (int(alive.sum()),)
    if logits.shape[:-1] != shape:
        raise ValueError(f"step returned logits {list(logits.shape)}, expected {[*shape, 'V']}")
    if alive is None:
        return logits.flatten(0, 1), torch.arange(n * k, device=tokens.device).view(n, k)
    # An empty place points to a row of its own sentence, so that nothing can reach over to another.
    rows = alive.flatten().cumsum(0).view(n, k) - 1
    return logits, torch.maximum(rows, rows[:, -1:] - alive.sum(1, keepdim=True) + 1)


def start(src_lens: Tensor, config: DecodeConfig, seeds: Sequence[int]) -> SearchState:
    """The state before the first step: one live hypothesis for a beam, lest it hold K copies; K for K samples."""
    device, n = src_lens.device, len(src_lens)
    if len(seeds) != n:
        raise ValueError(f"{len(seeds)} seeds for {n} sentences: give one for each")
    live = torch.zeros(n, config.width, device=device)  # log 1: every target starts with BOS
    if config.search == "beam":
        live[:, 1:] = NEVER
    return SearchState(
        sentences=torch.arange(n, device=device),
        seeds=torch.tensor(list(seeds), device=device),
        max_len=torch.tensor([config.max_len(length) for length in src_lens.tolist()], device=device),
        live=live,
        finished=torch.full_like(live, NEVER),
    )


def beam(choices: Tensor, rows: Tensor, state: SearchState, config: DecodeConfig) -> Choice:
    """One step of beam search: of the K * V ways to go on, the best, as many as there are places left."""
    log_probs, places, tokens = best_continuations(choices, rows, state.live, config.diversity)
    return where_free(log_probs, state.finished), places, tokens


def where_free(log_probs: Tensor, finished: Tensor) -> Tensor:
    """Those of the best continuations [N, K] for which there is a place: a finished hypothesis keeps its own."""
    k = log_probs.size(1)
    num_free = k - (finished > NEVER).sum(1, keepdim=True)  # [N, 1]
    return log_probs.masked_fill(torch.arange(k, device=log_probs.device) >= num_free, NEVER)


def sample(choices: Tensor, rows: Tensor, state: SearchState, config: DecodeConfig) -> Choice:
    """One step of sampling: a token drawn for each hypothesis, which stays in its place."""
    choices = choices.view(*rows.shape, -1)  # [N, K, V]
    randoms = uniform(state.seeds, config.seed, state.num_steps, config.nbest)  # [N, K]
    tokens = draw(choices, randoms, config.temperature, config.top_k, config.top_p)
    places = torch.arange(config.nbest, device=choices.device).expand_as(tokens)
    return state.live + choices.gather(2, tokens[:, :, None])[:, :, 0], places, tokens


SEARCHES: dict[str, Callable[[Tensor, Tensor, SearchState, DecodeConfig], Choice]] = {
    "beam": beam,
    "sample": sample,
}
"""How the K hypotheses of each sentence become the next K: from the log-probabilities of all tokens [R, V] (to
overwrite; -inf: forbidden), the row of each [N, K] and the state, to a Choice. Only a beam skips rows."""
