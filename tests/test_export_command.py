"""`mtattn export`: its messages and exit codes."""

import sys

import pytest
from tiny_run import tiny_config, train_tiny, write_corpus
from typer.testing import CliRunner

from mtattn.cli import ExportTarget, app
from mtattn.errors import ConfigError, MtattnError
from mtattn.export import EXPORTERS, RECORD

RUNNER = CliRunner()


def run(*arguments: object):
    return RUNNER.invoke(app, ["export", *map(str, arguments)])


def test_every_way_out_is_a_choice():
    assert [target.value for target in ExportTarget] == list(EXPORTERS)


def test_check_needs_no_training():
    result = run("toy", "--check")
    assert result.exit_code == 0
    assert [line.split(",")[0] for line in result.stdout.splitlines()] == [f"{name}: yes" for name in EXPORTERS]
    assert (
        'huggingface: yes, to be run with mtattn; a class of transformers would need model.norm = "layer'
        in result.stdout
    )


def test_check_names_the_class_of_transformers(tmp_path):
    config = tmp_path / "paper.toml"
    config.write_text('[model]\npreset = "vaswani"\n')
    assert "huggingface: yes, transformers runs it as MarianMTModel\n" in run("--check", config).stdout


def test_check_says_why_not(tmp_path):
    config = tmp_path / "additive.toml"
    config.write_text('[model]\nscore = "additive"\n')
    lines = run("--check", config).stdout.splitlines()
    assert lines[0].startswith("ctranslate2: model.score = 'additive'")
    assert lines[1] == "onnx: yes" and lines[2].startswith("huggingface: yes, ")


def test_check_of_a_model(released):
    assert run(released, "--check").stdout.startswith("ctranslate2: yes")


def test_an_export_reports_its_parity(released, tmp_path):
    lines = tmp_path / "lines.en"
    lines.write_text("a dog\nthe cat sleeps\n")
    result = run(released, "--to", "huggingface", tmp_path / "out", "--lines", lines)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "100.0% of 2 translations are equal" in result.stderr.replace("\n", " ")
    assert (tmp_path / "out" / RECORD).is_file()


@pytest.mark.parametrize(
    ("arguments", "message", "exit_code"),
    [
        ((), "--to", 2),
        (("--to", "ctranslate2"), "--to", 2),
        (("--to", "onnx", "out", "--push", "me/it"), "--push goes with", 2),
        (("--to", "onnx", "out"), "no such folder", 3),
    ],
)
def test_bad_requests(arguments, message, exit_code, tmp_path):
    error = run(tmp_path / "nothing", *arguments).exception
    assert isinstance(error, MtattnError)
    assert error.exit_code == exit_code
    assert message in str(error)


def test_a_missing_extra_is_exit_code_2(released, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    monkeypatch.setitem(sys.modules, "ctranslate2.specs", None)
    error = run(released, "--to", "ctranslate2", tmp_path / "out").exception
    assert isinstance(error, ConfigError)
    assert "pip install 'mtattn[export]'" in str(error)
    assert not list(tmp_path.glob("out*"))


def test_without_a_dev_corpus_it_is_compared_on_what_training_held_out(tmp_path):
    config = tiny_config(write_corpus(tmp_path / "data"), "data.dev=[]", "train.max_steps=1")
    train_tiny(config, tmp_path / "run")
    result = run(tmp_path / "run", "--to", "huggingface", tmp_path / "out")
    assert "translations are equal" in result.stderr.replace("\n", " "), result.stderr
    (tmp_path / "data" / "train.en").unlink()
    result = run(tmp_path / "run", "--to", "huggingface", tmp_path / "out", "--force")
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).endswith("; give source text to compare on with --lines FILE")
