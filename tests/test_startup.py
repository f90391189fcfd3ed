"""Translating one line from a cold start imports nothing that it does not need."""

import subprocess
import sys

import pytest

from mtattn.config import Config
from mtattn.corpus import DataConfig
from mtattn.decode import DecodeConfig
from mtattn.export.exporter import Trained
from mtattn.export.huggingface import write

# torch._dynamo, with sympy, takes longer to import than torch; the others are for corpora, scores and pictures.
NEEDLESS = {"torch._dynamo", "sympy", "datasets", "pyarrow", "pandas", "sacrebleu", "huggingface_hub", "matplotlib"}


@pytest.fixture
def released(model, tokenizer, tmp_path):
    folder = tmp_path / "released"
    decode = DecodeConfig(max_len_ratio=0.2, max_len_extra=2)
    write(Trained(model, tokenizer, Config(data=DataConfig(), model=model.config, decode=decode), folder), folder, "")
    return folder


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
