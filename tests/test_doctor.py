"""The doctor: one planted fault, one finding; a clean corpus, none that matters."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mtattn.cli import app
from mtattn.config import load_config
from mtattn.corpus_checks import CHECKS, Finding
from mtattn.corpus_facts import LINE_TESTS, plain_text
from mtattn.doctor import Diagnosis, diagnose, environment, show
from mtattn.errors import ConfigError, CorpusError
from mtattn.progress import Reporter
from mtattn.sides import SideProfile
from mtattn.sources import bundled_data_folder

Pairs = list[tuple[str, str]]
Splits = dict[str, Pairs]
Edit = Callable[[Splits], None]
NUM_TRAIN, NUM_HELD_OUT = 2000, 200


@pytest.fixture(scope="module")
def toy() -> Splits:
    """Sentences of the bundled corpus: in no order, and none in two splits."""
    folder = bundled_data_folder() / "toy"
    sizes = {"train": NUM_TRAIN, "dev": NUM_HELD_OUT, "test": NUM_HELD_OUT}
    return {
        split: list(
            zip(*((folder / f"{split}.{code}").read_text().splitlines()[:size] for code in ("en", "de")), strict=True)
        )
        for split, size in sizes.items()
    }


@pytest.fixture(autouse=True)
def no_machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Looking at the machine takes longer than at a small corpus."""
    if "environment" not in request.node.name:
        monkeypatch.setattr("mtattn.doctor.environment", lambda: {"python": "3"})


def write(folder: Path, splits: Splits) -> list[str]:
    """The corpus as files, and the overrides that name it."""
    for split, pairs in splits.items():
        for side, code in enumerate(("en", "de")):
            text = "".join(pair[side] + "\n" for pair in pairs)
            (folder / f"{split}.{code}").write_bytes(text.encode("utf-8", "surrogateescape"))
    return [f"data.folder={json.dumps(str(folder))}", *(f"data.{split}={split}.{{en,de}}" for split in splits)]


def examine(folder: Path, splits: Splits, edit: Edit, *overrides: str) -> Diagnosis:
    splits = {split: list(pairs) for split, pairs in splits.items()}
    edit(splits)
    return diagnose(load_config(None, [*write(folder, splits), *overrides]), Reporter())


def replace_some(split: str, every: int, change: Callable[[str, str], tuple[str, str]]) -> Edit:
    """Changes each `every`-th pair of a split, the fourth one first."""

    def edit(splits: Splits) -> None:
        for i in range(3, len(splits[split]), every):
            splits[split][i] = change(*splits[split][i])

    return edit


def lose_targets(splits: Splits) -> None:
    """Two target lines in the middle, and the last two source lines, so that the files stay equally long."""
    src, tgt = zip(*splits["train"], strict=True)
    splits["train"] = list(zip(src[:-2], tgt[:1000] + tgt[1002:], strict=True))


def reverse_targets(splits: Splits) -> None:
    src, tgt = zip(*splits["train"], strict=True)
    splits["train"] = list(zip(src, tgt[::-1], strict=True))


def repeat_half(splits: Splits) -> None:
    splits["train"][1000:] = splits["train"][:1000]


def add_alternative(splits: Splits) -> None:
    splits["train"].append((splits["train"][0][0], "Das kann man auch anders sagen."))


def leak(change: Callable[[str], str], of: str, into: str, count: int = NUM_HELD_OUT // 2) -> Edit:
    """Puts sentences of one split into another, from its fourth pair on."""

    def edit(splits: Splits) -> None:
        splits[into][3 : 3 + count] = [(change(src), change(tgt)) for src, tgt in splits[of][:count]]

    return edit


def same(text: str) -> str:
    return text


def shouted(text: str) -> str:
    return f" {text.upper()}!"


MUCH = " und so weiter" * 30
BLANK = [("a word", " ")] * 200
CASES: dict[str, tuple[str, str, list[str], Edit]] = {
    # name: (check, level, where it is first, the fault)
    "blank targets": ("blank", "warning", ["train.de:4"], replace_some("train", 10, lambda s, t: (s, " "))),
    "a blank line": ("blank", "note", ["dev.en:4"], replace_some("dev", 999, lambda s, t: ("", t))),
    "nothing but blanks": ("blank", "fatal", ["train.de:1"], lambda splits: splits.update(train=BLANK)),
    "copies": ("identical", "warning", ["train.de:4"], replace_some("train", 10, lambda s, t: (s, s))),
    "one file twice": ("identical", "fatal", ["train.de:4"], replace_some("train", 1, lambda s, t: (s, s))),
    "some swapped": ("swapped", "warning", ["train.en:4"], replace_some("train", 20, lambda s, t: (t, s))),
    "dev swapped": ("swapped", "fatal", ["dev.en:4"], replace_some("dev", 1, lambda s, t: (t, s))),
    "Cyrillic": (
        "foreign script",
        "warning",
        ["train.de:4"],
        replace_some("train", 50, lambda s, t: (s, "Здравствуй")),
    ),
    "look-alike": (
        "mixed word",
        "warning",
        ["train.en:4"],
        replace_some("train", 50, lambda s, t: (s + " c\u043ede", t)),
    ),
    "much longer": ("length ratio", "warning", ["train.en:4"], replace_some("train", 50, lambda s, t: (s, t + MUCH))),
    "lost targets": ("shifted", "fatal", [], lose_targets),
    "another file": ("unrelated", "warning", ["train.en:1"], reverse_targets),
    "repeated": ("duplicate", "note", ["train.en:1001"], repeat_half),
    "an alternative": ("several targets", "note", ["train.en:1"], add_alternative),
    "test in train": ("leaked", "note", ["train.en:4"], leak(same, "test", "train")),
    "dev in test": ("leaked", "warning", ["test.en:4"], leak(same, "dev", "test")),
    "test nearly in train": ("nearly leaked", "fatal", ["train.en:4"], leak(shouted, "test", "train")),
    "once nearly in train": ("nearly leaked", "note", ["train.en:4"], leak(shouted, "test", "train", count=1)),
    "new character": ("unseen characters", "note", [], replace_some("test", 999, lambda s, t: (s + " \u2603", t))),
    "bad bytes": ("invalid utf-8", "fatal", ["train.de:4"], replace_some("train", 999, lambda s, t: (s, t + "\udcff"))),
    "empty file": ("unreadable", "fatal", [], lambda splits: splits["dev"].clear()),
}


def found(diagnosis: Diagnosis, check: str) -> Finding:
    """The worst finding of a check."""
    return next(finding for finding in diagnosis.findings if finding.check == check)


@pytest.mark.parametrize("case", CASES)
def test_finds_a_planted_fault(case: str, tmp_path: Path, toy: Splits) -> None:
    check, level, first, edit = CASES[case]
    diagnosis = examine(tmp_path, toy, edit)
    finding = found(diagnosis, check)
    assert finding.level == level
    assert [Path(place).name for place in finding.where[: len(first)]] == first
    assert {other.check for other in diagnosis.findings if other.level == "fatal"} <= {check}
    assert diagnosis.num_fatal == (level == "fatal")


def test_every_check_has_a_case() -> None:
    assert {check for check, *_ in CASES.values()} == set(CHECKS)
    assert {"blank", "identical", "swapped", "foreign script", "mixed word"} == set(LINE_TESTS) <= set(CHECKS)


def test_a_clean_corpus_has_no_finding(tmp_path: Path, toy: Splits) -> None:
    diagnosis = examine(tmp_path, toy, lambda splits: None)
    assert diagnosis.findings == []
    assert diagnosis.splits["train"]["pairs"] == NUM_TRAIN
    lengths = sorted(len(src.split()) for src, _ in toy["train"])
    assert diagnosis.splits["train"]["src_words"]["max"] == lengths[-1]
    assert diagnosis.splits["train"]["src_words"]["mean"] == pytest.approx(sum(lengths) / NUM_TRAIN, abs=0.05)


def test_the_bundled_corpus_is_sound() -> None:
    assert not [f for f in diagnose(load_config("toy"), Reporter()).findings if f.level != "note"]


def test_says_where_and_how_far_the_sides_slipped(tmp_path: Path, toy: Splits) -> None:
    finding = found(examine(tmp_path, toy, lose_targets), "shifted")
    assert "source line n goes with target line n-2" in finding.what
    assert abs(int(finding.where[0].rpartition(":")[2]) - 1001) <= 25


def test_finds_the_lost_line_of_files_of_unequal_length(tmp_path: Path, toy: Splits) -> None:
    overrides = write(tmp_path, toy)
    target = tmp_path / "train.de"
    lines = target.read_text().splitlines(keepends=True)
    target.write_text("".join(lines[:700] + lines[750:]))
    diagnosis = diagnose(load_config(None, overrides), Reporter())
    assert "train.de has 1950 lines" in found(diagnosis, "unreadable").what
    assert "n-50" in found(diagnosis, "shifted").what


@pytest.mark.parametrize(
    ("override", "case", "level"),
    [
        ("data.errors=skip", "bad bytes", "note"),
        ("filter.leaked=false", "test in train", "fatal"),
        ("filter.duplicate=false", "repeated", "warning"),
    ],
)
def test_what_training_drops_by_itself_is_a_note(
    override: str, case: str, level: str, tmp_path: Path, toy: Splits
) -> None:
    check, _, _, edit = CASES[case]
    assert found(examine(tmp_path, toy, edit, override), check).level == level


def test_a_joined_corpus_names_the_right_file(tmp_path: Path, toy: Splits) -> None:
    swapped = {"train": toy["train"], "more": [(tgt, src) for src, tgt in toy["dev"]]}
    folder = write(tmp_path, swapped)[0]
    config = load_config(None, [folder, 'data.train=["train.{en,de}", "more.{en,de}"]'])
    finding = found(diagnose(config, Reporter()), "swapped")
    assert Path(finding.where[0]).name == "more.en:1"


def test_no_training_corpus_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no training corpus is named"):
        diagnose(load_config(None, ["data.train=[]"]), Reporter())


def test_a_missing_file_is_a_finding_and_the_rest_is_read(tmp_path: Path, toy: Splits) -> None:
    overrides = write(tmp_path, toy)
    (tmp_path / "test.de").unlink()
    diagnosis = diagnose(load_config(None, overrides), Reporter())
    assert "test.de: no such file" in found(diagnosis, "unreadable").what
    assert diagnosis.splits["train"]["pairs"] == NUM_TRAIN


def test_sides_are_told_apart_without_spaces_or_letters_in_common() -> None:
    profile = SideProfile([("I am here .", "私はここにいます。"), ("You are there .", "あなたはそこにいます。")] * 10)
    assert profile.swapped("彼はここにいます。", "I am there .")
    assert not profile.swapped("I am there .", "彼はここにいます。")
    assert not profile.swapped("Tom", "Tom")
    assert profile.foreign("I am there .", side=1)
    assert not profile.foreign("トムはここにいます。", side=1)
    assert not profile.foreign("OK 123", side=1)  # too few letters to tell


def test_near_copies_have_one_plain_text() -> None:
    assert plain_text(" “Ａ  Dog,” he said…") == plain_text("a dog HE SAID") == "a dog he said"
    assert plain_text("नमस्ते!") == "नमस्ते"  # vowel signs are part of the word


def test_environment_names_what_a_run_depends_on() -> None:
    found = environment()
    assert {"python", "torch", "sentencepiece", "datasets", "sacrebleu", "CPUs", "GPUs", "compiler"} <= set(found)
    assert found["precision"].startswith(("float32", "bfloat16"))
    assert all(found.values())


def test_command_reports_and_exits_with_7_on_a_fatal_finding(tmp_path: Path, toy: Splits) -> None:
    write(tmp_path, toy)
    files = ["--src-file", str(tmp_path / "train.en"), "--tgt-file"]
    sound = CliRunner().invoke(app, ["doctor", *files, str(tmp_path / "train.de"), "--json"])
    assert sound.exit_code == 0
    assert json.loads(sound.stdout)["splits"]["train"]["pairs"] == NUM_TRAIN
    broken = CliRunner().invoke(app, ["doctor", *files, str(tmp_path / "train.en"), "--json"])
    assert isinstance(broken.exception, CorpusError)
    assert broken.exception.exit_code == 7
    report = json.loads(broken.stdout)
    assert report["num_fatal"] == 1
    (fatal,) = [finding for finding in report["findings"] if finding["level"] == "fatal"]
    assert fatal["check"] == "identical"
    assert set(fatal) == {"level", "check", "split", "what", "where", "why", "fix"}


def test_report_for_a_person(tmp_path: Path, toy: Splits) -> None:
    out = StringIO()
    show(examine(tmp_path, toy, CASES["dev swapped"][-1]), Console(file=out, width=80))
    text = out.getvalue()
    assert "fatal: dev, swapped" in text
    assert "dev.en:4" in text
    assert "fix: exchange the two files" in text
    assert "1 fatal" in text


def test_report_without_a_corpus_says_how_to_name_one() -> None:
    out = StringIO()
    show(diagnose(None, Reporter()), Console(file=out))
    assert "--src-file" in out.getvalue()


def test_one_sentence_of_test_that_is_often_in_train_spoils_one_alone(tmp_path: Path) -> None:
    def some(name: str, count: int) -> list[tuple[str, str]]:
        return [(f"{name} sentence number {n} .", f"{name} Satz Nummer {n} .") for n in range(count)]

    write(
        tmp_path,
        {
            "train": [*some("train", 500), *[("Thank you!", "Danke schön!")] * 50],
            "test": [*some("test", 199), ("Thank you.", "Danke schön.")],
        },
    )
    data = {"train": "train.{en,de}", "test": "test.{en,de}"}
    config = load_config(None, [f'data.folder="{tmp_path}"', *(f'data.{k}="{v}"' for k, v in data.items())])
    (finding,) = [each for each in diagnose(config, Reporter()).findings if each.check == "nearly leaked"]
    assert finding.level == "note" and "50 of 550 pairs" in finding.what
