"""All that must stand before the first step: corpora, held-out pairs, tokenizer, encoded examples."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mtattn.batch import Batch, IntArray, pair_names
from mtattn.config import Config
from mtattn.corpus import DataConfig, LoadedCorpus, listed, load_corpus, read_tables
from mtattn.errors import ConfigError, CorpusError, FileError, ModelError
from mtattn.examples import Examples, encode_corpus
from mtattn.mixing import Mixture
from mtattn.progress import Reporter
from mtattn.storage import read_json, verify_folder, write_folder
from mtattn.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

VERSION = 1  # of what is kept of tokenizers; to be raised when the same settings give another one
NOTES = "notes.json"  # beside a tokenizer in the cache: what its training had to say


@dataclass(frozen=True)
class Pairs:
    """Some pairs as text, held in memory: a dev or test split."""

    src: list[str]
    tgt: list[str]


@dataclass(frozen=True)
class OldData:
    """What is there of the data of a model to fine-tune: its corpus if it is mixed in, its dev and its test set."""

    corpus: LoadedCorpus | None = None
    dev: Pairs | None = None
    test: Pairs | None = None


@dataclass(frozen=True)
class Prepared:
    """What the train loop works on.

    num_new: pairs of `corpus` that are the user's own; those of the old corpus, mixed in, follow.
    mixture: which pairs an epoch has; None: all.
    old_dev: the dev set of the model that is fine-tuned.
    """

    corpus: LoadedCorpus
    dev: Pairs
    tokenizer: Tokenizer
    examples: Examples
    num_new: int
    mixture: Mixture | None = None
    old_dev: Pairs | None = None

    def texts(self, indices: Sequence[int] | IntArray) -> tuple[list[str], list[str]]:
        """The training pairs behind these examples, as text."""
        rows = self.corpus.dataset[self.examples.numbers[indices]]
        return rows["src"], rows["tgt"]

    def names(self, batches: Sequence[Batch]) -> str:
        """The training pairs of some batches, as the user can find them."""
        return pair_names(batches, self.examples.numbers, self.num_new)


def cache_folder() -> Path:
    """Where encoded corpora are kept between runs: MTATTN_CACHE, else the user's cache folder; may be deleted."""
    named = os.environ.get("MTATTN_CACHE")
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtattn"
    except RuntimeError:  # as in a container whose user has no entry and no HOME
        raise FileError("this user has no home folder for the cache: set MTATTN_CACHE=DIR") from None


def open_corpus(data: DataConfig, split: str = "train") -> LoadedCorpus:
    """What the config names as this split, read or from the cache; of dev and test blank lines stay."""
    return load_corpus(getattr(data, split), data, cache_dir=cache_folder() / "corpora", keep_all=split != "train")


def load_split(data: DataConfig, split: str) -> Pairs:
    """The dev or test split that the config names, as text."""
    rows = open_corpus(data, split).dataset[:]
    return Pairs(list(rows["src"]), list(rows["tgt"]))


def prepare(config: Config, tokenizer: Tokenizer | None, report: Reporter, old: OldData | None = None) -> Prepared:
    """Read the corpora, hold out a part when there is no dev corpus, train the tokenizer unless given, encode.

    Args:
        old: data of the model that is fine-tuned; its training pairs follow the new ones.
    """
    old = old or OldData()
    with report.bar("reading the corpus", None):
        corpus = open_corpus(config.data)
    report.note(f"training corpus: {len(corpus.dataset):,} pairs{listed(corpus.dropped)}")
    dev = load_split(config.data, "dev") if config.data.dev else _hold_out(corpus, config, report)
    kept_out = set[str]()
    if config.filter.leaked or not config.data.dev:
        kept_out.update(dev.src, dev.tgt)
    if config.filter.leaked and config.data.test:
        test = load_split(config.data, "test")
        kept_out.update(test.src, test.tgt)
    if old.dev is not None and (config.filter.leaked or not config.finetune.old.dev):
        kept_out.update(old.dev.src, old.dev.tgt)
    if old.test is not None and config.filter.leaked:
        kept_out.update(old.test.src, old.test.tgt)
    num_new = len(corpus.dataset)
    if old.corpus is not None:
        corpus = _joined(corpus, old.corpus)
    if tokenizer is None:
        with report.bar("training the tokenizer", None):
            tokenizer, notes = _trained_tokenizer(corpus, config.tokenizer)
        for note in notes:
            report.note(note)
    _require_positions(config, tokenizer, dev)
    with report.bar("encoding", len(corpus.dataset)) as bar:
        examples = encode_corpus(
            corpus,
            tokenizer,
            config.filter,
            frozenset(kept_out - {""}),
            cache_dir=cache_folder() / "examples",
            done=bar.advance,
        )
    tokens = int(examples.src.lens.sum()), int(examples.tgt.lens.sum())
    report.note(
        f"training examples: {len(examples.tgt):,} pairs{listed(examples.dropped)}, {tokens[0]:,} source and "
        f"{tokens[1]:,} target tokens; {len(dev.src):,} pairs for validation"
    )
    mixture = _mixture(config, examples, num_new, report) if old.corpus is not None else None
    return Prepared(corpus, dev, tokenizer, examples, num_new, mixture, old.dev)


def held_out(corpus: LoadedCorpus, most: int, seed: int) -> Pairs:
    """A seeded choice of at most `most` training pairs, and at most a tenth of them, to validate on."""
    total = len(corpus.dataset)
    count = min(most, max(1, total // 10))
    rows = corpus.dataset[np.sort(np.random.default_rng(seed).choice(total, count, replace=False))]
    return Pairs(list(rows["src"]), list(rows["tgt"]))


def _hold_out(corpus: LoadedCorpus, config: Config, report: Reporter) -> Pairs:
    """The held-out pairs; the filter then keeps their sentences out of training."""
    pairs = held_out(corpus, config.train.hold_out, config.train.seed)
    report.note(
        f"no dev corpus is named: {len(pairs.src):,} of {len(corpus.dataset):,} pairs are held out for validation"
    )
    return pairs


def _joined(new: LoadedCorpus, old: LoadedCorpus) -> LoadedCorpus:
    """The pairs of both, the new ones first."""
    from datasets import concatenate_datasets

    return replace(new, dataset=concatenate_datasets([new.dataset, old.dataset]), files={**old.files, **new.files})


def _mixture(config: Config, examples: Examples, num_new: int, report: Reporter) -> Mixture:
    """How old and new examples make an epoch, told to the user.

    Raises:
        CorpusError: the filters left no new pair.
    """
    is_new = examples.numbers < num_new
    if not is_new.any():
        raise CorpusError(
            "no new training pair is left after filtering: give more pairs, or dev sets of others, or loosen [filter]"
        )
    mixture = Mixture(np.flatnonzero(is_new), np.flatnonzero(~is_new), config.finetune.mix, config.train.seed)
    all_there_are = ", all there are" if mixture.num_old == len(mixture.old) else ""
    report.note(
        f"an epoch has all {len(mixture.new):,} new pairs and another draw of {mixture.num_old:,} old ones"
        f"{all_there_are} (finetune.mix = {config.finetune.mix:g})"
    )
    return mixture


def _require_positions(config: Config, tokenizer: Tokenizer, dev: Pairs) -> None:
    """Refuse a dev pair that reaches beyond a table of learned positions: its loss could not be computed.

    Translating does not need this, since it splits what is longer than filter.max_len; nor do training pairs.

    Raises:
        ConfigError: names the longest.
    """
    position = config.model.position
    if position.kind != "learned":
        return
    lens = [
        max(map(len, ids)) for ids in zip(tokenizer.encode_src(dev.src), tokenizer.encode_tgt(dev.tgt), strict=True)
    ]
    longest = max(lens, default=0)
    if longest > position.max_len:
        raise ConfigError(
            f"dev pair {lens.index(longest) + 1} has {longest} pieces, but learned positions exist up to "
            f"model.position.max_len = {position.max_len}; raise that to {longest} or more, take another kind, "
            "or leave the pair out of the dev set"
        )


def _trained_tokenizer(corpus: LoadedCorpus, config: TokenizerConfig) -> tuple[Tokenizer, list[str]]:
    """As `train_tokenizer`; what an earlier run trained on the same corpus in the same way is used again.

    Raises:
        CorpusError: the corpus allows no such vocabulary.
    """
    made_of = [VERSION, version("sentencepiece"), corpus.dataset._fingerprint, asdict(config)]
    folder = cache_folder() / "tokenizers" / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    with suppress(ModelError):  # not there, or damaged
        verify_folder(folder, [NOTES])
        return Tokenizer.load(folder), read_json(folder / NOTES)["notes"]
    most = max(1, config.max_sentences // (2 if config.joint else 1))
    src, tgt = (_column(corpus, side, most) for side in ("src", "tgt"))
    tokenizer, notes = train_tokenizer(src, tgt, config)
    with suppress(FileError):  # the next run then trains it again
        write_folder(folder, {**tokenizer.to_files(), NOTES: json.dumps({"notes": notes}).encode()})
    return tokenizer, notes


def _column(corpus: LoadedCorpus, side: str, most: int) -> Iterator[str]:
    """One side's texts, evenly thinned to at most `most` lines."""
    step, start = -(-len(corpus.dataset) // most), 0
    for table in read_tables(corpus.dataset, 10_000):
        yield from table[side].take(np.arange(-start % step, len(table), step)).to_pylist()
        start += len(table)
