"""Search in rooms of fixed size finds what `mtattn.decode.search` finds with the model itself, in few shapes."""

import copy
import gc

import pytest
import torch

from mtattn import graph_search
from mtattn.decode import DecodeConfig, search
from mtattn.graph_search import GraphSearch, can_record
from mtattn.history import Hypothesis
from mtattn.model import PositionConfig, Transformer

V, PAD, BOS, EOS = 71, 0, 1, 2  # more than one block of columns
IDS = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}
KINDS = {
    "default": {},
    "no qk_norm": {"qk_norm": False},
    "layernorm, post, bias": {"norm": "layernorm", "norm_position": "post", "bias": True, "qk_norm": False},
    "swiglu": {"activation": "swiglu", "bias": True},
    "multi-query": {"num_kv_heads": 1},
    "grouped": {"num_kv_heads": 2},
    "symmetric": {"score": "symmetric"},
    "untied": {"tied_embeddings": False},
    **{kind: {"position": PositionConfig(kind)} for kind in ("none", "sinusoidal")},
    "ntk": {"position": PositionConfig("rotary", scaling="ntk", factor=2.0)},
}


@pytest.fixture(autouse=True)
def small_rooms(monkeypatch):
    for name, size in (("SENTENCES", 2), ("STEPS", 8), ("SOURCE", 4)):
        monkeypatch.setattr(graph_search, name, size)


def sources(*lens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random source ids of these lengths, EOS included, and the lengths."""
    g = torch.Generator().manual_seed(seed)
    src = torch.full((len(lens), max(lens)), PAD)
    for row, size in zip(src, lens, strict=True):
        row[:size] = torch.tensor([*torch.randint(3, V, (size - 1,), generator=g).tolist(), EOS])
    return src, torch.tensor(lens)


def same(ours: list[list[Hypothesis]], theirs: list[list[Hypothesis]]) -> None:
    """The same sequences and, but for rounding, the same numbers."""
    assert [[(h.ids, h.finished) for h in hyps] for hyps in ours] == [
        [(h.ids, h.finished) for h in hyps] for hyps in theirs
    ]
    for a, b in zip((h for hyps in ours for h in hyps), (h for hyps in theirs for h in hyps), strict=True):
        assert a.token_log_probs == pytest.approx(b.token_log_probs, abs=1e-4)
        assert (a.log_prob, a.score) == pytest.approx((b.log_prob, b.score), abs=1e-4)


def ending(model: Transformer, share: float = 3.0) -> Transformer:
    """A model that likes to end, as trained ones do and random ones do not, each sentence after a while of its own."""
    with torch.no_grad():
        model.out_embed.weight[EOS] *= share
    return model


def compare(model: Transformer, config: DecodeConfig, *lens: int, ours: GraphSearch | None = None) -> list[int]:
    """Assert that both searches agree; returns the lengths of the best hypotheses."""
    src, src_lens = sources(*lens)
    found = (ours or GraphSearch(model))(src, src_lens, config, **IDS)
    same(found, search(model.start(src), src_lens, config, **IDS))
    return [len(hyps[0].ids) for hyps in found]


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_finds_what_a_search_step_by_step_finds(make_model, kind, beam_size):
    model = ending(make_model(V, seed=1, **KINDS[kind]))
    assert can_record(model, DecodeConfig())
    compare(model, DecodeConfig(beam_size=beam_size, nbest=beam_size), 5, 3, 9, 1, 6)


@pytest.mark.parametrize(
    "config",
    [
        DecodeConfig(beam_size=2, nbest=2, length_penalty=0.0),
        DecodeConfig(beam_size=5, nbest=3, length_penalty=0.6),
        DecodeConfig(beam_size=5, nbest=1, length_penalty=2.0),
        DecodeConfig(beam_size=5, nbest=5, max_len_ratio=0.0, max_len_extra=1),
        DecodeConfig(beam_size=1, max_len_ratio=3.0, max_len_extra=20),
        DecodeConfig(beam_size=4, nbest=4, max_len_ratio=0.5, max_len_extra=3),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [1, 4, 5])
def test_limits_penalties_and_lists(make_model, config, seed):
    compare(ending(make_model(V, seed=seed)), config, 12, 3, 9, 1, 6, 2, 30)


def test_sentences_end_early_and_rooms_shrink_and_grow(make_model, monkeypatch):
    model, used = ending(make_model(V, seed=1)), []
    monkeypatch.setattr(
        graph_search.Room,
        "take_over",
        lambda self, old, rows, move=graph_search.Room.take_over: (
            used.append((old.sentences, old.steps, self.sentences, self.steps)),
            move(self, old, rows),
        ),
    )
    lens = compare(model, DecodeConfig(beam_size=3, max_len_ratio=4.0), *range(1, 24))
    assert min(lens) < 10 < 40 < max(lens)
    assert any(after < before for before, _, after, _ in used)
    assert any(after > before for _, before, _, after in used)


def test_rooms_are_kept_and_read_the_weights_of_today(make_model):
    model, config = ending(make_model(V)), DecodeConfig(beam_size=2)
    ours = GraphSearch(model)
    first = compare(model, config, 5, 3, 9, ours=ours)
    rooms = dict(ours._rooms)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 4)
    assert compare(model, config, 5, 3, 9, ours=ours) != first
    assert {key: rooms[key] for key in rooms} == {key: ours._rooms[key] for key in rooms}
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    compare(model, config, 5, 3, 9, ours=ours)
    assert not {id(room) for room, _ in rooms.values()} & {id(room) for room, _ in ours._rooms.values()}


def test_what_a_room_held_before_does_not_matter(make_model):
    model, config = ending(make_model(V)), DecodeConfig(beam_size=2)
    ours, weights = GraphSearch(model), model.out_embed.weight.clone()
    with torch.no_grad():
        model.out_embed.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="no hypothesis"):
        ours(*sources(9, 4), config, **IDS)
    with torch.no_grad():
        model.out_embed.weight.copy_(weights)
    compare(model, config, 3, 7, ours=ours)


def test_neighbours_do_not_matter(make_model):
    model, config = ending(make_model(V)), DecodeConfig(beam_size=4, nbest=2)
    src, lens = sources(9, 4, 7, 2, 5)
    ours = GraphSearch(model)
    together = ours(src, lens, config, **IDS)
    for i in range(len(src)):
        same(ours(src[i : i + 1, : lens[i]], lens[i : i + 1], config, **IDS), together[i : i + 1])


def test_memory_is_bounded(make_model, monkeypatch):
    model = ending(make_model(V))
    ours = GraphSearch(model)
    monkeypatch.setattr(graph_search, "_most_bytes", lambda device: 0)
    for beam_size in (1, 2, 3):
        compare(model, DecodeConfig(beam_size=beam_size), 9, 4, 7, ours=ours)
        assert len(ours._rooms) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_scores_are_the_float32_models_to_its_precision(make_model, kind):
    model = ending(make_model(V, seed=1, **KINDS[kind]))
    src, lens = sources(5, 3, 9, 1, 6)
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    assert can_record(rounded, DecodeConfig())
    for row, hypotheses in zip(src, GraphSearch(rounded)(src, lens, DecodeConfig(beam_size=4), **IDS), strict=True):
        tgt = torch.tensor([BOS, *hypotheses[0].ids, EOS])
        logits = model(row[row != PAD][None], tgt[None, :-1])[0]  # [t, V]
        expected = logits.log_softmax(-1).gather(1, tgt[1:, None])[:, 0]  # [t]
        found = torch.tensor(hypotheses[0].token_log_probs)
        torch.testing.assert_close(found, expected[: len(found)], atol=0.15, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_works_without_looking_at_a_value(make_model, kind, dtype):
    # A device whose tensors have no values, and mix with no others.
    model = make_model(V, **KINDS[kind]).to("meta", dtype)
    with torch.inference_mode():
        graph_search.Room(model, DecodeConfig(beam_size=4), 8, 16, 16, (BOS, EOS, PAD)).step()


def test_a_search_dies_with_its_model(make_model):
    model = make_model(V)
    assert graph_search.graph_search(model) is graph_search.graph_search(model)
    graph_search.graph_search(model)(*sources(4, 2), DecodeConfig(beam_size=1, max_len_extra=2), **IDS)
    before = len(graph_search._searches)
    del model
    gc.collect()
    assert len(graph_search._searches) == before - 1


def test_a_batch_is_a_power_of_two_that_fits_into_memory(make_model, monkeypatch):
    model = make_model(V)
    assert graph_search.num_sentences(model, 10, 5) == graph_search.MOST_SENTENCES
    assert graph_search.num_sentences(model, 200, 5) == 256
    monkeypatch.setattr(graph_search, "_most_bytes", lambda device: 2**20)  # 2 layers of 128 bytes a position, twice
    assert graph_search.num_sentences(model, 200, 5) == 2
    assert graph_search.num_sentences(model, 10_000, 5) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("beam_size", [1, 5])
@pytest.mark.parametrize("seed", [1, 4, 5])
def test_on_a_gpu_recorded_steps_find_the_same(make_model, seed, beam_size):
    model = ending(make_model(V, seed=seed))
    (src, lens), config = sources(*range(1, 40)), DecodeConfig(beam_size=beam_size, nbest=beam_size)
    expected = search(model.start(src), lens, config, **IDS)
    model.cuda()
    ours = GraphSearch(model)
    for _ in range(3):  # as it is, recorded, replayed
        same(ours(src.cuda(), lens, config, **IDS), expected)


def test_says_what_it_cannot_do(make_model):
    model = make_model(V)
    for config in (
        DecodeConfig(search="sample"),
        DecodeConfig(diversity=0.5),
        DecodeConfig(min_len=2),
        DecodeConfig(no_repeat_ngram_size=3),
    ):
        assert not can_record(model, config)
    for options in (
        {"score": "additive"},
        {"score": "cosine"},
        *({"position": PositionConfig(k)} for k in ("learned", "t5")),
    ):
        assert not can_record(make_model(V, **options), DecodeConfig())
    assert not can_record(make_model(V).double(), DecodeConfig())
    assert GraphSearch(model)(torch.zeros(0, 1).long(), torch.zeros(0), DecodeConfig(), **IDS) == []
