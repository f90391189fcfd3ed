"""The list of mutants stays true: each piece of text stands in its file exactly once."""

from pathlib import Path

import pytest
from mutants import MUTANTS, PACKAGE, TESTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.old[:30]!r}")
def test_a_mutant_applies(mutant):
    text = Path(PACKAGE / mutant.file).read_text()
    assert text.count(mutant.old) == 1 and mutant.old != mutant.new
    assert all((TESTS / f"test_{name}.py").exists() for name in mutant.tests.split())


def test_there_are_enough_in_every_file_that_computes():
    assert len(MUTANTS) >= 30
    computing = {"reference.py", "sdpa.py", "chunked.py", "banded.py", "masks.py", "predicate.py", "positions.py"}
    assert computing <= {mutant.file for mutant in MUTANTS}
