"""batch_tokens = "auto": what it becomes, and that a run then has a plain number."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_run import Notes, tiny_config, train_tiny, write_corpus

from mtattn.budget import (
    LEAST,
    MOST,
    choose_batch_tokens,
    choose_packing,
    largest_that_fits,
    unrecordable,
    wanted_batch_tokens,
)
from mtattn.checkpoint import RunDirectory
from mtattn.config import load_config
from mtattn.mixing import Mixture


@pytest.mark.parametrize(
    ("epoch_tokens", "expected"), [(1, LEAST), (121_192, 512), (500_000, 2048), (1_000_000, 4096), (10**9, MOST)]
)
def test_an_epoch_has_about_250_steps(epoch_tokens: int, expected: int) -> None:
    assert wanted_batch_tokens(epoch_tokens, MOST) == expected


@pytest.mark.parametrize(("room", "expected"), [(100, LEAST), (1024, 1024), (5000, 4096), (10**6, 8192)])
def test_memory_bounds_it(room: int, expected: int) -> None:
    assert largest_that_fits(8192, lambda budget: budget <= room) == expected


def test_an_epoch_has_some_of_the_old_pairs_alone() -> None:
    lens = np.full(201_000, 12)
    mixture = Mixture(np.arange(1_000), np.arange(1_000, 201_000), 0.5, 1)
    data = SimpleNamespace(examples=SimpleNamespace(tgt=SimpleNamespace(lens=lens)), mixture=mixture)
    config = load_config(None, ["train.batch_tokens=auto"])
    assert choose_batch_tokens(config, data, torch.device("cpu"))[0] == wanted_batch_tokens(2_000 * 12, MOST)


def test_auto_is_resolved_told_and_kept(tmp_path: Path) -> None:
    auto = 'train.batch_tokens="auto"', "decode.max_sentences=0"
    config = tiny_config(write_corpus(tmp_path / "corpus"), *auto, "train.max_epochs=1")
    report = Notes()
    train_tiny(config, tmp_path / "run", report)
    assert "batch_tokens: 512 (for about 250 steps an epoch, but from 512 to 4096)" in report.said
    resolved = RunDirectory(tmp_path / "run").read_config()
    assert (resolved.train.batch_tokens, resolved.decode.max_sentences) == (512, 1)
    again = train_tiny(tiny_config(tmp_path / "corpus", *auto), tmp_path / "run")
    assert again.step > 2


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([], ""),
        (["model.attention=reference"], ""),
        (["model.attention=chunked"], "attention chunked cannot be recorded"),
        (["model.position={kind='learned', max_len=600}"], "learned positions are looked up with a check"),
    ],
)
def test_pairs_are_packed_on_a_gpu_where_a_step_can_be_recorded(overrides: list[str], reason: str) -> None:
    config = load_config(None, overrides)
    assert unrecordable(config) == reason
    assert choose_packing(config, torch.device("cuda"))[0] == (not reason)
    assert not choose_packing(config, torch.device("cpu"))[0]
