"""Export to a Hugging Face folder: it is a whole released model, and hubs can read its card."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mtattn.card import licence
from mtattn.config import Config
from mtattn.corpus import DataConfig
from mtattn.errors import ConfigError, FileError
from mtattn.export.exporter import Trained
from mtattn.export.huggingface import card, push, write
from mtattn.loading import load_model, weights_sha256
from mtattn.mixing import FinetuneConfig
from mtattn.sources import CorpusSource

SCORES = {
    "bleu": 41.237,
    "chrf": 66.5,
    "ter": None,
    "signature": {"bleu": "nrefs:1|case:mixed", "chrf": "nrefs:1|nc:6"},
    "num_sentences": 1000,
}


@pytest.fixture
def trained(model, tokenizer, tmp_path):
    data = DataConfig(src="en", tgt="de", train="train.{en,de}", test="test_2016.{en,de}")
    return Trained(model, tokenizer, Config(model=model.config, data=data), tmp_path / "run")


def test_the_folder_is_the_same_model(trained, tmp_path):
    write(trained, tmp_path / "out", "float32")
    model, tokenizer, config = load_model(tmp_path / "out")
    assert config == trained.config
    assert tokenizer.to_files() == trained.tokenizer.to_files()
    for ours, theirs in zip(trained.model.parameters(), model.parameters(), strict=True):
        assert bool((ours == theirs).all())


def test_config_json_is_plain_and_names_the_special_ids(trained, tmp_path):
    write(trained, tmp_path / "out", "float32")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "mtattn"
    assert (config["pad_token_id"], config["decoder_start_token_id"], config["eos_token_id"]) == (0, 1, 2)
    assert "auto_map" not in config  # nothing that would ask for remote code


def test_hubs_read_scores_and_languages_from_the_card(trained):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(card(trained, SCORES)).data
    assert (data.language, data.library_name, data.pipeline_tag) == (["en", "de"], "mtattn", "translation")
    bleu, chrf = data.eval_results
    assert (bleu.metric_type, bleu.metric_value, bleu.metric_config) == ("bleu", 41.24, "nrefs:1|case:mixed")
    assert (chrf.metric_type, chrf.dataset_name) == ("chrf", "test_2016.{en,de}")


@pytest.mark.parametrize(
    ("scored", "corpus"), [("test", "test_2016.{en,de}"), ("dev", "val.{en,de}"), ("news.en", "news.en")]
)
def test_scores_are_those_of_what_was_scored(scored, corpus, trained):
    data = replace(trained.config.data, dev="val.{en,de}")
    text = card(replace(trained, config=replace(trained.config, data=data)), {**SCORES, "scored": scored})
    assert f'"dataset": {{"type": "{corpus}"' in text
    assert f'"BLEU ({scored})"' in text


def test_languages_are_strings_in_yaml(trained):
    trained = replace(trained, config=replace(trained.config, data=DataConfig(src="en", tgt="no")))
    assert '\nlanguage: ["en", "no"]\n' in card(trained, {})  # bare, no is false


@pytest.mark.parametrize(
    ("test", "name"),
    [
        ((), "not named"),
        (CorpusSource("test.tsv", columns=(1, 0)), "test.tsv"),
        (("one.{en,de}", CorpusSource("two.tsv")), "one.{en,de}, two.tsv"),
    ],
)
def test_the_scored_corpus_is_named_by_its_path(test, name, trained):
    trained = replace(trained, config=replace(trained.config, data=DataConfig(test=test)))
    assert f'"dataset": {{"type": "{name}", "name": "{name}"}}' in card(trained, SCORES)


def test_a_fine_tuned_model_names_what_it_came_from(trained):
    assert "Fine-tuned" not in card(trained, {})
    base, old = {"model": "runs/base", "weights": "0123456789abcdef"}, DataConfig(train="old.{en,de}")
    tuned = FinetuneConfig(**base, earlier=("`runs/first` (weights 89ab)",), old=old)
    text = card(replace(trained, config=replace(trained.config, finetune=tuned)), {})
    assert "Training data: train.{en,de}. Its" in text
    origin = (
        "\n- Fine-tuned from `runs/base` (weights 0123456789ab), itself from `runs/first` (weights 89ab); training data"
    )
    assert f"{origin} of the first: old.{{en,de}}. Their licences count too." in text


def test_an_export_of_an_export_has_its_scores(trained, tmp_path):
    run, once, twice = tmp_path / "run", tmp_path / "once", tmp_path / "twice"
    run.mkdir()
    (run / "scores.json").write_text(json.dumps(SCORES))
    write(replace(trained, folder=run), once, "float32")
    write(replace(trained, folder=once), twice, "float32")
    assert (once / "README.md").read_text() == (twice / "README.md").read_text()
    assert "model-index" in (twice / "README.md").read_text()


@pytest.mark.parametrize("lines", ["license: mit", "license:\n- mit\n- cc0-1.0", "license:\n  - mit\nlicense_link: x"])
def test_a_licence_is_read_however_yaml_writes_it(lines):
    assert licence(f"---\nlanguage: [en]\n{lines}\nlibrary_name: mtattn\n---\nlicense: of the text\n") == lines


def test_a_licence_that_was_filled_in_goes_along(trained, tmp_path):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    write(replace(trained, folder=run), tmp_path / "before", "float32")
    own = "---\nlanguage: [en]\nlicense: other\nlicense_name: mine\nlibrary_name: mtattn\n---\nlicense: of the text\n"
    (run / "model" / "README.md").write_text(own)
    write(replace(trained, folder=run), tmp_path / "after", "float32")
    before, after = ((tmp_path / name / "README.md").read_text() for name in ("before", "after"))
    assert "\nlicense: unknown\n" in before and "fill in `license` above" in before
    assert "\nlicense: other\nlicense_name: mine\nlibrary_name: " in after and "fill in" not in after


def test_scores_of_other_weights_are_refused(trained, tmp_path):
    trained = replace(trained, folder=tmp_path / "run")
    write(trained, trained.folder, "float32")
    for weights, name in ((weights_sha256(trained.folder), "a"), ("0" * 64, "b")):
        (trained.folder / "scores.json").write_text(json.dumps({**SCORES, "weights": weights}))
        if name == "a":
            write(trained, tmp_path / name, "float32")
            continue
        with pytest.raises(ConfigError, match=r"scores.json: scores of other weights.*mtattn eval .* --json > "):
            write(trained, tmp_path / name, "float32")
    assert "model-index" in (tmp_path / "a" / "README.md").read_text()


def test_a_card_without_scores_claims_none(trained):
    assert "model-index" not in card(trained, {})


def test_scores_found_while_training_say_so(trained, tmp_path):
    trained.folder.mkdir()
    (trained.folder / "scores.json").write_text(json.dumps({"dev_bleu": 38.04, "dev_signature": "tok:x", "step": 9}))
    write(trained, tmp_path / "out", "float32")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "38.04" in text and "while training" in text and '"config": "tok:x"' in text


def test_push_uploads_the_folder(tmp_path, monkeypatch):
    calls = []
    hub = SimpleNamespace(
        create_repo=lambda name, **options: calls.append((name, options["private"])) or "https://hub/me/en-de",
        upload_folder=lambda **options: calls.append(
            (options["repo_id"], options["folder_path"], options["delete_patterns"])
        ),
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert push(tmp_path, "me/en-de") == "https://hub/me/en-de"
    assert calls == [("me/en-de", True), ("me/en-de", tmp_path, ["model/*"])]  # an earlier copy's model/ goes


def test_a_hub_that_refuses_is_one_message(tmp_path, monkeypatch):
    class ConnectError(Exception):
        """What an HTTP library raises need not be an OSError."""

    def create_repo(name, **options):
        raise ConnectError("no network")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(create_repo=create_repo))
    with pytest.raises(FileError, match=r"me/en-de.*no network"):
        push(tmp_path, "me/en-de")
