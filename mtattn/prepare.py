"""All that must stand before the first step: corpora, held-out pairs, tokenizer, encoded examples."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtattn.config import Config
from mtattn.corpus import DataConfig, LoadedCorpus, load_corpus
from mtattn.examples import Examples, encode_corpus
from mtattn.progress import Reporter
from mtattn.tokenizer import Tokenizer, train_tokenizer


@dataclass(frozen=True)
class Pairs:
    """Some pairs as text, held in memory: a dev or test split."""

    src: list[str]
    tgt: list[str]


@dataclass(frozen=True)
class Prepared:
    """What the train loop works on. `files` maps each local training file to the sha256 of its content."""

    corpus: LoadedCorpus
    dev: Pairs
    tokenizer: Tokenizer
    examples: Examples
    files: dict[str, str]

    def texts(self, indices: Sequence[int]) -> tuple[list[str], list[str]]:
        """The training pairs behind these examples, as text."""
        rows = self.corpus.dataset[self.examples.numbers[indices]]
        return rows["src"], rows["tgt"]


def cache_folder() -> Path:
    """Where encoded corpora are kept between runs: MTATTN_CACHE, else the user's cache folder; may be deleted."""
    named = os.environ.get("MTATTN_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtattn"


def load_split(data: DataConfig, split: str) -> Pairs:
    """The dev or test split that the config names, unfiltered."""
    corpus = load_corpus(getattr(data, split), data, cache_dir=cache_folder() / "corpora", keep_all=True)
    rows = corpus.dataset[:]
    return Pairs(list(rows["src"]), list(rows["tgt"]))


def prepare(config: Config, tokenizer: Tokenizer | None, report: Reporter) -> Prepared:
    """Read the corpora, hold out a part when there is no dev corpus, train the tokenizer unless given, encode."""
    with report.bar("reading the corpus", None):
        corpus = load_corpus(config.data.train, config.data, cache_dir=cache_folder() / "corpora")
    report.note(f"training corpus: {len(corpus.dataset):,} pairs{_listed(corpus.dropped)}")
    dev = load_split(config.data, "dev") if config.data.dev else _held_out(corpus, config, report)
    held_out = set[str]()
    if config.filter.leaked or not config.data.dev:
        held_out.update(dev.src, dev.tgt)
    if config.filter.leaked and config.data.test:
        test = load_split(config.data, "test")
        held_out.update(test.src, test.tgt)
    if tokenizer is None:
        with report.bar("training the tokenizer", None):
            most = max(1, config.tokenizer.max_sentences // (2 if config.tokenizer.joint else 1))
            src, tgt = (_column(corpus, side, most) for side in ("src", "tgt"))
            tokenizer, notes = train_tokenizer(src, tgt, config.tokenizer, seed=config.train.seed)
        for note in notes:
            report.note(note)
    with report.bar("encoding", len(corpus.dataset)) as bar:
        examples = encode_corpus(
            corpus,
            tokenizer,
            config.filter,
            frozenset(held_out - {""}),
            cache_dir=cache_folder() / "examples",
            done=bar.advance,
        )
    tokens = int(examples.src.lens.sum()), int(examples.tgt.lens.sum())
    report.note(
        f"training examples: {len(examples.tgt):,} pairs{_listed(examples.dropped)}, {tokens[0]:,} source and "
        f"{tokens[1]:,} target tokens; {len(dev.src):,} pairs for validation"
    )
    return Prepared(corpus, dev, tokenizer, examples, corpus.files)


def _held_out(corpus: LoadedCorpus, config: Config, report: Reporter) -> Pairs:
    """A seeded choice of training pairs; the filter then keeps their sentences out of training."""
    total = len(corpus.dataset)
    count = min(config.train.hold_out, max(1, total // 10))
    chosen = np.sort(np.random.default_rng(config.train.seed).choice(total, count, replace=False))
    report.note(f"no dev corpus is named: {count:,} of {total:,} pairs are held out for validation")
    rows = corpus.dataset[chosen]
    return Pairs(list(rows["src"]), list(rows["tgt"]))


def _column(corpus: LoadedCorpus, side: str, most: int) -> Iterator[str]:
    """One side's texts, evenly thinned to at most `most` lines."""
    total = len(corpus.dataset)
    thinned = corpus.dataset.select_columns([side]).select(range(0, total, -(-total // most)))
    for rows in thinned.iter(batch_size=10_000):
        yield from rows[side]


def _listed(dropped: dict[str, int]) -> str:
    return f" (dropped: {', '.join(f'{count:,} {reason}' for reason, count in dropped.items())})" if dropped else ""
