"""An ensemble is the mean of its members' probabilities, whatever is searched with it."""

import pytest
import torch

from mtattn.batch import pad
from mtattn.decode import DecodeConfig, search
from mtattn.ensemble import Ensemble

SPECIAL = {"bos_id": 1, "eos_id": 2, "pad_id": 0}
SOURCES = [[5, 6, 7, 8, 9, 2], [4, 2], [9, 3, 12, 2], [7] * 9 + [2]]
SRC, LENS = pad(SOURCES, 0), torch.tensor([len(ids) for ids in SOURCES])


@pytest.fixture
def models(make_model):
    return [make_model(seed=0), make_model(seed=1, d_model=24, decoder_layers=1), make_model(seed=2)]


def found(models, config, rows=slice(None)):
    with torch.inference_mode():
        return search(Ensemble([model.start(SRC[rows]) for model in models]), LENS[rows], config, **SPECIAL)


@pytest.mark.parametrize("options", [{"beam_size": 1}, {"beam_size": 4, "nbest": 4}, {"search": "sample", "nbest": 3}])
def test_log_probs_are_those_of_the_mean_distribution(models, options):
    for src, hypotheses in zip(SOURCES, found(models, DecodeConfig(max_len_ratio=1, **options)), strict=True):
        for hypothesis in hypotheses:
            ids = [*hypothesis.ids, 2] if hypothesis.finished else hypothesis.ids
            tgt_in = torch.tensor([[1, *ids[:-1]]])
            with torch.inference_mode():
                probs = torch.stack([model(torch.tensor([src]), tgt_in)[0].double().softmax(-1) for model in models])
            expected = probs.mean(0)[torch.arange(len(ids)), ids].log()
            torch.testing.assert_close(torch.tensor(hypothesis.token_log_probs).double(), expected, atol=2e-5, rtol=0)


def test_it_is_not_one_of_its_members(models):
    config = DecodeConfig(beam_size=3)
    together = [h[0].ids for h in found(models, config)]
    assert all(together != [h[0].ids for h in found([model], config)] for model in models)


def test_a_model_with_itself_is_the_model(models):
    config = DecodeConfig(beam_size=3)
    alone, twice = found(models[:1], config), found(models[:1] * 2, config)
    assert [h[0].ids for h in alone] == [h[0].ids for h in twice]
    assert [h[0].score for h in alone] == pytest.approx([h[0].score for h in twice], abs=1e-5)


def test_the_order_of_members_and_the_neighbours_do_not_matter(models):
    config = DecodeConfig(beam_size=3, max_len_ratio=1, max_len_extra=3)  # they leave the batch at different steps
    together, turned = found(models, config), found(models[::-1], config)
    alone = [found(models, config, slice(i, i + 1))[0] for i in range(len(SOURCES))]
    assert [h[0].ids for h in together] == [h[0].ids for h in alone] == [h[0].ids for h in turned]
