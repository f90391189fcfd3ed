"""The scripts in benchmarks/: what they have in common, and parts of them that can be wrong without being noticed."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_run import tiny_config, write_corpus

from mtattn.config import load_config
from mtattn.prepare import open_corpus, prepare
from mtattn.progress import Reporter

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """Imports a script as it finds its neighbours when it is run."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module(name)

    before = set(sys.modules)
    yield load
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_writes_json(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("take_json(parser)") == 1
    assert text.count("write_json(") >= 1


def test_growth_is_the_exponent_of_a_power_law(script):
    growth = script("growth").growth
    assert growth([1.0, 2.0, 4.0, 8.0], [5.0, 3.0 * 2**1.5, 3.0 * 4**1.5, 3.0 * 8**1.5]) == pytest.approx(1.5)


def test_a_gpu_has_no_flash_kernel_for_float32(script):
    attention = script("attention")
    names, options = list(attention.kernels()), attention.argparse.Namespace(device="cuda", forward=False)
    times = {name: {} for name in names}
    for dtype, missing in (("bfloat16", set()), ("float32", {"torch flash", "flash causal"})):
        options.dtype = dtype
        assert set(names) - set(attention.able(names, 64, times, options)) == missing


def test_the_bars_compare_what_both_contenders_ran(script, capsys):
    attention = script("attention")
    rows = {name: {256: 1.0, 512: 2.0} for name in (*attention.kernels(), *attention.layers())}
    rows |= {"flash causal": {}, "auto": {256: 6.0}, "MultiHeadAttention": {256: 1.0}, "window 256 chunked": {}}
    attention.bars(rows, rows, [256, 512])
    printed = capsys.readouterr().out
    assert "full attention / window 256 at T = 256 (at least 5): 6.0" in printed
    assert "window 256 chunked at" not in printed
    assert "auto causal / best torch kernel (at most 1.05 from T = 256 on):  \n" in printed
    assert "MultiHeadAttention / nn.MultiheadAttention (at most 1.00):  256: 1.000\n" in printed


def test_steps_accumulate_as_training_does(script, tmp_path, monkeypatch):
    steps = script("steps")
    monkeypatch.setattr(steps, "keep_freed_memory", lambda: None)  # it would stay so for the other tests
    config = tmp_path / "tiny.toml"
    config.write_text(tiny_config(write_corpus(tmp_path / "corpus")).to_toml())
    found = []
    for accumulate in (1, 2):
        out = tmp_path / f"{accumulate}.json"
        options = [f"--set=train.accumulate={accumulate}", "--steps=6", "--device=cpu", f"--json={out}"]
        monkeypatch.setattr(sys, "argv", ["steps.py", str(config), *options])
        steps.main()
        found.append(json.loads(out.read_text()))
    assert [row["accumulate"] for row in found] == [1, 2]
    assert found[1]["tokens_per_step"] > 1.5 * found[0]["tokens_per_step"]


def test_scores_tell_cased_from_lowercased(script):
    reference = ["Ein Hund läuft über das Gras .", "Zwei Frauen in Rot sitzen auf einer Bank ."] * 20
    outputs = {"same": reference, "lower": [line.lower() for line in reference]}
    rows = script("scores").compare(outputs, reference, "de")
    cased, lowercased = rows[:2], rows[2:]
    assert [row["bleu"] for row in lowercased] == pytest.approx([100.0, 100.0])
    assert cased[0]["bleu"] == pytest.approx(100.0)
    assert cased[1]["bleu"] < 60
    assert cased[0]["p_value"] is None
    assert cased[1]["p_value"] < 0.01
    assert "lowercased" in lowercased[0]["how"]
    assert "lowercased" not in cased[0]["how"]


def test_equal_outputs_do_not_differ_significantly(script):
    reference = ["Ein Hund läuft über das Gras.", "Zwei Frauen in Rot sitzen auf einer Bank."] * 20
    output = [line.replace("Gras", "Feld") for line in reference]
    rows = script("scores").compare({"one": output, "other": list(output)}, reference, "de")
    assert [row["p_value"] for row in rows] == [None, 1.0, None, 1.0]


def test_a_single_output_is_scored_alone(script):
    lines = ["Ein Hund läuft über das Gras."] * 5
    rows = script("scores").compare({"only": lines}, lines, "de")
    assert [row["bleu"] for row in rows] == pytest.approx([100.0, 100.0])
    assert {row["p_value"] for row in rows} == {None}


def test_quotation_marks_count_only_in_cased_scores(script):
    reference, output = (['Ein Schild mit der Aufschrift "Halt".'] * 5, ["Ein Schild mit der Aufschrift „Halt“."] * 5)
    cased, lowercased = script("scores").compare({"only": output}, reference, "de")
    assert lowercased["bleu"] == pytest.approx(100.0)
    assert cased["bleu"] < 80


def test_diversification_writes_what_its_config_reads(script, tmp_path, monkeypatch, capsys):
    diversification, commands = script("diversification"), []

    def run(command, check):
        assert check
        commands.append(command[3:])
        if "-o" in command:  # a translation: of a model that copies
            Path(command[command.index("-o") + 1]).write_bytes(Path(command[5]).read_bytes())

    monkeypatch.setattr(diversification.subprocess, "run", run)
    given = tmp_path / "given"
    given.mkdir()
    for split in diversification.CORPUS:
        for language in ("en", "de"):
            (given / f"{split}.{language}").write_text(f"a line of {split} {language}\n" * 5)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diversification.py", str(given), "--seeds", "1,2", "--device", "cpu"])
    diversification.main()
    corpus = open_corpus(load_config("multi30k-en-de-diverse").data)
    assert len(corpus.dataset) == 4 * 5  # every file that it names is there
    trained = [command[1] for command in commands if command[0] == "train"]
    assert trained == ["multi30k-en-de"] * 2 + ["multi30k-de-en"] * 2 + ["multi30k-en-de-diverse"] * 2
    written = len(commands)
    diversification.main()
    assert all(command[0] == "train" for command in commands[written:])  # nothing is translated again
    assert "| student 2 |" in capsys.readouterr().out


def test_diversification_begins_nothing_without_the_corpus(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diversification.py", "nowhere"])
    with pytest.raises(SystemExit, match=r"nowhere: no train\.en, train\.de, .* there; give the folder"):
        script("diversification").main()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def work(script, tmp_path):
    """A tiny corpus as training.py hands it out: (Job, groups of batches)."""
    training = script("training")
    config = tiny_config(write_corpus(tmp_path / "corpus"), "train.accumulate=2", "optim.lr=0.01")
    data = prepare(config, None, Reporter())
    groups = list(
        training.steps_of_batches(
            training.make_batches(config, data, config.train.batch_tokens), config.train.accumulate, 7
        )
    )
    training.write_groups(tmp_path / "batches.npz", groups)
    options = training.argparse.Namespace(device="cpu", threads=1, peer_lr=0.01, warmup=1)
    job = script("protocol").Job(**training.make_job(config, data.tokenizer, tmp_path, options))
    return job, groups


def test_batches_arrive_as_they_were_written(work, script):
    job, groups = work
    read = script("protocol").read_groups(job.batches, job.pad_id, job.bos_id)
    assert len(read) == len(groups) == 7
    for written, group in zip(groups, read, strict=True):
        for (src, tgt_out), batch in zip(written, group, strict=True):
            assert torch.equal(batch.src, src)
            assert torch.equal(batch.tgt_out, tgt_out)
            assert torch.equal(batch.tgt_in[:, 1:], tgt_out[:, :-1])
            assert (batch.tgt_in[:, 0] == job.bos_id).all()
            assert batch.num_tokens == int((tgt_out != job.pad_id).sum())


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize(("module", "variant"), [("ours", ""), ("ours", "adamw"), ("plain", "float32")])
def test_contenders_learn_and_translate(work, script, module, variant):
    job, _ = work
    torch.manual_seed(0)
    contender = script(module).build(replace(job, variant=variant))
    group = script("protocol").read_groups(job.batches, job.pad_id, job.bos_id)[0]
    losses = [contender.step(group, 1.0) for _ in range(15)]
    assert losses[-1] < 0.9 * losses[0]
    contender.model.eval()
    with torch.no_grad():
        found = contender.translate(group[0].src, 6)
    assert len(found) == len(group[0].src)
    assert all(len(ids) <= 6 and job.eos_id not in ids for ids in found)
