"""Translating one line from a cold start, and a step of training, import nothing that they do not need."""

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


def test_a_step_of_training_needs_no_compiler():
    code = (
        "import sys, torch\n"
        "from mtattn.optim import OptimConfig, make_optimizers\n"
        "model = torch.nn.Sequential(torch.nn.Embedding(3, 4), torch.nn.Linear(4, 4))\n"
        "model(torch.arange(3)).sum().backward()\n"
        "for optimizer in make_optimizers(model, OptimConfig()):\n    optimizer.step()\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "mtattn.optim" in imported
    assert not imported & {"torch._dynamo", "sympy"}
