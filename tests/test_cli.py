"""The command line's contract, in process: exit codes, one output line for each input line, help without torch."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import tiny_config, train_tiny, write_corpus

from mtattn import __version__
from mtattn.config import load_config
from mtattn.errors import (
    ConfigError,
    CorpusError,
    DivergedError,
    FileError,
    ModelError,
    MtattnError,
    RunInUseError,
)
from mtattn.interrupts import Interrupted
from mtattn.loading import weights_sha256
from mtattn.sources import CorpusSource
from mtattn.storage import MANIFEST, write_folder

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    run = tmp_path_factory.mktemp("trained") / "run"
    train_tiny(tiny_config(corpus), run)
    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MtattnError("x"), 1),
        (ConfigError("x"), 2),
        (ModelError("x"), 3),
        (FileError("x"), 4),
        (RunInUseError("x"), 5),
        (DivergedError("x"), 6),
        (CorpusError("x"), 7),
        (PermissionError(13, "Permission denied", "some/file"), 4),
        (ZeroDivisionError("x"), 1),
        (Interrupted(143), 143),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_every_error_has_its_exit_code_and_one_line(
    error: BaseException, code: int, mtattn_: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("mtattn.command.understand", fail)
    exit_code, out, err = mtattn_("train", "toy", "--dry-run")
    assert (exit_code, out) == (code, "")
    if isinstance(error, Exception):
        assert err.startswith("error: ") and err.count("\n") == 1
    if isinstance(error, PermissionError):
        assert err == "error: some/file: Permission denied\n"
    if isinstance(error, ZeroDivisionError):
        assert err == "error: unexpected ZeroDivisionError: x; --debug shows where, please report it\n"


@pytest.mark.parametrize("command", [[], ["train"]])
def test_the_reader_of_a_help_text_may_leave(command: list[str], tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as pipe:
        program = [sys.executable, "-m", "mtattn", *command, "--help"]
        done = subprocess.run(program, cwd=tmp_path, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_debug_shows_the_traceback(mtattn_: Run) -> None:
    code, _, err = mtattn_("--debug", "train", "toi")
    assert code == ConfigError.exit_code
    assert err.startswith("Traceback") and "\nerror: no config file or bundled config named 'toi'" in err


def test_a_dry_run_prints_a_config_that_reads_back(mtattn_: Run, tmp_path: Path) -> None:
    code, out, err = mtattn_("train", "toy", "--dry-run", "--set", "train.max_epochs=3")
    assert (code, err) == (0, "config: toy; run directory: runs/toy\n")
    (tmp_path / "resolved.toml").write_text(out)
    assert load_config("resolved.toml") == load_config("toy", ["train.max_epochs=3"])
    assert not (tmp_path / "runs").exists()


def test_the_last_override_wins(mtattn_: Run) -> None:
    _, out, _ = mtattn_("train", "--dry-run", "--set", "train.seed=3", "--set", "train.seed=4")
    assert "seed = 4\n" in out and "seed = 3\n" not in out


def test_files_need_no_config(mtattn_: Run, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    for language, name in (("en", "a b.en"), ("de", "x.de")):
        (tmp_path / f"train.{language}").rename(tmp_path / name)
    files = ["--src-file", "a b.en", "--tgt-file", "x.de", "--dev-src", "d.en", "--dev-tgt", "d.de"]
    code, out, err = mtattn_("train", *files, "--dry-run", "--max-minutes", 7)
    assert code == 0
    assert err.startswith("config: chosen for your files; run directory: runs/a b\nchosen for 60 pairs")
    given = ['data.train={path="a b.en",target="x.de"}', 'data.dev={path="d.en",target="d.de"}', "train.max_minutes=7"]
    Path("resolved.toml").write_text(out)
    resolved = load_config("resolved.toml")
    assert (resolved.data, resolved.train.max_minutes) == (load_config(None, given).data, 7)
    _, again, err = mtattn_("train", *(part for setting in given for part in ("--set", setting)), "--dry-run")
    assert "; run directory: runs/train\nchosen for 60 pairs" in err and again == out
    assert err.splitlines()[-2].startswith("languages: en to de")
    for line in err.splitlines()[2:-2]:
        key, value = line.split("  (")[0].split(" = ")
        section, name = key.split(".")
        assert str(getattr(getattr(resolved, section.strip()), name)) == value


@pytest.mark.parametrize(
    ("names", "overrides", "languages"),
    [
        (("train.fr", "train.it"), [], ("fr", "it")),
        (("a.b.quy", "x.es"), [], ("quy", "es")),
        (("train.fr", "train.it"), ["data.tgt=oc"], ("fr", "oc")),
        (("fr.txt", "it.txt"), [], ("en", "de")),
        (("a.fr", "b.fr"), [], ("en", "de")),
        (("train.src", "train.tgt"), [], ("en", "de")),
    ],
)
def test_languages_are_what_file_names_end_in(
    mtattn_: Run, tmp_path: Path, names: tuple[str, str], overrides: list[str], languages: tuple[str, str]
) -> None:
    write_corpus(tmp_path)
    for language, name in zip(("en", "de"), names, strict=True):
        (tmp_path / f"train.{language}").rename(tmp_path / name)
    flags = ["--src-file", names[0], "--tgt-file", names[1], *(part for o in overrides for part in ("--set", o))]
    _, out, err = mtattn_("train", *flags, "--dry-run")
    Path("resolved.toml").write_text(out)
    data = load_config("resolved.toml").data
    assert (data.src, data.tgt) == languages
    assert f"languages: {languages[0]} to {languages[1]} " in err


def test_files_the_other_way_round_are_not_learnt_from(mtattn_: Run, trained: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    swapped = ["--src-file", "train.de", "--tgt-file", "train.en"]
    for flags in (["toy"], ["--from", trained]):
        code, _, err = mtattn_("train", *flags, *swapped, "--dry-run")
        assert code == ConfigError.exit_code
        assert "they are de to en, but the model translates en to de; exchange them, or" in err
    meant = ["--set", "data.src=de", "--set", "data.tgt=en"]
    assert mtattn_("train", "toy", *swapped, *meant, "--dry-run")[0] == 0


def test_a_misspelt_run_trains_nothing(mtattn_: Run) -> None:
    code, _, err = mtattn_("train", "--run", "runs/mien")
    assert code == ConfigError.exit_code and "error: runs/mien: no run was begun here; check the name" in err
    assert not Path("runs").exists()


def test_a_run_as_config_says_how_it_goes_on(mtattn_: Run, trained: Path) -> None:
    code, _, err = mtattn_("train", trained)
    assert code == ConfigError.exit_code and f"with a run, --run {trained} goes on" in err


def test_references_and_sources_exchanged_are_not_scored(mtattn_: Run, trained: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    code, _, err = mtattn_("eval", trained, "--src-file", "dev.de", "--ref-file", "dev.en")
    assert code == ConfigError.exit_code
    assert (
        "--ref-file dev.en: by their names they are de to en, but the model translates en to de; exchange them" in err
    )


def test_one_file_for_both_sides_is_noticed(mtattn_: Run, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    code, _, err = mtattn_("train", "--src-file", "train.en", "--tgt-file", "train.en")
    assert code == ConfigError.exit_code and "--src-file and --tgt-file are both train.en: two files belong" in err


def test_the_version(mtattn_: Run) -> None:
    assert mtattn_("--version")[:2] == (0, f"{__version__}\n")


def test_a_run_is_gone_on_with_by_its_name_alone(mtattn_: Run, trained: Path) -> None:
    code, out, _ = mtattn_("train", "--run", trained, "--dry-run")
    assert (code, out) == (0, (trained / "config.toml").read_text())
    code, _, err = mtattn_("train", "--run", trained, "--fresh")
    assert code == ConfigError.exit_code and "name the config or the files to start over with" in err
    assert (trained / "config.toml").is_file()


def test_files_named_for_a_run_that_goes_on_are_those_of_here(mtattn_: Run, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    Path("own.toml").write_text('[data]\nfolder = "corpus"\ntrain = "train.{en,de}"\ndev = "dev.{en,de}"\n')
    small = ["model.preset=tiny", "tokenizer.vocab_size=300", "train.max_steps=2", "train.precision=float32"]
    flags = [part for setting in small for part in ("--set", setting)]
    assert mtattn_("train", "own.toml", "--run", "run", *flags)[0] == 0
    for side in ("en", "de"):
        Path(f"train.{side}").write_text("another text\n")
    files = ["--src-file", "train.en", "--tgt-file", "train.de"]
    code, _, err = mtattn_("train", "--run", "run", *files)
    assert code == CorpusError.exit_code
    assert f"training files changed since this run began: {tmp_path}/" in err


def test_a_name_that_is_no_text_is_refused(mtattn_: Run) -> None:
    for flag in ("--src-file", "--tgt-file"):
        files = {"--src-file": "a.en", "--tgt-file": "a.de", flag: "a\udcff.en"}
        code, _, err = mtattn_("train", *(part for pair in files.items() for part in pair))
        assert code == ConfigError.exit_code and "'a\\udcff.en': the name is not UTF-8" in err


def test_standard_output_has_to_take_what_is_printed(
    mtattn_: Run, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = (
        ("train", "toy", "--dry-run"),
        ("inspect", trained, "in.txt"),
        ("eval", trained, "--split", "dev"),
        ("doctor",),
        ("export", "--check", "toy"),
    )
    Path("in.txt").write_text("a b c\n")

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    for stream, said in ((None, "is closed"), (Full(), "cannot be written: No space left on device")):
        for command in commands:
            monkeypatch.setattr(sys, "stdout", stream)
            code, _, err = mtattn_(*command)
            assert (code, f"error: standard output: {said}" in err) == (FileError.exit_code, True), err


def test_flags_that_exclude_each_other(mtattn_: Run, trained: Path) -> None:
    files = ["--src-file", "a", "--ref-file", "b"]
    for command, said in (
        (["eval", trained, "--split", "test", *files], "give one of the two"),
        (["export", trained, "out", "--check"], "--check writes nothing"),
        (["export", trained, "--force", "--check"], "--check writes nothing"),
        (
            ["translate", trained, "--beam", 2, "--set", "decode.search=sample"],
            "--beam is for search = beam, and this is",
        ),
        (
            ["translate", trained, "--set", "decode.top_k=3"],
            "--set decode.top_k is for search = sample, and this is beam",
        ),
    ):
        code, _, err = mtattn_(*command)
        assert code == ConfigError.exit_code and said in err


def test_a_dash_is_the_standard_streams(mtattn_: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in.txt").write_text("a b c\n")
    for command in ("translate", "inspect"):
        _, expected, _ = mtattn_(command, trained, "in.txt")
        with open("in.txt") as file:
            monkeypatch.setattr(sys, "stdin", file)
            flags = ["-o", "-"] if command == "translate" else []
            assert mtattn_(command, trained, "-", *flags)[:2] == (0, expected)
    assert not Path("-").exists()


def test_a_config_says_which_languages_and_what_else_to_validate_on(mtattn_: Run) -> None:
    _, out, err = mtattn_("train", "toy", "--src-file", "train.fr", "--tgt-file", "train.it", "--dry-run")
    assert 'src = "en"\ntgt = "de"\n' in out
    assert "validated on the dev corpus of toy; --dev-src and --dev-tgt name your own" in err


def test_files_are_found_from_here_whatever_folder_the_config_names(mtattn_: Run, tmp_path: Path) -> None:
    files = ["--src-file", "train.en", "--tgt-file", "\N{GRINNING FACE}.de"]
    code, out, _ = mtattn_("train", "toy", *files, "--dry-run")
    assert code == 0
    Path("resolved.toml").write_text(out)
    data = load_config("resolved.toml").data
    assert data.train == CorpusSource(str(tmp_path / "train.en"), target=str(tmp_path / "\N{GRINNING FACE}.de"))
    assert (data.folder, data.dev) == ("bundled:toy", load_config("toy").data.dev)
    Path("mine.toml").write_text("")
    _, out, _ = mtattn_("train", "mine.toml", "--src-file", "~/a.en", "--tgt-file", "a.de", "--dry-run")
    Path("resolved.toml").write_text(out)
    assert load_config("resolved.toml").data.train == CorpusSource("~/a.en", target="a.de")


def test_a_section_that_is_no_table(mtattn_: Run, trained: Path) -> None:
    for flags in (["--set", "finetune=base"], ["--from", trained, "--set", "data=train.en"]):
        code, _, err = mtattn_("train", "toy", *flags)
        assert (code, err.count("\n")) == (2, 1)
        assert "it should be a table" in err


def test_fine_tuning_from_two_files(mtattn_: Run, trained: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    files = ["--src-file", "train.en", "--tgt-file", "train.de", "--dev-src", "dev.en", "--dev-tgt", "dev.de"]
    code, out, err = mtattn_("train", "--from", trained, *files, "--mix", 0.25, "--dry-run")
    assert code == 0
    Path("resolved.toml").write_text(out)
    resolved = load_config("resolved.toml")
    assert (resolved.finetune.model, resolved.finetune.mix) == (str(trained), 0.25)
    assert resolved.model == load_config(str(trained / "config.toml")).model
    assert f"\nfine-tuning {trained} (weights " in err
    assert "finetune.lr_factor = 0.2: learning rates 0.0004 (AdamW) and 0.004 (Muon) instead of 0.002 and 0.02" in err
    limits = ["--set", "train.max_steps=2", "--set", "train.precision=float32", "--run", "tuned"]
    code, _, err = mtattn_("train", "--from", trained, *files, *limits)
    assert code == 0
    assert "Old dev set: BLEU" in err and "New dev set: BLEU" in err
    assert mtattn_("train", "--from", "nowhere", *files, "--run", "other")[0] == 3


def test_nbest_and_json(mtattn_: Run, trained: Path) -> None:
    Path("in.txt").write_text("a b c\n\n")
    code, out, _ = mtattn_("translate", trained, "in.txt", "--nbest", 3, "--json")
    first, blank = map(json.loads, out.splitlines())
    assert code == 0
    scores = [hypothesis["score"] for hypothesis in first["hypotheses"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert first["text"] == first["hypotheses"][0]["text"]
    assert (blank["text"], blank["hypotheses"]) == ("", [])
    _, plain, _ = mtattn_("translate", trained, "in.txt", "--nbest", 3)
    assert plain.split("\n")[0].split("\t") == [hypothesis["text"] for hypothesis in first["hypotheses"]]


def test_a_missing_input_leaves_no_output_file(mtattn_: Run, trained: Path) -> None:
    assert mtattn_("translate", trained, "nowhere", "-o", "out.txt")[0] == 4
    assert not Path("out.txt").exists()


def test_a_released_model_can_be_moved_anywhere(mtattn_: Run, trained: Path) -> None:
    Path("in.txt").write_text("a b c\nh g\n")
    _, expected, _ = mtattn_("translate", trained, "in.txt")
    (Path("moved")).mkdir()
    for path in (trained / "model").iterdir():
        (Path("moved") / path.name).write_bytes(path.read_bytes())
    assert mtattn_("translate", "moved", "in.txt")[:2] == (0, expected)


def test_eval_prints_one_json_object(mtattn_: Run, trained: Path) -> None:
    code, out, _ = mtattn_("eval", trained, "--split", "dev", "--json")
    scores = json.loads(out)
    assert code == 0
    assert set(scores) == {"bleu", "chrf", "ter", "signature", "num_sentences", "scored", "weights", "seconds"}
    assert scores["weights"] == weights_sha256(trained)
    assert scores["scored"] == "dev"
    assert set(scores["signature"]) == {"bleu", "chrf", "ter"}
    assert scores["num_sentences"] == 4 and scores["seconds"] >= 0


def test_eval_of_a_corpus_that_is_gone_says_what_else_to_score(mtattn_: Run, trained: Path) -> None:
    files = {path.name: path.read_bytes() for path in (trained / "model").iterdir() if path.name != MANIFEST}
    files["config.toml"] = files["config.toml"].replace(b"dev.", b"away.")
    write_folder(Path("elsewhere"), files)
    code, _, err = mtattn_("eval", "elsewhere", "--split", "dev")
    assert code == CorpusError.exit_code
    assert "no such file" in err and "give --src-file and --ref-file" in err


def test_eval_of_a_perfect_translation(mtattn_: Run, trained: Path) -> None:
    Path("src").write_text("a b c d e\nh g f e d\n")
    _, out, _ = mtattn_("translate", trained, "src", "--beam", 1)
    Path("ref").write_text(out)
    code, out, _ = mtattn_("eval", trained, "--src-file", "src", "--ref-file", "ref", "--set", "decode.beam_size=1")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["bleu", "chrf", "ter"]
    assert [float(line.split()[1]) for line in lines[:3]][1:] == [100.0, 0.0]
    assert all("version:" in line for line in lines[:3])
    assert lines[3].startswith("2 sentences in ")
