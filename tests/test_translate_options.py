"""The options of `mtattn translate`, and bad input: each with its message and exit code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mtattn.cli
from mtattn.checkpoint import weights_of
from mtattn.config import load_config
from mtattn.storage import tensors_to_bytes, write_folder
from mtattn.tokenizer import TokenizerConfig, train_tokenizer

SIZES = ("d_model=16", "d_ff=24", "num_heads=4", "encoder_layers=2", "decoder_layers=2")
LIMITS = ("decode.max_len_ratio=0.5", "decode.max_len_extra=6", "filter.max_len=40")
TEXT = "Anna is baking a cake.\n\nWhere is my old umbrella?\nWe are tired.\n"


@pytest.fixture(scope="module")
def make_run(make_model, tokenizer, tmp_path_factory):
    """Writes a released model with random weights."""

    def make(seed: int, tokenizer=tokenizer, *overrides: str) -> Path:
        config = load_config(None, [*(f"model.{size}" for size in SIZES), *LIMITS, *overrides])
        model = make_model(tokenizer.src_vocab_size, seed=seed)
        path = tmp_path_factory.mktemp("run") / "model"
        weights = {"model.safetensors": tensors_to_bytes(weights_of(model))}
        write_folder(path, {"config.toml": config.to_toml().encode(), **tokenizer.to_files(), **weights})
        return path

    return make


@pytest.fixture(scope="module")
def run(make_run) -> Path:
    return make_run(0)


@pytest.fixture
def mtattn_(mtattn_):
    """Call the program in a folder that has an input."""
    Path("in.txt").write_text(TEXT)
    return mtattn_


@pytest.fixture
def fails(mtattn_, run):
    """Checks that `translate RUN in.txt ...` ends with this exit code, one line that says why, and nothing written."""

    def check(code: int, message: str, *arguments: object) -> None:
        found, out, err = mtattn_("translate", run, "in.txt", *arguments)
        assert (found, out) == (code, "")
        assert re.search(message, err), err
        assert err.startswith("error: ") and err.count("\n") == 1

    return check


def lines(mtattn_, run: Path, *arguments: object) -> list[str]:
    """What `translate RUN in.txt ...` writes."""
    code, out, _ = mtattn_("translate", run, "in.txt", *arguments)
    assert code == 0
    return out.removesuffix("\n").split("\n")


def objects(mtattn_, run: Path, *arguments: object) -> list[dict]:
    return [json.loads(line) for line in lines(mtattn_, run, "--json", *arguments)]


def scores(found: list[dict]) -> list[float]:
    return [hypothesis["score"] for o in found for hypothesis in o["hypotheses"]]


# --set


def test_set_reaches_all_of_decode(mtattn_, run):
    hypotheses = [
        o["hypotheses"]
        for o in objects(mtattn_, run, "--set", "decode.max_len_ratio=0", "--set", "decode.max_len_extra=3")
    ]
    assert [len(h[0]["token_log_probs"]) for h in hypotheses if h] == [3, 3, 3]
    beam = objects(mtattn_, run, "--set", "decode.nbest=2", "--set", "decode.length_penalty=0")
    assert [len(o["hypotheses"]) for o in beam] == [2, 0, 2, 2]
    assert beam[0]["hypotheses"][0]["score"] == beam[0]["hypotheses"][0]["log_prob"]


def test_samples_repeat_with_their_seed(mtattn_, run):
    sample = ("--set", "decode.search=sample", "--set", "decode.temperature=0.9", "--nbest", "3")
    first = lines(mtattn_, run, *sample)
    assert lines(mtattn_, run, *sample) == first
    assert lines(mtattn_, run, *sample, "--set", "decode.seed=1") != first
    assert [line.count("\t") for line in first] == [2, 0, 2, 2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decode.beam_size=0", r"decode: beam_size = 0: it must be from 1 to 1000"),
        ("decode.temperature=0.0", r"temperature = 0.0: it must be from 0.001"),
        ("decode.bam_size=3", r"decode.bam_size is not a setting; did you mean 'beam_size'"),
        ("decode.top_k=many", r"decode.top_k = 'many'"),
        ("decode.top_k", r"write it as section.key=value"),
        ("model.d_model=32", r"of a trained model only \[decode\] can be set"),
        ("beam_size=3", r"of a trained model only \[decode\] can be set"),
    ],
)
def test_a_wrong_setting_is_named(fails, override, message):
    fails(2, message, "--set", override)


def test_beam_and_nbest_out_of_range(fails):
    fails(2, r"beam_size = 0: it must be from 1 to 1000", "--beam", "0")
    fails(2, r"nbest = 0: it must be from 1 to beam_size", "--nbest", "0")
    fails(2, r"nbest = 3: it must be from 1 to beam_size \(2\)", "--beam", "2", "--nbest", "3")
    fails(2, r"nbest = 2000: it must be from 1 to beam_size \(1000\)", "--nbest", "2000")


def test_nbest_alone_widens_the_beam(mtattn_, run):
    assert lines(mtattn_, run, "--nbest", "9")[0].count("\t") == 8


# --prefix


def test_prefix_forces_how_each_translation_starts(mtattn_, run):
    Path("prefix.txt").write_text("Anna\n\n\nWir sind\n")
    forced, free = lines(mtattn_, run, "--prefix", "prefix.txt"), lines(mtattn_, run)
    assert forced[0].startswith("Anna") and forced[3].startswith("Wir sind")
    assert forced[1:3] == free[1:3]


@pytest.mark.parametrize(("prefixes", "count"), [("Anna\n", 1), ("\n" * 6, 6), ("", 0)])
def test_unequal_numbers_of_prefixes(fails, prefixes, count):
    Path("prefix.txt").write_text(prefixes)
    found = 4 if count > 4 else f"more than {count}"
    fails(7, rf"{found} lines to translate, but {count} lines of prefixes", "--prefix", "prefix.txt")


def test_a_prefix_of_a_blank_line_is_said(mtattn_, run):
    Path("blank.txt").write_text("\n  \nanna\n\u2581\n", encoding="utf-8")  # the last is blank to the tokenizer
    Path("prefix.txt").write_text("Anna\n\n\nAnna\n")
    code, out, err = mtattn_("translate", run, "blank.txt", "--prefix", "prefix.txt")
    assert (code, out.count("\n"), out.split("\n")[0]) == (0, 4, "")
    assert "warning: 2 prefixes stand beside blank lines, which stay blank" in err


def test_a_prefix_without_room_is_said(mtattn_, run):
    Path("prefix.txt").write_text("Wo ist mein alter Regenschirm und wo ist mein neuer Hut, Anna?\n\n\n\n")
    code, out, err = mtattn_("translate", run, "in.txt", "--prefix", "prefix.txt", "--json")
    assert (code, out.count("\n")) == (0, 4)
    assert "prefix-missed" in json.loads(out.split("\n")[0])["flags"]
    assert "warning: 1 prefixes did not fit" in err


def test_a_missing_prefix_file(fails):
    fails(4, r"nowhere.txt: cannot be read", "--prefix", "nowhere.txt")


# --glossary


def test_glossary_terms_appear_and_the_rate_is_said(mtattn_, run):
    Path("terms.tsv").write_text("cake\tTorte\numbrella\tSchirm\nold\talte\n")
    code, out, err = mtattn_("translate", run, "in.txt", "--glossary", "terms.tsv", "--set", "decode.max_len_extra=12")
    translations = out.split("\n")
    assert code == 0
    assert re.search(r"\bTorte\b", translations[0])
    assert re.search(r"\bSchirm\b", translations[2]) and re.search(r"\balte\b", translations[2])
    assert "glossary: 3 of 3 terms (100.0 %) stand in the translations; 0 did by themselves" in err


def test_a_glossary_term_without_room_is_flagged(mtattn_, run):
    Path("terms.tsv").write_text("cake\tDonaudampfschifffahrtsgesellschaft\n")
    found = objects(mtattn_, run, "--glossary", "terms.tsv")
    assert ["glossary-missed" in o["flags"] for o in found] == [True, False, False, False]


def test_glossary_terms_that_cannot_be_used(fails, mtattn_, make_run, toy_lines):
    Path("terms.tsv").write_text("cake\tTorte\ncake Kuchen\n")
    fails(2, r"terms.tsv:2: expected a source term, one tab and a target term", "--glossary", "terms.tsv")
    fails(4, r"nowhere.tsv: cannot be read", "--glossary", "nowhere.tsv")
    folding, _ = train_tokenizer(*toy_lines, TokenizerConfig(vocab_size=600))
    Path("terms.tsv").write_text("cake\tTorte\nfinal\tﬁnal\n")
    code, out, err = mtattn_("translate", make_run(0, folding), "in.txt", "--glossary", "terms.tsv")
    assert (code, out) == (2, "")
    assert "terms.tsv:2: the tokenizer cannot spell 'ﬁnal': it would write 'final'" in err


# --ensemble


def test_an_ensemble_averages(mtattn_, run, make_run):
    other = make_run(1)
    one, two = objects(mtattn_, run), objects(mtattn_, other)
    both, turned = objects(mtattn_, run, "--ensemble", other), objects(mtattn_, other, "--ensemble", run)
    assert scores(both) == pytest.approx(scores(turned), abs=1e-4)
    assert [o["text"] for o in both] == [o["text"] for o in turned]
    assert scores(both) != pytest.approx(scores(one), abs=1e-2) and scores(both) != pytest.approx(scores(two), abs=1e-2)
    alike = objects(mtattn_, run, "--ensemble", run, "--ensemble", run)
    assert [o["text"] for o in alike] == [o["text"] for o in one]
    assert scores(alike) == pytest.approx(scores(one), abs=1e-4)


def test_an_ensemble_has_one_vocabulary(fails, make_run, toy_lines):
    other, _ = train_tokenizer(*toy_lines, TokenizerConfig(vocab_size=600, normalization="nfkc"))
    fails(3, r"its tokenizer is not that of .*one vocabulary", "--ensemble", make_run(1, other))
    fails(3, r"nowhere: no such folder", "--ensemble", "nowhere")


def test_an_ensemble_splits_lines_for_its_shortest_member(mtattn_, run, make_run, tokenizer):
    other = make_run(1, tokenizer, "filter.max_len=9")
    assert any("split" in o["flags"] for o in objects(mtattn_, run, "--ensemble", other))
    assert not any("split" in o["flags"] for o in objects(mtattn_, run))


def test_an_ensemble_is_quantised_as_asked(fails, mtattn_, run, make_run, tokenizer):
    int8 = ("--set", "decode.quantization=int8")
    plain, alone = objects(mtattn_, run), objects(mtattn_, run, *int8)
    alike = objects(mtattn_, run, "--ensemble", run, *int8)
    assert scores(alike) == pytest.approx(scores(alone), abs=1e-5)
    assert scores(alike) != pytest.approx(scores(plain), abs=1e-4)
    other = make_run(1, tokenizer, 'model.position={kind = "alibi"}')
    fails(2, r"model: quantization = 'int8' is not possible for this model", "--ensemble", other, *int8)


# --mbr


@pytest.mark.parametrize("search", [(), ("--set", "decode.search=sample")])
def test_mbr_takes_one_of_its_candidates(mtattn_, run, search):
    candidates = lines(mtattn_, run, "--nbest", "6", *search)
    chosen, two = lines(mtattn_, run, "--mbr", "6", *search), lines(mtattn_, run, "--mbr", "6", "--nbest", "2", *search)
    for i in (0, 2, 3):
        assert chosen[i] in candidates[i].split("\t")
        assert two[i].split("\t")[0] == chosen[i] and two[i].count("\t") <= 1
    assert chosen[1] == ""


def test_mbr_out_of_range(fails):
    fails(2, r"--mbr 1: give at least 2 candidates", "--mbr", "1")
    fails(2, r"--mbr 3: give at least 2 candidates, and at least --nbest \(4\)", "--mbr", "3", "--nbest", "4")
    fails(2, r"--mbr 2000: give at least 2 candidates, .* but at most 1000", "--mbr", "2000")
    fails(2, r"--mbr 8: needs as many hypotheses, and --beam is 4", "--mbr", "8", "--beam", "4")


def test_all_options_go_together(mtattn_, run, make_run):
    Path("prefix.txt").write_text("Anna\n\n\n\n")
    Path("terms.tsv").write_text("cake\tTorte\n")
    options = ("--prefix", "prefix.txt", "--glossary", "terms.tsv", "--ensemble", make_run(1), "--mbr", "4")
    found = objects(mtattn_, run, *options, "--set", "decode.max_len_extra=12")
    assert re.match(r"Anna.*\bTorte\b", found[0]["text"])
    assert found[1] == {"text": "", "flags": [], "hypotheses": []}


# Bad input


def test_an_empty_file(mtattn_, run):
    Path("in.txt").write_text("")
    assert mtattn_("translate", run, "in.txt")[:2] == (0, "")


@pytest.mark.parametrize("data", [b"\n", b"\n \n\t\n\xe3\x80\x80\n", b"\r\n\r\n", b" "])
def test_blank_lines_stay_blank(mtattn_, run, data):
    Path("in.txt").write_bytes(data)
    code, out, _ = mtattn_("translate", run, "in.txt")
    assert (code, out) == (0, "\n" * len(data.removesuffix(b"\n").split(b"\n")))


@pytest.mark.parametrize("unit", ["Anna bakes. ", "x"], ids=["sentences", "no_space"])
def test_a_line_of_a_megabyte(mtattn_, make_run, tokenizer, unit):
    Path("in.txt").write_text("Hi\n" + unit * (2**20 // len(unit)) + "\nHi\n")
    limits = ("--set", "decode.max_len_ratio=0", "--set", "decode.max_len_extra=1", "--beam", "1")
    code, out, err = mtattn_("translate", make_run(0, tokenizer, "filter.max_len=250"), "in.txt", *limits)
    first, long, last, end = out.split("\n")
    assert (code, first, end) == (0, last, "")
    (ids,) = tokenizer.encode_src([unit * 1000])
    assert long.count(" ") + 1 >= len(ids) * 2**20 / len(unit) / 1000 / 250  # no part is missing
    assert "1 lines of over 250 pieces were split, at sentence ends where possible" in err


def test_invalid_utf8_is_replaced_and_counted(mtattn_, run):
    Path("in.txt").write_bytes(b"Hi\n\xff\xfe\nHi \xc3\nHi\n")
    code, out, err = mtattn_("translate", run, "in.txt")
    assert (code, out.count("\n")) == (0, 4)
    assert "in.txt: 2 lines are not valid UTF-8 (first line 2)" in err


@pytest.mark.parametrize("odd", ["\0", "\x0b\x0c", "\x1b[2J", "\x85", "\u2028", "a\rb", "\u202e", "\ufeff", "\ud7ff"])
def test_control_characters_keep_their_line(mtattn_, run, odd):
    Path("in.txt").write_bytes(f"Hi\nWe {odd} go\nHi\n".encode())
    code, out, _ = mtattn_("translate", run, "in.txt")
    assert (code, out.count("\n")) == (0, 3)
    assert out.split("\n")[0] == out.split("\n")[2]


@pytest.mark.parametrize("text", ["</s>", "<s>", "<pad>", "<unk>", "<2de>", "<0x0A>", "▁", "a </s> b"])
def test_text_like_special_pieces_is_text(mtattn_, run, tokenizer, text):
    (ids,) = tokenizer.encode_src([text])
    assert ids[-1] == tokenizer.eos_id and not {0, 1, 2} & set(ids[:-1])
    Path("in.txt").write_text(f"Hi\n{text}\nHi\n")
    code, out, _ = mtattn_("translate", run, "in.txt")
    first, _, last, end = out.split("\n")
    assert (code, first, end) == (0, last, "")


def test_existing_output_needs_force(fails, mtattn_, run):
    Path("out.txt").write_text("keep")
    fails(2, r"out.txt: exists already; --force replaces it", "-o", "out.txt")
    assert Path("out.txt").read_text() == "keep"
    assert mtattn_("translate", run, "in.txt", "-o", "out.txt", "--force")[0] == 0
    assert Path("out.txt").read_text().count("\n") == 4


@pytest.mark.parametrize("name", ["in.txt", "./in.txt", "link.txt", "hard.txt"])
def test_output_over_the_input_is_refused(fails, name):
    Path("link.txt").symlink_to("in.txt")
    os.link("in.txt", "hard.txt")
    fails(2, r"is also the input", "-o", name, "--force")
    assert Path("in.txt").read_text() == TEXT


@pytest.mark.parametrize("option", ["--prefix", "--glossary"])
def test_output_over_another_source_is_refused(fails, option):
    Path("more.txt").write_text("cake\tTorte\n\n\n\n")
    fails(2, r"more.txt: is also the input", option, "more.txt", "-o", "more.txt", "--force")
    assert Path("more.txt").read_text() == "cake\tTorte\n\n\n\n"


def test_output_that_cannot_be_written(fails):
    fails(4, r"nowhere/out.txt: there is no folder nowhere; make it first", "-o", "nowhere/out.txt")
    fails(4, r"/dev/full: cannot be written: No space left", "-o", "/dev/full", "--force")


def test_a_full_disk_behind_standard_error_leaves_the_exit_code():
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "mtattn", "translate", "nowhere"]
        assert subprocess.run(command, stdin=subprocess.DEVNULL, stderr=full, env=buffered).returncode == 3


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_behind_a_stream(run, tmp_path, stream):
    damaged = b"\xff\n" if stream == "stderr" else b""  # of which stderr would say that it is no UTF-8
    (tmp_path / "in.txt").write_bytes(TEXT.encode() + damaged)
    folder = str(Path(mtattn.cli.__file__).parent.parent)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mtattn", "translate", run, "in.txt"],
            cwd=tmp_path,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full},
            text=True,
            env={**buffered, "PYTHONPATH": folder},
        )
    if stream == "stderr":
        assert (done.returncode, done.stdout.count("\n")) == (0, TEXT.count("\n") + 1)
    else:
        assert done.returncode == 4
        assert done.stderr == "error: standard output: cannot be written: No space left on device\n"
