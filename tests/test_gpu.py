"""On a GPU a step is two recordings over packed pairs; what is learnt, and that a run can go on, must not change."""

from pathlib import Path

import pytest
import torch
from tiny_run import Notes, losses, outcome, signal_at, tiny_config

from mtattn.checkpoint import RunDirectory
from mtattn.config import Config
from mtattn.interrupts import Interrupted
from mtattn.train import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
STILL = ("model.dropout=0.0", "model.inner_dropout=1e-9")  # rates that drop nothing, as far as a test can see
VARIANTS = {
    "packed": ["train.packing=true"],
    "padded": ["train.packing=false"],
    "packed, R-Drop": ["train.packing=true", "loss.rdrop=1.0"],
}


def train_on(device: str, config: Config, path: Path) -> None:
    train(config, RunDirectory(path), Notes(), device=torch.device(device))


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
def test_losses_are_those_of_a_cpu(overrides: list[str], corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus, "train.log_every=1", *STILL, *overrides)
    for device in ("cpu", "cuda"):
        train_on(device, config, tmp_path / device)
    expected = losses(tmp_path / "cpu")
    assert len(expected) > 8
    assert losses(tmp_path / "cuda") == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
def test_interrupted_and_resumed_equals_uninterrupted(
    overrides: list[str], precision: str, corpus: Path, tmp_path: Path
) -> None:
    config = tiny_config(corpus, *overrides, f"train.precision={precision}")
    train_on("cuda", config, tmp_path / "whole")
    for step in (3, 4):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            signal_at(step, patch)
            train_on("cuda", config, tmp_path / "parts")
    train_on("cuda", config, tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
