"""Sizing: the rules at their borders, never smaller for more data or more time, and what is given wins."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import Notes, train_tiny, write_corpus

from mtattn.checkpoint import RunDirectory
from mtattn.config import Config, TrainConfig, load_config, parse_config
from mtattn.errors import ConfigError, CorpusError
from mtattn.resolve import Resolved, resolve
from mtattn.sizing import FEW_PAIRS, MORE_EPOCHS, RDROP, SIZES, as_table, choose, choose_batch, planned_step_tokens
from mtattn.speed import Facts, estimate, measure

CPU = torch.device("cpu")
GROWING = ("tokenizer.vocab_size", "model.d_model", "model.d_ff", "model.num_heads", "weights")
pairs = st.integers(1, 3_000_000)
minutes = st.sampled_from([0.0, 0.5, 5.0, 20.0, 60.0, 1000.0])
devices = st.sampled_from(["cpu", "cuda"])


def facts(count: int, **known: Any) -> Facts:
    """A corpus of captions: 62 and 72 characters a pair, as in Multi30k."""
    return Facts(count, 62 * count, 72 * count, **known)


def chosen(found: Facts) -> dict[str, Any]:
    values = {choice.key: choice.value for choice in choose(found)}
    layers = values["model.encoder_layers"] + values["model.decoder_layers"]
    return values | {"weights": layers * values["model.d_model"] * values["model.d_ff"]}  # in proportion


@pytest.mark.parametrize("before, size", list(zip((None, *SIZES), SIZES, strict=False)))
def test_a_row_begins_at_its_number_of_pairs(before: Any, size: Any) -> None:
    found = chosen(facts(max(size.pairs, 1), device="cuda"))
    assert (found["model.d_model"], found["tokenizer.vocab_size"]) == (size.d_model, size.vocab_size)
    thorough = size.pairs < FEW_PAIRS
    assert (found["model.dropout"], found["train.max_epochs"]) == (
        size.dropout,
        size.epochs * (MORE_EPOCHS if thorough else 1),
    )
    assert found.get("loss.rdrop") == (RDROP if thorough else None)
    if before is not None:
        assert chosen(facts(size.pairs - 1, device="cuda"))["tokenizer.vocab_size"] == before.vocab_size


def test_a_night_gives_captions_the_sizes_of_their_row() -> None:
    found = chosen(facts(29_000))
    assert (found["tokenizer.vocab_size"], found["model.d_model"], found["model.encoder_layers"]) == (6_000, 256, 3)
    assert (found["model.dropout"], found["model.inner_dropout"]) == (0.3, 0.1)
    assert (found["train.batch_tokens"], found["train.accumulate"]) == (4_096, 2)


def test_twenty_minutes_get_what_was_measured_to_be_good() -> None:
    found = facts(29_000, max_minutes=18.5, instructions="AVX2")
    config, best = parse_config(as_table(choose(found)), "chosen"), load_config("multi30k-en-de-quick")
    assert config.model == replace(best.model, preset="")
    assert config.tokenizer == best.tokenizer
    assert (config.train.batch_tokens, config.train.accumulate) == (best.train.batch_tokens, best.train.accumulate)


@given(pairs, pairs, minutes, devices)
def test_more_pairs_never_make_a_model_smaller(one: int, other: int, limit: float, device: str) -> None:
    less, more = (chosen(facts(count, max_minutes=limit, device=device)) for count in sorted((one, other)))
    assert all(less[key] <= more[key] for key in GROWING)
    assert less["model.dropout"] >= more["model.dropout"]
    assert less["train.max_epochs"] >= more["train.max_epochs"]


@given(pairs, st.floats(0.1, 1e4), st.floats(0.1, 1e4))
def test_more_time_never_makes_a_model_smaller(count: int, one: float, other: float) -> None:
    less, more = (chosen(facts(count, max_minutes=limit)) for limit in sorted((one, other)))
    assert all(less[key] <= more[key] for key in GROWING)


@given(pairs, st.floats(0.1, 1e4))
def test_slower_cores_never_get_a_larger_model(count: int, limit: float) -> None:
    less, more = (chosen(facts(count, max_minutes=limit, instructions=name)) for name in ("AVX2", "AVX512"))
    assert all(less[key] <= more[key] for key in GROWING)


@given(pairs, st.integers(1, 200), st.integers(1, 30_000), st.booleans(), st.booleans(), minutes, devices)
def test_every_choice_makes_a_config_and_has_a_reason(
    count: int, length: int, letters: int, src_unspaced: bool, tgt_unspaced: bool, limit: float, device: str
) -> None:
    chars = length * count
    found = Facts(count, chars, chars, src_unspaced, tgt_unspaced, letters, device, 4, max_minutes=limit)
    choices = choose(found)
    config = parse_config(as_table(choices), "chosen")
    assert parse_config(as_table(choose(found)), "again") == config
    assert all(choice.reason and choice.key in str(choice) for choice in choices)
    assert "training takes about" in estimate(config, found, planned_step_tokens(config, found))


def test_little_time_asks_for_a_smaller_model_and_says_so() -> None:
    choices = {choice.key: choice for choice in choose(facts(150_000, max_minutes=10))}
    assert choices["model.d_model"].value == 128
    assert "would not see enough text in 10 minutes" in choices["model.d_model"].reason
    assert "fit into 10 minutes, and the clock ends the run" in choices["train.max_epochs"].reason
    enough = next(c for c in choose(facts(29_000, max_minutes=600)) if c.key == "train.max_epochs")
    assert enough.reason == "as many as 20,000 to 100,000 pairs gain from; 600 minutes should be enough"
    assert choices["model.dropout"].value == 0.0
    assert "can hardly be learnt by heart" in choices["model.dropout"].reason


def test_a_smaller_model_than_suits_its_pairs_is_held_back_less() -> None:
    found = facts(29_000, max_minutes=60, instructions="AVX2")
    config, best = parse_config(as_table(choose(found)), "chosen"), load_config("multi30k-en-de-cpu")
    assert config.model == replace(best.model, preset="")
    assert (config.train.batch_tokens, config.train.accumulate) == (best.train.batch_tokens, best.train.accumulate)


def test_a_short_run_on_a_cpu_takes_more_and_smaller_steps() -> None:
    def step_tokens(**known: Any) -> int:
        found = chosen(facts(29_000, **known))
        return int(found["train.batch_tokens"]) * int(found["train.accumulate"])

    assert [step_tokens(max_minutes=limit) for limit in (1, 5, 1_000)] == [1_024, 2_048, 8_192]
    assert step_tokens(max_minutes=0.01, device="cuda") == 8_192


def test_without_a_limit_a_run_fits_into_a_night() -> None:
    found = facts(1_000_000)
    config = parse_config(as_table(choose(found)), "chosen")
    assert config.model.d_model == 256
    assert 1 <= config.train.max_epochs < SIZES[-1].epochs


def test_a_script_of_many_characters_gets_room_for_them() -> None:
    choice = next(choice for choice in choose(facts(3_000, num_chars=3_000)) if choice.key == "tokenizer.vocab_size")
    assert choice.value == 6_260
    assert "3,000 different characters" in choice.reason


def test_no_rdrop_is_chosen_where_no_dropout_is_wanted(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    data = [f"data.folder={folder}", "data.train=train.{en,de}", "data.dev=dev.{en,de}"]
    run, none = RunDirectory(tmp_path / "run"), ["model.dropout=0", "model.inner_dropout=0"]
    found = [
        resolve(None, [*data, *more], run, Notes(), device=torch.device("cuda")).config.loss.rdrop
        for more in ([], none)
    ]
    assert found == [RDROP, 0]


def test_a_gpu_finds_its_batch_by_trying() -> None:
    assert [(choice.key, choice.value) for choice in choose_batch(facts(10**6, device="cuda"))] == [
        ("train.batch_tokens", "auto")
    ]


def test_the_estimate_is_what_was_measured() -> None:
    """docs/experiments.md: 2,600 target tokens a second with this config, and 17 of them a pair."""
    config = load_config("multi30k-en-de", ["loss.rdrop=0", "tokenizer.vocab_size=6000", "train.max_minutes=52"])
    said = estimate(config, facts(29_000), planned_step_tokens(config, facts(29_000)))
    speed = int(said.split(" a second")[0].split()[-1].replace(",", ""))
    assert 2_300 < speed < 3_000
    assert "training takes about 52 minutes" in said


def test_the_facts_of_a_corpus() -> None:
    dataset = Dataset.from_dict({"src": ["ab ab"] * 50, "tgt": ["abc"] * 50})
    train = TrainConfig(max_minutes=3.0, threads=5)
    for sample in (7, 50, 1000):
        found = measure(dataset, CPU, train, sample)
        assert (found.pairs, found.src_chars, found.tgt_chars) == (50, 250, 150)
        assert (found.src_unspaced, found.tgt_unspaced, found.num_chars) == (False, False, 4)
        assert (found.device, found.max_minutes, found.cores) == ("cpu", 3.0, 5)
    assert measure(dataset, CPU, TrainConfig()).cores == torch.get_num_threads()


def test_old_pairs_that_are_mixed_in_count() -> None:
    dataset = Dataset.from_dict({"src": ["ab ab"] * 50, "tgt": ["abc"] * 50})
    found = measure(dataset, CPU, TrainConfig(), mix=0.75)
    assert (found.pairs, found.src_chars, found.tgt_chars) == (200, 1000, 600)


@pytest.mark.parametrize("turned", [False, True])
def test_each_side_has_a_script_of_its_own(turned: bool) -> None:
    english, chinese = (
        "a man in a blue shirt is standing on a ladder cleaning a window",
        "穿蓝色衬衫的男人站在梯子上擦窗户",
    )
    src, tgt = (chinese, english) if turned else (english, chinese)
    found = measure(Dataset.from_dict({"src": [src] * 100, "tgt": [tgt] * 100}), CPU, TrainConfig())
    assert (found.src_unspaced, found.tgt_unspaced) == (turned, not turned)
    tokens = round(100 * (len(english) / 3.2 if turned else len(chinese) / 1.5) + 150)
    config = load_config(None, ["tokenizer.vocab_size=1500"])
    assert f"an epoch: about {tokens:,} target tokens" in estimate(config, found, planned_step_tokens(config, found))


# By the program


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def resolved(corpus: Path, *overrides: str, run: Path | None = None) -> Resolved:
    files = f'data.train={{path="{corpus}/train.en", target="{corpus}/train.de"}}'
    return resolve(None, [files, *overrides], RunDirectory(run or corpus / "run"), Notes(), device=CPU)


def test_each_choice_is_told_on_a_line(corpus: Path) -> None:
    found = resolved(corpus)
    assert found.config.model.d_model == 128
    assert "  model.d_model = 128  (suits fewer than 8,000 pairs)" in found.notes
    assert found.notes[0].startswith("chosen for 60 pairs")
    assert "training takes about" in found.notes[-1]


GIVEN = [
    ("model.d_model=64", lambda config: config.model.d_model == 64),
    ("model.preset=tiny", lambda config: (config.model.dropout, config.model.d_model) == (0.1, 128)),
    ("tokenizer.vocab_size=300", lambda config: config.tokenizer.vocab_size == 300),
    ("train.batch_tokens=256", lambda config: (config.train.batch_tokens, config.train.accumulate) == (256, 1)),
    ("train.max_epochs=2", lambda config: config.train.max_epochs == 2),
]


@pytest.mark.parametrize(("override", "holds"), GIVEN, ids=[override for override, _ in GIVEN])
def test_what_is_given_wins(override: str, holds: Any, corpus: Path) -> None:
    found = resolved(corpus, override)
    assert holds(found.config)
    key = override.split("=")[0]
    assert not any(note.startswith(f"  {key} ") for note in found.notes)


def test_a_config_is_not_sized(corpus: Path) -> None:
    found = resolve("toy", [], RunDirectory(corpus / "run"), Notes(), device=CPU)
    assert (found.config, found.notes) == (load_config("toy"), [])


def test_a_missing_file_is_an_error_before_any_choice(corpus: Path) -> None:
    (corpus / "train.de").unlink()
    with pytest.raises(CorpusError, match=r"train\.de: no such file"):
        resolved(corpus)


def test_the_run_keeps_what_was_chosen(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = (
        "tokenizer.vocab_size=290",
        "model.d_model=16",
        "model.d_ff=16",
        "train.precision=float32",
        "train.packing=false",
        "decode.max_sentences=1",
    )
    found = resolved(corpus, *small, "train.max_steps=2")
    train_tiny(found.config, corpus / "run")
    assert load_config(str(corpus / "run" / "config.toml")) == found.config
    monkeypatch.setattr("mtattn.sizing.SIZES", (replace(SIZES[0], num_heads=2),))  # another machine would choose so
    again = resolved(corpus, *small, "train.max_steps=3")
    assert again.notes == []
    assert again.config == Config(**{**vars(found.config), "train": replace(found.config.train, max_steps=3)})
    train_tiny(again.config, corpus / "run")
    with pytest.raises(ConfigError, match=r"model.d_model = 32, was 16"):
        train_tiny(resolved(corpus, *small, "model.d_model=32").config, corpus / "run")
