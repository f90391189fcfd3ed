"""What tests share: a cache of their own, one thread, a tokenizer of the toy corpus, small models."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tiny_run import write_corpus

from mtattn.cli import main
from mtattn.config import Config
from mtattn.corpus import DataConfig
from mtattn.decode import DecodeConfig
from mtattn.model import ModelConfig, Transformer
from mtattn.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

TOY = Path(__file__).parent.parent / "data" / "toy"
ModelMaker = Callable[..., Transformer]

settings.register_profile("mtattn", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("mtattn")


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache, in this process or a child; one thread, so that sums repeat."""
    before, threads = os.environ.get("MTATTN_CACHE"), torch.get_num_threads()
    os.environ["MTATTN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    if before is None:
        del os.environ["MTATTN_CACHE"]
    else:
        os.environ["MTATTN_CACHE"] = before


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of a run that takes a fraction of a second."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def toy_lines() -> tuple[list[str], list[str]]:
    """The first 400 pairs of the toy corpus."""
    src, tgt = ((TOY / f"train.{code}").read_text(encoding="utf-8").split("\n")[:400] for code in ("en", "de"))
    return src, tgt


@pytest.fixture(scope="session")
def tokenizer(toy_lines: tuple[list[str], list[str]]) -> Tokenizer:
    """A joint unigram model of 600 pieces that leaves text as it is."""
    return train_tokenizer(*toy_lines, TokenizerConfig(vocab_size=600, normalization="identity"))[0]


@pytest.fixture(scope="session")
def make_model() -> ModelMaker:
    """Makes a small model in evaluation mode in which every weight is random.

    A fresh model would not do: its output projections are zero, which hides what its layers compute.
    """

    def make(
        vocab_size: int = 23, tgt_vocab_size: int = 0, joint: bool = True, seed: int = 0, **options
    ) -> Transformer:
        sizes = {"d_model": 16, "d_ff": 24, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 2}
        model = Transformer(ModelConfig(**{**sizes, **options}), vocab_size, tgt_vocab_size or vocab_size, joint=joint)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 1 + drawn / 5)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def model(make_model: ModelMaker, tokenizer: Tokenizer) -> Transformer:
    """A small model for the tokenizer."""
    return make_model(tokenizer.src_vocab_size)


@pytest.fixture
def released(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A released model folder whose config names the toy corpus."""
    from mtattn.export.exporter import Trained
    from mtattn.export.huggingface import write

    data = DataConfig(folder="bundled:toy", dev="dev.{en,de}")
    config = Config(model=model.config, data=data, decode=DecodeConfig(max_len_ratio=0.2, max_len_extra=2))
    write(Trained(model, tokenizer, config, tmp_path / "released"), tmp_path / "released", "float32")
    return tmp_path / "released"


@pytest.fixture
def mtattn_(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Call the program in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mtattn", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), *capfd.readouterr()

    return run
