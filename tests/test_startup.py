"""Translating one line from a cold start imports nothing that it does not need."""

import subprocess
import sys

import pytest

# torch._dynamo, with sympy, takes longer to import than torch; the others are for corpora, scores and pictures.
NEEDLESS = {"torch._dynamo", "sympy", "datasets", "pyarrow", "pandas", "sacrebleu", "huggingface_hub", "matplotlib"}


@pytest.mark.parametrize("options", [[], ["--nbest", "2", "--json"]], ids=["text", "json"])
def test_a_line_needs_torch_and_little_more(released, options):
    code = (
        "import sys, mtattn.cli\n"
        f"sys.argv = ['mtattn', 'translate', {str(released)!r}, *{options!r}]\n"
        "try:\n    mtattn.cli.main()\nexcept SystemExit as left:\n    assert not left.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], input="a dog\n", capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    imported = set(done.stderr.split())
    assert "torch" in imported
    assert not imported & NEEDLESS
