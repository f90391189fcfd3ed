"""Modules without values: nothing random is drawn, everything else is as ever."""

import torch
from torch import nn

from mtattn.model import ModelConfig, PositionConfig, Transformer
from mtattn.unfilled import Unfilled


def test_nothing_is_drawn():
    before = torch.get_rng_state()
    with Unfilled():
        for position in ("rotary", "learned", "t5", "sinusoidal"):
            Transformer(ModelConfig(position=PositionConfig(position), norm_position="post"), 50, 50)
        nn.Embedding(3, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_names_shapes_and_what_is_no_weight_are_as_ever(make_model):
    for kind in ("rotary", "learned", "t5", "sinusoidal", "alibi"):
        model = make_model(23, position=PositionConfig(kind))
        with Unfilled():
            copy = Transformer(model.config, 23, 23)
        copy.load_state_dict(model.state_dict())
        src, tgt = torch.arange(4, 10)[None], torch.arange(5, 9)[None]
        assert torch.equal(copy.eval()(src, tgt), model(src, tgt))


def test_drawing_goes_on_afterwards():
    with Unfilled():
        pass
    assert nn.Linear(64, 64).weight.std() > 0
