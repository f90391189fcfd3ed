"""Health: each sick validation raises its own alarm, a healthy one none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_config, write_corpus
from torch import Tensor

from mtattn.alignment import Look
from mtattn.checkpoint import make_model
from mtattn.health import ALARMS, MIN_EPOCHS, MIN_TOKENS, Evidence, alarms, ready, relative_entropy
from mtattn.prepare import Pairs
from mtattn.tokenizer import train_tokenizer
from mtattn.validate import validate

NUM_LINES = 100
SOURCES = [f"the dog number {i} runs home" for i in range(NUM_LINES)]
REFERENCES = [f"der Hund Nummer {i} läuft heim" for i in range(NUM_LINES)]


def looks(weights: Tensor) -> list[Look]:
    return [Look([f"s{i}" for i in range(weights.shape[1])], [f"t{i}" for i in range(weights.shape[0])], weights)] * 3


SHARP, EVEN = torch.eye(5), torch.full((5, 5), 0.2)
HEALTHY = Evidence(SOURCES, REFERENCES, REFERENCES, [[]] * NUM_LINES, 40.0, 2.0, 1.6, looks(SHARP))


def some(of: list[str], rest: list[str], count: int) -> list[str]:
    """The first lines of one list, then those of another."""
    return of[:count] + rest[count:]


CASES: dict[str, tuple[list[str], Evidence]] = {
    # name: (the alarms, the validation)
    "healthy": ([], HEALTHY),
    "some empty": (["empty"], replace(HEALTHY, outputs=some([""] * 9, REFERENCES, 9))),
    "one empty": ([], replace(HEALTHY, outputs=some([""], REFERENCES, 1))),
    "blank sources": (
        [],
        replace(HEALTHY, sources=some([""] * 9, SOURCES, 9), outputs=some([""] * 9, REFERENCES, 9)),
    ),
    "all the same": (["same"], replace(HEALTHY, outputs=REFERENCES[:1] * NUM_LINES)),
    "references alike": ([], replace(HEALTHY, outputs=["ja ja ja ja"] * 100, references=["ja ja ja ja"] * 100)),
    "loops": (["endless"], replace(HEALTHY, flags=[["loop"]] * 9 + [[]] * 91)),
    "cut": (["endless"], replace(HEALTHY, flags=[["cut"]] * 9 + [[]] * 91)),
    "copies": (["copied"], replace(HEALTHY, outputs=some([line.upper() for line in SOURCES], REFERENCES, 20))),
    "copies that are right": ([], replace(HEALTHY, references=SOURCES, outputs=SOURCES)),
    "too short": (["length"], replace(HEALTHY, outputs=[line[9:20] for line in REFERENCES])),
    "too long": (["length"], replace(HEALTHY, outputs=[line + " und so weiter" for line in REFERENCES])),
    "learned by heart": (["gap"], replace(HEALTHY, train_loss=0.5)),
    "train loss unknown": ([], replace(HEALTHY, train_loss=None)),
    "flat": (["flat attention"], replace(HEALTHY, bleu=1.0, looks=looks(EVEN))),
    "flat but good": ([], replace(HEALTHY, looks=looks(EVEN))),
    "poor but sharp": ([], replace(HEALTHY, bleu=1.0)),
    "nothing said": (
        ["empty", "length"],
        replace(HEALTHY, outputs=[""] * NUM_LINES, looks=[Look(["a"] * 5, [], torch.zeros(0, 5))], bleu=0.0),
    ),
    "no lines": ([], Evidence([], [], [], [], 0.0, 2.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_raises_the_right_alarms(case: str) -> None:
    expected, evidence = CASES[case]
    assert [name for name, check in ALARMS.items() if check(evidence)] == expected
    assert alarms(evidence) == {name: ALARMS[name](evidence) for name in expected}


def test_every_alarm_has_a_case_and_says_what_to_try() -> None:
    raised = {name: evidence for names, evidence in CASES.values() for name in names}
    assert set(raised) == set(ALARMS)
    for name, evidence in raised.items():
        message = ALARMS[name](evidence)
        assert ": " in message, name  # the finding, which is repeated, and then what is said once
        assert any(part in message for part in ("doctor", "optim.", "decode.", "model.")), name


@pytest.mark.parametrize(
    ("epochs", "tgt_tokens", "expected"),
    [(0, 0, False), (MIN_EPOCHS, 0, True), (MIN_EPOCHS - 0.1, MIN_TOKENS - 1, False), (0.1, MIN_TOKENS, True)],
)
def test_waits_until_the_model_has_had_a_chance(epochs: float, tgt_tokens: int, expected: bool) -> None:
    assert ready(epochs=epochs, tgt_tokens=tgt_tokens) is expected


def test_entropy_is_relative_to_looking_everywhere() -> None:
    assert relative_entropy(looks(EVEN)[0]) == pytest.approx(1)
    assert relative_entropy(looks(SHARP)[0]) == pytest.approx(0)
    half = torch.tensor([[0.5, 0.5, 0, 0]])
    assert relative_entropy(looks(half)[0]) == pytest.approx(0.5)
    assert relative_entropy(looks(torch.ones(3, 1))[0]) == 0


def test_validation_judges_an_untrained_model_only_after_a_while(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", dev=20)
    config = tiny_config(folder)
    src, tgt = ((folder / f"dev.{code}").read_text().splitlines() for code in ("en", "de"))
    tokenizer, _ = train_tokenizer(src, tgt, config.tokenizer)
    torch.manual_seed(0)
    model = make_model(config, tokenizer)
    dev = Pairs(src, tgt)
    early = validate(model, tokenizer, dev, config.decode)
    late = validate(model, tokenizer, dev, config.decode, epochs=MIN_EPOCHS, trained_on=Pairs(src[:5], tgt[:5]))
    assert early.alarms == {}
    assert late.alarms
    assert (late.loss, late.scores.bleu, late.samples) == (early.loss, early.scores.bleu, early.samples)
