"""Fine-tuning: it starts exactly where the model stands, keeps its tokenizer, resumes, and says what it changed."""

import hashlib
import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import Notes, change_dev, outcome, signal_at, tensors, tiny_config, train_tiny, write_corpus

from mtattn.checkpoint import RunDirectory
from mtattn.config import Config
from mtattn.errors import ConfigError, CorpusError, DivergedError, ModelError, MtattnError
from mtattn.finetune import explain, lowered
from mtattn.interrupts import Interrupted
from mtattn.loading import load_model, weights_sha256
from mtattn.mixing import FinetuneConfig, Mixture
from mtattn.prepare import Pairs
from mtattn.resolve import resolve
from mtattn.validate import Validation, validate

LIMITS = ("train.max_epochs=2", "train.log_every=2", "train.precision=float32", "train.threads=1")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """old/ and new/: two corpora, the new one's words written backwards; base/: a run on the old one."""
    folder = tmp_path_factory.mktemp("finetune")
    write_corpus(folder / "old")
    write_corpus(folder / "new", pairs=30, dev=5)
    for path in (folder / "new").iterdir():
        path.write_text("".join(f"{line[::-1]}\n" for line in path.read_text().splitlines()))
    train_tiny(tiny_config(folder / "old"), folder / "base")
    return folder


def asked(work: Path, run: Path, *overrides: str, origin: Path | None = None, **options: Any) -> Config:
    """What `train new.toml --from base` resolves to."""
    config = work / "new.toml"
    config.write_text(
        f"[data]\nfolder = {json.dumps(str(work / 'new'))}\ntrain = 'train.{{en,de}}'\ndev = 'dev.{{en,de}}'\n"
    )
    options = {"device": CPU, "origin": origin or work / "base", **options}
    return resolve(str(config), [*LIMITS, *overrides], RunDirectory(run), Notes(), **options).config


@pytest.fixture(scope="module")
def tuned(work: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Notes]:
    """A finished fine-tuning run, and what it said."""
    run, report = tmp_path_factory.mktemp("tuned") / "run", Notes()
    train_tiny(asked(work, run), run, report)
    return run, report


def lines_of(run: Path) -> list[dict[str, Any]]:
    return RunDirectory(run).metrics.read()


# What it starts from


def test_it_starts_from_the_models_weights_and_scores_them_first(work: Path, tuned: tuple[Path, Notes]) -> None:
    first = next(line for line in lines_of(tuned[0]) if line["kind"] == "valid")
    model, tokenizer, _ = load_model(work / "base")
    config = RunDirectory(tuned[0]).read_config()
    dev = load_dev(work / "new")
    expected = validate(model, tokenizer, dev, config.decode)
    assert (first["step"], first["loss"], first["bleu"]) == (0, expected.loss, expected.scores.bleu)


def load_dev(folder: Path) -> Pairs:
    return Pairs(*((folder / f"dev.{language}").read_text().splitlines() for language in ("en", "de")))


def test_the_first_checkpoint_has_the_models_weights(work: Path, tmp_path: Path) -> None:
    config = asked(work, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(1, patch)
        train_tiny(config, tmp_path / "run")
    saved = tensors(tmp_path / "run" / "checkpoints" / "step-0" / "model.safetensors")
    assert saved == tensors(work / "base" / "model" / "model.safetensors")


def test_tokenizer_and_shape_are_the_models(work: Path, tuned: tuple[Path, Notes]) -> None:
    own, base = RunDirectory(tuned[0]).read_config(), RunDirectory(work / "base").read_config()
    assert (own.model, own.tokenizer) == (base.model, base.tokenizer)
    assert (own.filter, own.optim, own.train.batch_tokens) == (base.filter, base.optim, base.train.batch_tokens)
    for folder in (tuned[0], tuned[0] / "model"):
        assert (folder / "tokenizer.model").read_bytes() == (work / "base" / "tokenizer.model").read_bytes()


def test_the_learning_rates_are_lowered(work: Path, tuned: tuple[Path, Notes]) -> None:
    config = RunDirectory(tuned[0]).read_config()
    assert lowered(config).lr == pytest.approx(0.2 * config.optim.lr)
    assert lowered(config).muon_lr == pytest.approx(0.2 * config.optim.muon_lr)
    assert lowered(Config()) == Config().optim
    assert max(line.get("lr", 0.0) for line in lines_of(tuned[0])) <= 0.2 * config.optim.lr
    other = asked(work, work / "nowhere", "finetune.lr_factor=0.5")
    assert lowered(other).lr == pytest.approx(0.5 * other.optim.lr)


def test_the_hash_is_that_of_the_released_file(work: Path) -> None:
    released = (work / "base" / "model" / "model.safetensors").read_bytes()
    assert weights_sha256(work / "base") == hashlib.sha256(released).hexdigest()


# What it reports


def test_both_dev_sets_are_scored_before_and_after(work: Path, tuned: tuple[Path, Notes]) -> None:
    run, report = tuned
    scores = json.loads((run / "model" / "scores.json").read_text())["finetune"]
    assert (scores["from"], scores["from_weights"]) == (str(work / "base"), weights_sha256(work / "base"))
    for name in ("new_dev", "old_dev"):
        assert set(scores[name]["before"]) == set(scores[name]["after"]) == {"bleu", "chrf"}
    base = json.loads((work / "base" / "model" / "scores.json").read_text())
    assert scores["old_dev"]["before"]["bleu"] == pytest.approx(base["dev_bleu"])
    card = (run / "model" / "README.md").read_text()
    for title in ("New dev set: BLEU", "Old dev set: BLEU"):
        assert any(said.startswith(title) for said in report.said)
        assert f"- {title}" in card
    assert f"Fine-tuned from `{work / 'base'}`" in card
    assert re.search(r"- Trained on \d+ pairs\.", card)


def test_the_card_names_every_model_that_it_comes_from(work: Path, tuned: tuple[Path, Notes], tmp_path: Path) -> None:
    shutil.copytree(tuned[0] / "model", tmp_path / "once")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(2, patch)
        train_tiny(asked(work, tmp_path / "run", origin=tmp_path / "once"), tmp_path / "run")
    shutil.rmtree(tmp_path / "once")
    train_tiny(asked_again(work, tmp_path / "run"), tmp_path / "run")
    first, second = (RunDirectory(run).read_config().finetune.weights[:12] for run in (tuned[0], tmp_path / "run"))
    said = f"`{tmp_path / 'once'}` (weights {second}), itself from `{work / 'base'}` (weights {first})."
    assert f"- Fine-tuned from {said}" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_the_scores_after_are_those_of_the_released_weights(work: Path, tmp_path: Path) -> None:
    rising = iter(range(1, 99))
    with pytest.MonkeyPatch.context() as patch:

        def better_each_time(*args: Any, **kwargs: Any) -> Validation:
            found = validate(*args, **kwargs)
            return replace(found, scores=replace(found.scores, bleu=float(next(rising))))

        patch.setattr("mtattn.train.validate", better_each_time)
        train_tiny(asked(work, tmp_path / "run"), tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "model" / "scores.json").read_text())
    assert (scores["step"], scores["dev_bleu"]) == (max(line["step"] for line in lines_of(tmp_path / "run")), 3.0)
    assert [scores["finetune"]["new_dev"][when]["bleu"] for when in ("before", "after")] == [1.0, 3.0]
    assert [line["step"] for line in lines_of(tmp_path / "run") if line["kind"] == "old_dev"] == [0, scores["step"]]
    model, tokenizer, config = load_model(tmp_path / "run")
    expected = validate(model, tokenizer, load_dev(work / "old"), config.decode).scores
    assert scores["finetune"]["old_dev"]["after"] == {"bleu": expected.bleu, "chrf": expected.chrf}


def test_an_old_dev_set_that_is_gone_is_left_out(work: Path, tmp_path: Path) -> None:
    config = asked(work, tmp_path / "run", "train.max_epochs=1", f'finetune.old.folder="{tmp_path / "gone"}"')
    report = Notes()
    train_tiny(config, tmp_path / "run", report)
    assert json.loads((tmp_path / "run" / "model" / "scores.json").read_text())["finetune"]["old_dev"] == {
        "before": None,
        "after": None,
    }
    assert any("the old dev set is not there any more" in said for said in report.said)


def test_a_model_without_a_dev_corpus_is_scored_on_what_it_held_out(work: Path, tmp_path: Path) -> None:
    train_tiny(tiny_config(work / "old", "data.dev=[]", "train.max_epochs=1"), tmp_path / "base")
    config = asked(work, tmp_path / "run", "train.max_epochs=1", origin=tmp_path / "base")
    train_tiny(config, tmp_path / "run")
    base = json.loads((tmp_path / "base" / "model" / "scores.json").read_text())
    scores = json.loads((tmp_path / "run" / "model" / "scores.json").read_text())["finetune"]
    assert scores["old_dev"]["before"]["bleu"] == pytest.approx(base["dev_bleu"])


def test_the_old_test_set_is_not_mixed_in(work: Path, tmp_path: Path) -> None:
    for side in ("en", "de"):
        lines = (work / "old" / f"train.{side}").read_text().splitlines(keepends=True)
        (work / "old" / f"test.{side}").write_text("".join(lines[:9]))
    train_tiny(tiny_config(work / "old", "data.test=test.{en,de}", "train.max_epochs=1"), tmp_path / "base")
    report = Notes()
    config = asked(work, tmp_path / "run", "train.max_epochs=1", "finetune.mix=0.5", origin=tmp_path / "base")
    train_tiny(config, tmp_path / "run", report)
    assert any("in dev or test" in said for said in report.said)
    for side in ("en", "de"):
        (work / "old" / f"test.{side}").unlink()
    train_tiny(config, tmp_path / "again", report)
    assert any("the old model's test set is not there" in said for said in report.warnings)


# Old data mixed in


def test_an_epoch_has_every_new_pair_and_another_draw_of_old_ones() -> None:
    mixture = Mixture(np.arange(30), np.arange(30, 200), 0.5, seed=3)
    epochs = [mixture(epoch) for epoch in range(3)]
    for numbers in epochs:
        assert len(numbers) == len(set(numbers.tolist())) == 60
        assert set(range(30)) < set(numbers.tolist())
    assert len({tuple(numbers.tolist()) for numbers in epochs}) == 3
    assert mixture(1).tolist() == epochs[1].tolist()
    assert Mixture(np.arange(30), np.arange(30, 40), 0.9, seed=3).num_old == 10


@pytest.mark.parametrize("mix", ["0", "0.5"])
def test_interrupted_and_resumed_without_the_flag_equals_uninterrupted(mix: str, work: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(work / "base" / "model", base)
    whole = asked(work, tmp_path / "whole", f"finetune.mix={mix}", origin=base)
    train_tiny(whole, tmp_path / "whole")
    last = (tmp_path / "whole" / "last").read_text().strip()
    moved = tensors(tmp_path / "whole" / "checkpoints" / last / "model.safetensors")
    assert moved != tensors(base / "model.safetensors")
    for step in (2, 3):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            signal_at(step, patch)
            train_tiny(asked(work, tmp_path / "parts", f"finetune.mix={mix}", origin=base), tmp_path / "parts")
    shutil.rmtree(base)
    config = asked_again(work, tmp_path / "parts")
    assert config == RunDirectory(tmp_path / "parts").read_config()
    train_tiny(config, tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_interrupted_while_it_is_first_scored_keeps_the_old_score(work: Path, tmp_path: Path) -> None:
    train_tiny(asked(work, tmp_path / "whole"), tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):

        def interrupted(*args: Any, **kwargs: Any) -> Validation:
            signal.raise_signal(signal.SIGTERM)
            return validate(*args, **kwargs)

        patch.setattr("mtattn.train.validate", interrupted)
        train_tiny(asked(work, tmp_path / "parts"), tmp_path / "parts")
    train_tiny(asked_again(work, tmp_path / "parts"), tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_old_data_that_has_moved_is_named_anew(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "old", tmp_path / "here")
    named = "finetune.old.folder={}"
    config = asked(work, tmp_path / "run", "finetune.mix=0.5", named.format(json.dumps(str(tmp_path / "here"))))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(2, patch)
        train_tiny(config, tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(CorpusError, match=r"--set finetune.old.folder=DIR"):
        train_tiny(asked_again(work, tmp_path / "run"), tmp_path / "run")
    moved = asked_again(work, tmp_path / "run", named.format(json.dumps(str(tmp_path / "there"))))
    assert train_tiny(moved, tmp_path / "run").step > 2


@pytest.mark.parametrize("dev", ["dev", "old_dev"])
def test_scores_on_two_dev_sets_are_not_compared(dev: str, work: Path, tmp_path: Path) -> None:
    folders = []
    for key, name in (("finetune.old.folder", "old"), ("data.folder", "new")):
        shutil.copytree(work / name, tmp_path / name)
        folders.append(f"{key}={json.dumps(str(tmp_path / name))}")
    config = asked(work, tmp_path / "run", *folders)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(3, patch)
        train_tiny(config, tmp_path / "run")
    other, name = ("new", "the dev set") if dev == "dev" else ("old", "the old dev set")
    change_dev(tmp_path / other)
    config = asked_again(work, tmp_path / "run", *folders)
    with pytest.raises(CorpusError, match=f"{name} is another than when this run began, .*--allow-changed-data"):
        train_tiny(config, tmp_path / "run")
    report = Notes()
    train_tiny(config, tmp_path / "run", report, allow_changed_data=True)
    assert f"{name} has changed: its earlier scores are not compared with those to come" in report.said
    compared = json.loads((tmp_path / "run" / "model" / "scores.json").read_text())["finetune"]
    changed, same = ("new_dev", "old_dev") if dev == "dev" else ("old_dev", "new_dev")
    assert compared[changed]["before"] is None and compared[changed]["after"]
    assert compared[same]["before"] and compared[same]["after"]
    assert [line["kind"] for line in lines_of(tmp_path / "run")].count("old_dev") == 2
    train_tiny(config, tmp_path / "run")


def test_an_old_dev_set_may_be_gone_for_a_while(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "old", tmp_path / "old")
    # Were its sentences kept out of training, other pairs would be left while it is gone, which is refused.
    options = (f"finetune.old.folder={json.dumps(str(tmp_path / 'old'))}", "filter.leaked=false")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(2, patch)
        train_tiny(asked(work, tmp_path / "run", *options), tmp_path / "run")
    (tmp_path / "old").rename(tmp_path / "away")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(2, patch)
        train_tiny(asked_again(work, tmp_path / "run", *options), tmp_path / "run")
    (tmp_path / "away").rename(tmp_path / "old")
    train_tiny(asked_again(work, tmp_path / "run", *options), tmp_path / "run")
    compared = json.loads((tmp_path / "run" / "model" / "scores.json").read_text())["finetune"]
    assert compared["old_dev"]["before"] and compared["old_dev"]["after"]


def asked_again(work: Path, run: Path, *overrides: str, origin: Path | None = None) -> Config:
    """The same command, without --from unless given."""
    given = [*LIMITS, *overrides]
    return resolve(str(work / "new.toml"), given, RunDirectory(run), Notes(), device=CPU, origin=origin).config


def test_mixed_in_pairs_are_named_as_of_the_old_corpus(work: Path, tmp_path: Path) -> None:
    config = asked(work, tmp_path / "run", "finetune.mix=0.5", "train.batch_tokens=4096", "train.max_epochs=99")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtattn.learner.batch_loss", lambda model, *_: next(model.parameters()).sum() * float("nan"))
        with pytest.raises(DivergedError) as refused:
            train_tiny(config, tmp_path / "run")
    numbers = re.search(r"training pairs ([\d, ]+), \.\.\. and pairs ([\d, ]+), \.\.\. of the old", str(refused.value))
    assert numbers is not None
    assert max(int(number) for number in numbers[1].split(", ")) <= 30


def test_mixing_adds_old_pairs(work: Path, tmp_path: Path) -> None:
    report = Notes()
    train_tiny(asked(work, tmp_path / "run", "finetune.mix=0.5", "train.max_epochs=1"), tmp_path / "run", report)
    mixed = re.compile(r"an epoch has all (\d+) new pairs and another draw of \1 old ones")
    (note,) = filter(None, map(mixed.match, report.said))
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"- Trained on {note[1]} new pairs and, in each epoch, another draw of {note[1]} old ones." in card
    files = json.loads((next((tmp_path / "run" / "checkpoints").iterdir()) / "state.json").read_text())["files"]
    assert {Path(file).parent.name for file in files} == {"old", "new"}


def test_files_of_the_same_name_are_not_taken_for_the_old_ones_in_silence(work: Path, tmp_path: Path) -> None:
    """As when a model and what is made of it were trained in two folders on train.en and train.de."""
    report = Notes()
    train_tiny(asked(work, tmp_path / "run", f'finetune.old.folder="{work / "new"}"'), tmp_path / "run", report)
    assert any("the very files of this run" in warning for warning in report.warnings)


def test_a_second_fine_tuning_says_which_pairs_are_old(work: Path, tuned: tuple[Path, Notes], tmp_path: Path) -> None:
    said = explain(asked(work, tmp_path / "run", "finetune.mix=0.5", origin=tuned[0]))
    assert f"none of what `{work / 'base'}` learnt" in said[-1]
    assert len(explain(asked(work, tmp_path / "other", "finetune.mix=0.5"))) == len(said) - 1


def test_sentences_of_a_line_are_those_of_the_new_lines(work: Path, tmp_path: Path) -> None:
    assert RunDirectory(work / "base").read_config().decode.max_sentences == 1
    assert asked(work, tmp_path / "run").decode.max_sentences == 0  # to be counted
    assert asked(work, tmp_path / "run", "decode.max_sentences=3").decode.max_sentences == 3


def test_old_data_that_is_gone_cannot_be_mixed_in(work: Path, tmp_path: Path) -> None:
    config = asked(work, tmp_path / "run", "finetune.mix=0.5", f'finetune.old.folder="{tmp_path / "gone"}"')
    with pytest.raises(CorpusError, match=r"cannot be mixed in: .*train.en.*finetune.old.folder"):
        train_tiny(config, tmp_path / "run")


def test_an_old_corpus_that_moved_is_named_anew(work: Path, tmp_path: Path) -> None:
    config = asked(work, tmp_path / "run", 'finetune.old.folder="elsewhere"')
    assert config.finetune.old.folder == "elsewhere"
    assert config.finetune.old.train == "train.{en,de}"


# What is refused


REFUSED = [
    ("model.d_model=32", r"model.d_model is 32, but the model's is 16"),
    ("model.preset=vaswani", r"model.norm_position is 'post', but the model's is 'pre'"),
    ("tokenizer.vocab_size=500", r"tokenizer.vocab_size is 500, but the model's is 290"),
    ("tokenizer.joint=false", r"tokenizer.joint is False, but the model's is True"),
    ('model.position={kind="alibi"}', r"model.position is {'kind': 'alibi'}, but the model's is"),
    ("data.src=fr", r"data.src is 'fr', but the model's is 'en'; it translates en to de"),
    ("model.d_modle=16", r"model.d_modle is not a setting; did you mean 'd_model'"),
    ("finetune.mix=1.0", r"mix is 1.0; allowed: 0 <= mix < 1"),
    ("finetune.lr_factor=inf", r"lr_factor is inf; allowed: more than 0, and finite"),
    ("finetune.old_hold_out=0", r"old_hold_out is 0; allowed: 1 or more"),
    ("finetune.old_seed=-1", r"old_seed is -1; allowed: 0 to"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED, ids=[override for override, _ in REFUSED])
def test_a_conflict_names_the_setting_and_both_values(override: str, message: str, work: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        asked(work, tmp_path / "run", override)
    assert refused.value.exit_code == 2


def test_what_no_weight_depends_on_may_differ(work: Path, tmp_path: Path) -> None:
    config = asked(
        work, tmp_path / "run", "model.dropout=0.05", "tokenizer.sampling=0.1", 'model.position={kind="rotary"}'
    )
    assert (config.model.dropout, config.tokenizer.sampling, config.model.d_model) == (0.05, 0.1, 16)


@pytest.mark.parametrize("origin", ["nowhere", "old"])
def test_no_model_there(origin: str, work: Path, tmp_path: Path) -> None:
    with pytest.raises(MtattnError) as refused:
        asked(work, tmp_path / "run", origin=work / origin)
    assert refused.value.exit_code == ModelError.exit_code
    assert origin in str(refused.value)


def test_a_model_that_changed_since_is_refused_before_the_first_step(work: Path, tmp_path: Path) -> None:
    config = asked(work, tmp_path / "run", "finetune.lr_factor=0.3")
    other = Config(**{**vars(config), "finetune": FinetuneConfig(**{**vars(config.finetune), "weights": "0" * 64})})
    with pytest.raises(ModelError, match=r"this run was begun from 000000000000"):
        train_tiny(other, tmp_path / "run")


def test_a_begun_run_refuses_another_model(work: Path, tuned: tuple[Path, Notes], tmp_path: Path) -> None:
    assert asked_again(work, tuned[0], origin=work / "base" / "model") == RunDirectory(tuned[0]).read_config()
    train_tiny(tiny_config(work / "old", "train.seed=2", "train.max_epochs=1"), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"was begun from .*base, and .*other has other weights"):
        asked_again(work, tuned[0], origin=tmp_path / "other")


def test_a_run_that_began_without_a_model_refuses_one(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "base", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"was begun without --from; --fresh starts over"):
        asked(work, tmp_path / "run")


def test_a_model_is_not_replaced_by_what_starts_from_it(work: Path) -> None:
    for origin in (work / "base", work / "base" / "model"):
        with pytest.raises(ConfigError, match=r"would replace; give another --run"):
            asked(work, work / "base", origin=origin, fresh=True)


def test_fine_tuning_needs_data(work: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--from needs data to learn from"):
        resolve(None, [], RunDirectory(tmp_path), Notes(), device=CPU, origin=work / "base")
