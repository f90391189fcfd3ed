"""Search, against tables whose products a reader can multiply, every sequence there is, and a plain second search."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtattn.decode import SEARCHES, DecodeConfig, search, start
from mtattn.history import Hypothesis
from mtattn.processors import ForcedPrefix

PAD, BOS, EOS, A, B = range(5)
IDS = {"pad_id": PAD, "bos_id": BOS, "eos_id": EOS}
Table = dict[tuple[int, ...], dict[int, float]]  # prefix -> token -> probability


class Scripted:
    """A step that looks the next token's probabilities up in one table a sentence; what a table lacks ends."""

    def __init__(self, tables: list[Table], vocab_size: int = 5) -> None:
        self.tables, self.vocab_size = tables, vocab_size
        self.prefixes: list[list[tuple[int, ...]]] = []
        self.sizes: list[int] = []  # sentences at each call
        self.parents: list[Tensor | None] = []

    def __call__(self, tokens: Tensor, parents: Tensor | None, alive: Tensor | None = None) -> Tensor:
        n, k = tokens.shape
        if not self.prefixes:
            assert parents is None
            assert (tokens == BOS).all()
            self.prefixes = [[()] * k for _ in range(n)]
        else:
            places = torch.arange(k).expand(n, k) if parents is None else parents
            self.prefixes = [
                [(*old[place], token) for place, token in zip(row_places, row_tokens, strict=True)]
                for old, row_places, row_tokens in zip(self.prefixes, places.tolist(), tokens.tolist(), strict=True)
            ]
        self.sizes.append(n)
        self.parents.append(parents)
        rows = [
            [self.logits(table, prefix) for prefix in row]
            for table, row in zip(self.tables, self.prefixes, strict=True)
        ]
        return torch.tensor(rows) if alive is None else torch.tensor(rows)[alive]

    def logits(self, table: Table, prefix: tuple[int, ...]) -> list[float]:
        probs = table.get(prefix, {EOS: 1.0})
        return [math.log(probs[i]) if probs.get(i) else -math.inf for i in range(self.vocab_size)]

    def select(self, sentences: Tensor) -> None:
        self.tables = [self.tables[i] for i in sentences.tolist()]
        self.prefixes = [self.prefixes[i] for i in sentences.tolist()]


class Recurrent:
    """A step over a small random recurrent network, the least model whose next token depends on all before it."""

    def __init__(self, sources: Tensor, vocab_size: int = 30, sharpness: float = 3.0, dtype=torch.float32) -> None:
        g = torch.Generator().manual_seed(1)
        self.embed, self.inner = (torch.randn(m, 16, generator=g) for m in (vocab_size, 16))
        self.source = torch.randn(100, 16, generator=g)[sources]  # [N, D]: sentence i is number sources[i] of 100
        self.out = sharpness * torch.randn(16, vocab_size, generator=g) / 4
        self.state, self.dtype = torch.zeros(len(sources), 1, 16), dtype

    def __call__(self, tokens: Tensor, parents: Tensor | None, alive: Tensor | None = None) -> Tensor:
        state = self.state.expand(*tokens.shape, -1)
        if parents is not None:
            state = state.gather(1, parents[:, :, None].expand_as(state))
        self.state = torch.tanh(state @ self.inner / 3 + self.embed[tokens] + self.source[:, None])
        return ((self.state if alive is None else self.state[alive]) @ self.out).to(self.dtype)

    def select(self, sentences: Tensor) -> None:
        self.state, self.source = self.state[sentences], self.source[sentences]


def run(tables: list[Table], config: DecodeConfig, lens: list[int] | None = None, **kwargs) -> list[list[Hypothesis]]:
    return search(Scripted(tables), torch.tensor(lens or [0] * len(tables)), config, **IDS, **kwargs)


def recurrent(sources: list[int], config: DecodeConfig, **kwargs) -> list[list[Hypothesis]]:
    return search(Recurrent(torch.tensor(sources)), torch.tensor(sources) % 7, config, **IDS, **kwargs)


def same(left: list[list[Hypothesis]], right: list[list[Hypothesis]]) -> None:
    """The same sequences and, but for rounding in the model, the same log-probabilities."""
    assert [[(h.ids, h.finished) for h in hyps] for hyps in left] == [
        [(h.ids, h.finished) for h in hyps] for hyps in right
    ]
    for x, y in zip(itertools.chain(*left), itertools.chain(*right), strict=True):
        assert x.token_log_probs == pytest.approx(y.token_log_probs, abs=1e-5)
        assert x.score == pytest.approx(y.score, abs=1e-5)


# Tables

GARDEN_PATH: Table = {(): {A: 0.6, B: 0.4}, (A,): {EOS: 0.5, A: 0.5}, (B,): {EOS: 0.9, B: 0.1}}


def test_beam_finds_what_greedy_misses():
    greedy = run([GARDEN_PATH], DecodeConfig(beam_size=1, length_penalty=0))[0][0]
    beam = run([GARDEN_PATH], DecodeConfig(beam_size=2, length_penalty=0))[0][0]
    assert (greedy.ids, beam.ids) == ([A], [B])
    assert greedy.log_prob == pytest.approx(math.log(0.6 * 0.5))
    assert beam.log_prob == pytest.approx(math.log(0.4 * 0.9))


def test_every_number_of_a_hypothesis():
    best, second = run([GARDEN_PATH], DecodeConfig(beam_size=4, nbest=2, length_penalty=0.6))[0]
    assert best.ids == [A, A]
    assert best.token_log_probs == pytest.approx([math.log(0.6), math.log(0.5), 0.0])
    assert best.log_prob == pytest.approx(math.log(0.6 * 0.5))
    assert best.score == pytest.approx(math.log(0.3) / 3**0.6)
    assert best.finished
    assert second.ids == [B]  # likelier, 0.4 * 0.9, but shorter
    assert second.score == pytest.approx(math.log(0.36) / 2**0.6)


@pytest.mark.parametrize(("length_penalty", "ids"), [(0, []), (1, [A, B, A])])
def test_length_penalty_prefers_longer_targets(length_penalty, ids):
    # 0.5 at once, or 0.5 * 0.9 ** 3: log 0.5 = -0.69 against -1.01 / 4 = -0.25
    table: Table = {
        (): {EOS: 0.5, A: 0.5},
        (A,): {B: 0.9, EOS: 0.1},
        (A, B): {A: 0.9, EOS: 0.1},
        (A, B, A): {EOS: 0.9, A: 0.1},
    }
    assert run([table], DecodeConfig(beam_size=3, length_penalty=length_penalty))[0][0].ids == ids


def test_goes_on_after_a_first_finished_hypothesis_that_can_be_beaten():
    table: Table = {(): {EOS: 0.4, A: 0.35, B: 0.25}, (A,): {B: 1.0}, (A, B): {EOS: 1.0}}
    best = run([table], DecodeConfig(beam_size=2, length_penalty=1))[0][0]
    assert best.ids == [A, B]  # log 0.35 / 3 = -0.35 against log 0.4 = -0.92
    assert best.score == pytest.approx(math.log(0.35) / 3)


def test_stops_as_soon_as_nothing_can_change():
    table: Table = {(): {EOS: 0.9, A: 0.1}, (A,): {A: 1.0}, (A, A): {A: 1.0}, (A, A, A): {EOS: 1.0}}
    step = Scripted([table])
    search(step, torch.tensor([40]), DecodeConfig(beam_size=2, length_penalty=0), **IDS)
    assert len(step.sizes) == 1  # 0.9 against at most 0.1
    step = Scripted([table])
    search(step, torch.tensor([0]), DecodeConfig(beam_size=2, length_penalty=1.5, nbest=2), **IDS)
    assert len(step.sizes) == 4  # the second best has to be waited for


def test_equal_probabilities_give_the_lower_token():
    table: Table = {(): {A: 0.5, B: 0.5}}
    assert [h.ids for h in run([table], DecodeConfig(beam_size=2, nbest=2))[0]] == [[A], [B]]
    assert run([table], DecodeConfig(beam_size=1))[0][0].ids == [A]


def test_pad_and_bos_are_never_generated_and_log_probs_stay_the_models():
    table: Table = {(): {PAD: 0.5, BOS: 0.3, A: 0.2}, (A,): {PAD: 0.9, EOS: 0.1}}
    for name in SEARCHES:
        hypothesis = run([table], DecodeConfig(search=name))[0][0]
        assert hypothesis.ids == [A]
        assert hypothesis.token_log_probs == pytest.approx([math.log(0.2), math.log(0.1)])


def test_eos_may_be_what_targets_start_from():
    class StartsWithEos(Scripted):
        def __call__(self, tokens, parents, alive=None):
            return super().__call__(torch.full_like(tokens, BOS) if not self.prefixes else tokens, parents, alive)

    ids = {"pad_id": PAD, "bos_id": EOS, "eos_id": EOS}
    assert search(StartsWithEos([GARDEN_PATH]), torch.tensor([0]), DecodeConfig(), **ids)[0][0].finished


def test_each_sentence_has_its_own_max_len():
    endless: Table = {(A,) * n: {A: 1.0} for n in range(50)}
    config = DecodeConfig(max_len_ratio=1.5, max_len_extra=2)
    hypotheses = [hyps[0] for hyps in run([endless] * 3, config, [0, 3, 20])]
    assert [len(h.ids) for h in hypotheses] == [2, 6, 32]
    assert not any(h.finished for h in hypotheses)
    assert all(h.token_log_probs == pytest.approx([0.0] * len(h.ids)) for h in hypotheses)


def test_the_finished_come_before_the_cut():
    table: Table = {(): {A: 0.9, EOS: 0.1}, (A,): {A: 1.0}, (A, A): {A: 1.0}}
    finished, cut = run([table], DecodeConfig(beam_size=2, nbest=2, max_len_extra=2))[0]
    assert (finished.ids, finished.finished) == ([], True)
    assert (cut.ids, cut.finished) == ([A, A], False)
    assert cut.score > finished.score


def test_fewer_hypotheses_than_asked_where_fewer_exist():
    assert [h.ids for h in run([GARDEN_PATH], DecodeConfig(beam_size=50, nbest=50))[0]] == [[A, A], [B], [A], [B, B]]


def test_no_sentences():
    assert search(Scripted([]), torch.tensor([], dtype=torch.int64), DecodeConfig(), **IDS) == []


# Against other ways to search


def every_sequence(table: Table, max_len: int) -> dict[tuple[int, ...], float]:
    """The probability of each sequence: those that end with EOS, and those cut at max_len."""
    found, growing = {}, {(): 1.0}
    for _ in range(max_len):
        grown = {(*p, t): q * table[p][t] for p, q in growing.items() for t in (EOS, A, B)}
        found |= {p: q for p, q in grown.items() if p[-1] == EOS}
        growing = {p: q for p, q in grown.items() if p[-1] != EOS}
    return found | growing


@st.composite
def tables(draw, max_len: int) -> Table:
    prefixes = [p for n in range(max_len) for p in itertools.product((A, B), repeat=n)]
    weights = draw(st.lists(st.tuples(*[st.integers(1, 1000)] * 5), min_size=len(prefixes), max_size=len(prefixes)))
    return {p: {i: w / sum(ws) for i, w in enumerate(ws)} for p, ws in zip(prefixes, weights, strict=True)}


@settings(deadline=None, max_examples=60)
@given(tables(max_len=3), st.sampled_from([0.0, 0.6, 1.0, 1.5]), st.sampled_from([1, 3, 15]))
def test_a_wide_beam_equals_brute_force(table, length_penalty, nbest):
    config = DecodeConfig(beam_size=15, nbest=nbest, length_penalty=length_penalty, max_len_extra=3)
    found = run([table], config)[0]
    scores = {p: math.log(q) / len(p) ** length_penalty for p, q in every_sequence(table, 3).items()}
    ranked = sorted(scores, key=lambda p: (p[-1] != EOS, -scores[p]))
    assert [h.score for h in found] == pytest.approx([scores[p] for p in ranked[:nbest]], abs=1e-5)
    for h in found:  # by its own tokens too: neighbours in the ranking may be equal but for rounding
        assert h.score == pytest.approx(scores[(*h.ids, EOS) if h.finished else tuple(h.ids)], abs=1e-5)


def log_softmax_after(source: int, prefix: list[int]) -> Tensor:
    """What the recurrent model says after a prefix, read afresh from its start: [V]."""
    step = Recurrent(torch.tensor([source]))
    for token in [BOS, *prefix]:
        logits = step(torch.tensor([[token]]), None)
    return logits[0, 0].log_softmax(-1)


def plain_greedy(source: int, max_len: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < max_len:
        log_probs = log_softmax_after(source, ids)
        log_probs[[PAD, BOS]] = -math.inf
        token = int(log_probs.argmax())
        if token == EOS:
            break
        ids.append(token)
    return ids


def plain_beam(source: int, max_len: int, beam_size: int, length_penalty: float) -> list[tuple[list[int], float]]:
    """Beam search without a batch, without early stopping, with lists and a sort."""
    live, finished = [([], 0.0)], []
    for _ in range(max_len):
        ways = [
            ([*ids, token], total + log_prob)
            for ids, total in live
            for token, log_prob in enumerate(log_softmax_after(source, ids).tolist())
            if token not in (PAD, BOS)
        ]
        ways = sorted(ways, key=lambda way: -way[1])[: beam_size - len(finished)]
        finished += [way for way in ways if way[0][-1] == EOS]
        live = [way for way in ways if way[0][-1] != EOS]
    by_score = lambda way: -way[1] / len(way[0]) ** length_penalty  # noqa: E731
    return sorted(finished, key=by_score) + sorted(live, key=by_score)


def test_beam_1_equals_plain_greedy():
    sources = list(range(40))
    found = recurrent(sources, DecodeConfig(beam_size=1, max_len_extra=12))
    assert [hyps[0].ids for hyps in found] == [plain_greedy(i, 2 * (i % 7) + 12) for i in sources]
    assert 0 < sum(hyps[0].finished for hyps in found) < 40  # both ends occur


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 1.5])
@pytest.mark.parametrize("nbest", [1, 4])
def test_beam_equals_plain_beam(length_penalty, nbest):
    config = DecodeConfig(beam_size=4, nbest=nbest, length_penalty=length_penalty, max_len_extra=6, max_len_ratio=0.5)
    for source, hyps in enumerate(recurrent(list(range(12)), config)):
        expected = plain_beam(source, int(0.5 * (source % 7)) + 6, 4, length_penalty)[:nbest]
        assert [h.ids + [EOS] * h.finished for h in hyps] == [ids for ids, _ in expected]
        assert [h.log_prob for h in hyps] == pytest.approx([total for _, total in expected], abs=1e-4)


@pytest.mark.parametrize("name", SEARCHES)
def test_log_probs_are_the_log_softmax_of_what_the_step_returned(name):
    for source, hyps in enumerate(recurrent(list(range(10)), DecodeConfig(search=name, nbest=3))):
        for h in hyps:
            ids = h.ids + [EOS] * h.finished
            expected = [float(log_softmax_after(source, ids[:t])[token]) for t, token in enumerate(ids)]
            assert h.token_log_probs == pytest.approx(expected, abs=1e-4)
            assert h.log_prob == pytest.approx(sum(h.token_log_probs), abs=1e-4)
            assert h.score == pytest.approx(h.log_prob / len(ids), abs=1e-4)


# Alone and in company


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("size", [1, 4])
def test_neighbours_batch_and_order_change_nothing(name, size):
    config = DecodeConfig(search=name, beam_size=size, nbest=size, no_repeat_ngram_size=2)
    together = recurrent(list(range(30)), config)
    alone = [recurrent([i], config, seeds=[i])[0] for i in range(30)]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = recurrent(order, config, seeds=order)
    same(together, alone)
    same([together[i] for i in order], shuffled)


@settings(deadline=None, max_examples=40)
@given(st.lists(tables(max_len=4), min_size=1, max_size=6), st.integers(1, 4), st.randoms(use_true_random=False))
def test_scripted_sentences_are_bit_for_bit_the_same_alone(batch, beam_size, random):
    config = DecodeConfig(beam_size=beam_size, nbest=beam_size, max_len_extra=2, max_len_ratio=1)
    lens = [random.randrange(3) for _ in batch]
    assert run(batch, config, lens) == [run([t], config, [n])[0] for t, n in zip(batch, lens, strict=True)]


def test_finished_sentences_leave_the_batch():
    long: Table = {(A,) * n: {A: 1.0} for n in range(10)}
    step = Scripted([{}, long, {}, long])
    found = search(step, torch.zeros(4, dtype=torch.int64), DecodeConfig(max_len_extra=20), **IDS)
    assert step.sizes == [4] + [2] * 10
    assert [len(hyps[0].ids) for hyps in found] == [0, 10, 0, 10]


def test_only_hypotheses_that_are_alive_are_computed():
    table: Table = {
        (): {A: 0.4, B: 0.35, EOS: 0.25},
        (A,): {A: 0.6, B: 0.4},
        (B,): {A: 0.9, B: 0.1},
        **{(*p, A): {A: 1.0} for p in itertools.product((A, B), repeat=1)},
    }
    seen = []

    class Watched(Scripted):
        def __call__(self, tokens, parents, alive=None):
            seen.append(None if alive is None else alive.sum(1).tolist())
            return super().__call__(tokens, parents, alive)

    config = DecodeConfig(beam_size=3, length_penalty=0, nbest=3, max_len_extra=3)
    found = search(Watched([table, {(): {A: 0.5, B: 0.5}}]), torch.zeros(2, dtype=torch.int64), config, **IDS)
    assert seen[0] == [1, 1]  # all begin alike
    assert seen[1] == [2, 2]  # one of the first sentence's has ended; the second never had three
    assert found[0][0].ids == []
    config = DecodeConfig(beam_size=3, min_len=1, max_len_extra=3)  # what is forbidden is asked of all places
    seen.clear()
    search(Watched([table]), torch.tensor([0]), config, **IDS)
    assert set(seen) == {None}


def test_greedy_and_sampling_move_no_hypothesis():
    for config in (DecodeConfig(beam_size=1), DecodeConfig(search="sample", nbest=4)):
        step = Scripted([GARDEN_PATH])
        search(step, torch.tensor([5]), config, **IDS)
        assert step.parents == [None] * len(step.parents)


def test_bfloat16_logits():
    config = DecodeConfig(nbest=2)
    step = Recurrent(torch.arange(8), dtype=torch.bfloat16)
    for hyps in search(step, torch.full((8,), 3), config, **IDS):
        assert len(hyps) == 2
        assert all(h.log_prob < 0 for h in hyps)


# Options


def test_min_len_and_no_repeat_ngram_size():
    repeats: Table = {p: {EOS: 0.5, A: 0.3, B: 0.2} for n in range(4) for p in itertools.product((A, B), repeat=n)}
    best = run([repeats], DecodeConfig(beam_size=1, min_len=3, no_repeat_ngram_size=1))[0][0]
    # A, then B since A was there; then EOS, forbidden before three tokens but nothing else is left
    assert best.ids == [A, B]
    assert best.log_prob == pytest.approx(math.log(0.3 * 0.2 * 0.5))
    assert run([repeats], DecodeConfig(beam_size=1, min_len=3))[0][0].ids == [A, A, A]


def test_the_least_length_goes_with_the_source():
    eager: Table = {p: {EOS: 0.9, A: 0.1} for n in range(9) for p in itertools.product((A,), repeat=n)}
    config = DecodeConfig(beam_size=1, min_len=2, min_len_ratio=0.5)
    found = run([eager] * 3, config, lens=[1, 7, 0])
    assert [len(hyps[0].ids) for hyps in found] == [2, 3, 2]


def test_processors_of_the_caller_apply_too():
    assert run([GARDEN_PATH], DecodeConfig(beam_size=1), processors=[ForcedPrefix([[B]])])[0][0].ids == [B]


def test_limits_are_those_of_double_precision():
    config = DecodeConfig(max_len_ratio=1.15)  # in single precision, 100 * 1.15 is 115
    assert start(torch.tensor([100, 0, 7]), config, range(3)).max_len.tolist() == [124, 10, 18]
    assert config.max_len(100) == 124


def test_diversity_sets_siblings_back():
    table: Table = {
        (): {A: 0.7, B: 0.3},
        (A,): {A: 0.5, B: 0.5},
        (B,): {A: 0.9, B: 0.1},
    }
    near, far = (run([table], DecodeConfig(beam_size=2, nbest=2, length_penalty=0, diversity=d))[0] for d in (0.0, 2.0))
    assert [h.ids for h in near] == [[A, A], [A, B]]  # 0.35 and 0.35
    assert [h.ids for h in far] == [[A, A], [B, A]]  # A B is worth 0.35 * exp(-2) against 0.27
    assert [h.log_prob for h in far] == pytest.approx([math.log(0.35), math.log(0.27)])  # no penalty in it


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("search", "breadth"),
        ("beam_size", 0),
        ("nbest", 0),
        ("nbest", 6),
        ("quantization", "int4"),
        ("length_penalty", -0.1),
        ("length_penalty", math.nan),
        ("max_len_ratio", -1.0),
        ("max_len_ratio", 1e9),
        ("max_len_extra", 0),
        ("max_len_extra", 10**20),
        ("min_len", -1),
        ("min_len_ratio", -0.1),
        ("min_len_ratio", 2.1),
        ("no_repeat_ngram_size", -1),
        ("diversity", -1.0),
        ("diversity", 1e39),
        ("temperature", 1e-4),
        ("temperature", 1e39),
        ("length_penalty", 20.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("seed", 2**63),
    ],
)
def test_an_impossible_option_is_named_with_its_value(option, value):
    with pytest.raises(ValueError, match=f"^{option} = .*it must be"):
        DecodeConfig(**{option: value})


def test_more_samples_than_a_beam_may_be_drawn():
    assert len(run([GARDEN_PATH], DecodeConfig(search="sample", nbest=9))[0]) == 9


def test_wrong_logits_are_refused():
    class Broken(Recurrent):
        def __call__(self, tokens, parents, alive=None):
            return super().__call__(tokens, parents, alive).mul_(math.nan)

    class Short(Recurrent):
        def __call__(self, tokens, parents, alive=None):
            return super().__call__(tokens, parents, alive)[:1]

    for model, message in ((Broken, "NaN"), (Short, r"expected \[2, 'V'\]")):
        with pytest.raises(ValueError, match=message):
            search(model(torch.arange(2)), torch.tensor([1, 1]), DecodeConfig(), **IDS)
    with pytest.raises(ValueError, match="1 seeds for 2 sentences"):
        run([GARDEN_PATH] * 2, DecodeConfig(search="sample"), seeds=[1])
