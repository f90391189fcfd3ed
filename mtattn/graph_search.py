"""Greedy and beam search for a GPU: each step, the model's and the search's, is one launch of a CUDA graph.

`mtattn.decode.search` launches a few hundred kernels a step, one by one, and the GPU waits for them. Here a step works
in a `Room`, whose tensors have a place and a size that stay, so that it can be recorded once and replayed. The outcome
is the same, except that of equals another may win.

A room for every size that a search might need would be too many to record. There are rooms for 32, 64, 128, ...
sentences, 16, 32, 64, ... steps and as many source positions; a search moves to a larger one when its targets grow
and to a smaller one when sentences are done. Rooms are kept: a trainer's next validation finds them recorded. A
recording reads the weights at their addresses, so it sees what was learnt since.

Legend: N sentences that there is room for, M that are searched, K hypotheses of each, T steps, S source positions.
"""

import math
import threading
import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mtattn.beam import top_continuations
from mtattn.decode import SYNC_EVERY, DecodeConfig, SearchState, end_step, start, where_free
from mtattn.graph import Recorded, shared_pool
from mtattn.history import NEVER, History, Hypothesis, nbest_lists
from mtattn.model import Transformer, decoder_layers, evaluating
from mtattn.slots import Slots, next_logits, supports

SENTENCES, STEPS, SOURCE = 32, 16, 16  # the smallest room; others are larger by powers of two
SHARE = 1 / 8  # of a GPU's memory that rooms may keep
MOST_SENTENCES, MOST_POSITIONS = 1024, 2**18  # that are worth while: more do not make it faster

_searches: "weakref.WeakKeyDictionary[Transformer, GraphSearch]" = weakref.WeakKeyDictionary()


def can_record(model: Transformer, config: DecodeConfig) -> bool:
    """Whether `GraphSearch` knows this kind of model and of search."""
    forbids = config.min_len or config.min_len_ratio or config.no_repeat_ngram_size
    return config.search == "beam" and not (config.diversity or forbids) and supports(model)


def graph_search(model: Transformer) -> "GraphSearch":
    """The model's own, which lives as long as the model does."""
    if model not in _searches:
        _searches[model] = GraphSearch(model)
    return _searches[model]


def num_sentences(model: Transformer, longest: int, width: int) -> int:
    """How many sentences to search together, with sources of up to so many pieces and so many hypotheses of each.

    A power of two, as rooms are. Keys and values are most of a room, and most targets are at most twice as long as
    their sources; the few that are longer go on in a room of more steps, but fewer sentences.
    """
    attn, weight = next(decoder_layers(model)).self_attn, model.out_embed.weight
    # bytes of a source position and hypothesis
    position = 2 * weight.element_size() * attn.num_kv_heads * attn.d_head * len(model.decoder)
    positions = min(MOST_POSITIONS, _most_bytes(weight.device) / (2 * position))
    count = min(MOST_SENTENCES, max(1, int(positions / (longest * width))))
    return 1 << (count.bit_length() - 1)


class Room:
    """A search of N sentences in tensors that stay where they are: `mtattn.decode.SearchState`, and the model's memory.

    Args:
        model: whose steps it takes.
        config: how to search.
        sentences, steps, source: N, T, S.
        ids: (BOS, EOS, PAD).

    Attributes:
        tokens, parents: [N, K] int64, the last step's choice.
        live, finished: [N, K] float32, as in SearchState.
        max_len: [N] int64; 0 where no sentence is.
        done: [N] bool.
        latest: tokens, parents and log_probs of the last SYNC_EVERY steps, [SYNC_EVERY, N, K] each.
    """

    def __init__(
        self,
        model: Transformer,
        config: DecodeConfig,
        sentences: int,
        steps: int,
        source: int,
        ids: tuple[int, int, int],
    ) -> None:
        self.config, self.sentences, self.steps = config, sentences, steps
        self.bos_id, self.eos_id, pad_id = ids
        self._model = weakref.ref(model)  # what lives as long as the model does must not keep it alive
        device, grid = model.out_embed.weight.device, (sentences, config.width)
        zeros = partial(torch.zeros, device=device)
        self.slots = Slots(model, sentences, config.width, steps, source)
        self.tokens, self.parents = (zeros(grid, dtype=torch.int64) for _ in range(2))
        self.live, self.finished = (zeros(grid) for _ in range(2))
        self.max_len, self.done = zeros(sentences, dtype=torch.int64), zeros(sentences, dtype=torch.bool)
        self.latest = [zeros(SYNC_EVERY, *grid, dtype=kind) for kind in (torch.int64, torch.int64, torch.float32)]
        self._never = torch.tensor(sorted({pad_id, self.bos_id} - {self.eos_id}), device=device)

    def begin(self, src: Tensor, max_len: Tensor, live: Tensor) -> None:
        """Encode sources [M, <= S] and stand before the first step; max_len [M], live [M, K]."""
        self._clear()
        self.slots.fill(self.model, src)
        self.max_len[: len(src)], self.live[: len(src)] = max_len, live

    def take_over(self, other: "Room", rows: Tensor) -> None:
        """Go on where another room, with no more steps and source positions than this, stands: with these rows [M]."""
        self._clear()
        self.slots.step.copy_(other.slots.step)
        for mine, theirs in zip(self._by_sentence(), other._by_sentence(), strict=True):
            region = tuple(slice(size) for size in (len(rows), *theirs.shape[1:]))
            mine[region] = theirs.index_select(0, rows)

    @property
    def model(self) -> Transformer:
        """The model, which is there as long as someone searches with it."""
        model = self._model()
        assert model is not None
        return model

    @property
    def num_bytes(self) -> int:
        """Memory of its large tensors."""
        return sum(tensor.nbytes for tensor in self.slots.by_sentence())

    def step(self) -> None:
        """One step of `mtattn.decode.search` with a beam, where the reasons are. Nothing here waits for the GPU."""
        k = self.config.beam_size
        logits = next_logits(self.model, self.slots, self.tokens, self.parents)  # [N K, V]
        choices = logits.log_softmax(-1, dtype=torch.float32).index_fill_(1, self._never, NEVER)  # [N K, V]
        log_probs, parents, tokens = top_continuations(choices.view(-1, k, choices.size(1)), self.live)  # [N, K] each
        log_probs = where_free(log_probs, self.finished)  # [N, K]
        row = self.slots.step % SYNC_EVERY
        for kept, new in zip(self.latest, (tokens, parents, log_probs), strict=True):
            kept.index_copy_(0, row, new[None])

        self.slots.step.add_(1)
        live, finished, done = end_step(
            log_probs, tokens, self.finished, self.max_len, self.slots.step, self.config, self.eos_id
        )
        kept_state = (self.tokens, self.parents, self.live, self.finished, self.done)
        for kept, new in zip(kept_state, (tokens, parents, live, finished, done), strict=True):
            kept.copy_(new)

    def _clear(self) -> None:
        self.slots.clear()
        self.tokens.fill_(self.bos_id)
        self.parents.zero_()
        self.live.fill_(NEVER)
        self.finished.fill_(NEVER)
        self.max_len.zero_()

    def _by_sentence(self) -> list[Tensor]:
        return [self.tokens, self.parents, self.live, self.finished, self.max_len, *self.slots.by_sentence()]


class GraphSearch:
    """Searches with one model, in rooms that are kept for the next time. One thread at a time; others wait.

    Args:
        model: one that `mtattn.slots.supports`. Its weights may change in place; if they move, all is recorded anew.
    """

    def __init__(self, model: Transformer) -> None:
        self._model, self._lock = weakref.ref(model), threading.Lock()
        self._addresses: list[int] = []
        self._rooms: dict[tuple[object, ...], tuple[Room, Recorded[None]]] = {}
        self._pool: object = None

    def __call__(
        self, src: Tensor, src_lens: Tensor, config: DecodeConfig, *, bos_id: int, eos_id: int, pad_id: int
    ) -> list[list[Hypothesis]]:
        """What `mtattn.decode.search` returns for these sources.

        Args:
            src: [M, S] int64, where the model is. src_lens: [M], on the CPU.
        """
        model = self._model()
        assert model is not None
        if not len(src):
            return []
        with self._lock, evaluating(model):
            addresses = [parameter.data_ptr() for parameter in model.parameters()]
            if addresses != self._addresses:  # what was recorded reads the old ones
                self._forget()
                self._addresses = addresses
            before = start(src_lens, config, range(len(src)))
            room = partial(self._room, model, config, (bos_id, eos_id, pad_id), src.size(1))
            found = _search(room, src, before)
            return nbest_lists(found, before.max_len, eos_id, nbest=config.nbest, length_penalty=config.length_penalty)

    def _room(
        self,
        model: Transformer,
        config: DecodeConfig,
        ids: tuple[int, int, int],
        source: int,
        sentences: int,
        step: int,
    ) -> tuple[Room, Recorded[None]]:
        """The smallest room for these numbers, and its step."""
        sizes = _at_least(sentences, SENTENCES), _at_least(step, STEPS), _at_least(source, SOURCE)
        key = (config, ids, *sizes)
        if key not in self._rooms:
            room, device = Room(model, config, *sizes, ids), model.out_embed.weight.device
            if room.num_bytes + sum(kept.num_bytes for kept, _ in self._rooms.values()) > _most_bytes(device):
                self._forget()
            self._pool = self._pool or shared_pool(device)
            self._rooms[key] = room, Recorded(room.step, device, self._pool)
        return self._rooms[key]

    def _forget(self) -> None:
        self._rooms, self._pool = {}, None


def _search(room_for: Callable[[int, int], tuple[Room, Recorded[None]]], src: Tensor, before: SearchState) -> History:
    """Search sources [M, S] from their state before the first step."""
    count, device = len(src), src.device
    history = History(count, before.live.size(1), _round_up(int(before.max_len.max()), SYNC_EVERY), device)
    room, step = room_for(count, SYNC_EVERY)
    room.begin(src, before.max_len.to(device), before.live.to(device))
    sentences = torch.arange(count, device=device)  # which one each row of the room is
    while True:
        for _ in range(SYNC_EVERY):
            step()
        history.add(sentences, *(steps[:, : len(sentences)].permute(1, 2, 0) for steps in room.latest))
        staying = (~room.done[: len(sentences)]).nonzero()[:, 0]  # the host waits
        if not len(staying):
            return history
        old, (room, step) = room, room_for(len(staying), history.length + SYNC_EVERY)
        if room is not old:
            room.take_over(old, staying)
            sentences = sentences[staying]


def _at_least(number: int, smallest: int) -> int:
    """The least of smallest, 2 smallest, 4 smallest, ... that is not below the number."""
    while smallest < number:
        smallest *= 2
    return smallest


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _most_bytes(device: torch.device) -> float:
    return SHARE * torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else math.inf
