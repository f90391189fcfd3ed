"""Lines in, hypotheses out: batch lines of like length, search, detokenise, restore the order."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mtattn.batch import pad
from mtattn.config import with_overrides
from mtattn.decode import MAX_WIDTH, DecodeConfig, Step, search
from mtattn.errors import ConfigError
from mtattn.flags import flags
from mtattn.graph_search import can_record, graph_search, num_sentences
from mtattn.history import Hypothesis
from mtattn.inference import PreparedModel
from mtattn.loading import load_model
from mtattn.model import Transformer, evaluating
from mtattn.prefix import paired
from mtattn.processors import ForcedPrefix, Processor
from mtattn.scripts import unspaced
from mtattn.segments import sentences, split_long
from mtattn.threads import use_one_thread
from mtattn.tokenizer import Tokenizer

LINES_AHEAD = 10_000  # lines read together, at most: sorting among so many leaves little padding
FIRST_LINES = 1_000  # read before the first is written: some seconds' work
NOTED = {
    "prefix-unused": "prefixes stand beside blank lines, which stay blank",
    "prefix-missed": "prefixes did not fit into what [decode] allows",
    "cut": "translations were cut at the length that [decode] allows: max_len_ratio, max_len_extra",
    "loop": "translations say something four times in a row; --json flags them",
}
"""What the user is told of a flag, after its count."""
SEARCHED_BY = {"beam": {"beam_size", "diversity"}, "sample": {"temperature", "top_k", "top_p", "seed"}}
"""What of [decode] one kind of search alone heeds."""
BATCH_POSITIONS = 16_384  # source pieces, padding included, that are translated together on a CPU, times beams
MAX_WORKERS = 8  # batches side by side on a CPU: each takes memory, and more of them wait for Python's lock


@dataclass(frozen=True)
class Part:
    """What is searched as one: a line, or a part of one that was too much for the model."""

    line: int  # which line of the input, from 0
    text: str
    src_ids: list[int]  # of text, ended by EOS
    prefix: list[int] = field(default_factory=list)  # target ids that its translations start with


@dataclass(frozen=True)
class Segment:
    """The translations of one Part: its ids, its hypotheses, best first, their texts, and what is wrong with the best.

    flags: "prefix-missed" (the forced start did not fit), and what the translator's `refine` adds.
    """

    src_ids: list[int]
    hypotheses: list[Hypothesis]
    texts: list[str]
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Translation:
    """One line's outcome: one segment, several where the line was too much for the model, none where it was blank."""

    segments: list[Segment] = field(default_factory=list)

    @property
    def flags(self) -> set[str]:
        """What is wrong with the best translation of any segment, and "split" where there are several."""
        found = {"split"} if len(self.segments) > 1 else set[str]()
        return found.union(
            *(segment.flags.union(flags(segment.hypotheses[0], segment.texts[0])) for segment in self.segments)
        )

    @property
    def texts(self) -> list[str]:
        """The n-best translations; of a line in several segments the best alone."""
        if len(self.segments) == 1:
            return self.segments[0].texts
        parts = [segment.texts[0] for segment in self.segments]
        return [("" if unspaced(parts) else " ").join(parts)]

    @property
    def text(self) -> str:
        """The best translation; "" for a blank line."""
        return self.texts[0]


Search = Callable[[Sequence[Part], Sequence[Processor]], list[Segment]]
"""Searches parts together; what each gets is what it would get alone. The processors know the parts by their place."""


class Refine(Protocol):
    """What is done to the outcome of a search before anyone sees it: hypotheses chosen otherwise, or more searched."""

    def __call__(self, parts: Sequence[Part], segments: Sequence[Segment], search: Search) -> Sequence[Segment]:
        """A segment for each part, in order, from those that the search found."""

    def report(self) -> str:
        """What the user should know when all is done; "" for nothing."""


def load_translator(
    run: Path,
    device: torch.device,
    *,
    beam: int | None = None,
    nbest: int | None = None,
    overrides: Sequence[str] = (),
) -> "Translator":
    """The model of a run directory or released model, searching as its config says unless told otherwise.

    Args:
        beam, nbest: instead of the config's; nbest alone widens a beam that is narrower.
        overrides: "decode.key=value" each.

    Raises:
        ModelError: no usable model there. ConfigError: beam, nbest or an override is not allowed, or idle.
    """
    model, tokenizer, config = load_model(run)
    config = with_overrides(config, overrides, "decode")
    _require_heeded(config.decode.search, overrides, beam)
    asked: dict[str, Any] = {"beam_size": beam, "nbest": nbest}
    if nbest is not None and beam is None:
        asked["beam_size"] = max(min(nbest, MAX_WIDTH), config.decode.beam_size)
    try:
        decode = replace(config.decode, **{name: value for name, value in asked.items() if value is not None})
        model = placed(model, device, decode.quantization)
        translator = Translator(model, tokenizer, decode, max_len=config.filter.max_len)
    except ValueError as error:
        raise ConfigError(f"decode: {error}") from None
    if device.type == "cpu":  # and not in every Translator: training may have told MKL its threads (mtattn.threads)
        translator.workers = min(torch.get_num_threads(), MAX_WORKERS)
    return translator


def _require_heeded(search: str, overrides: Sequence[str], beam: int | None) -> None:
    """Refuse what this kind of search would pass over in silence."""
    given = {override.partition("=")[0].strip().removeprefix("decode."): "--set" for override in overrides}
    given |= {"beam_size": "--beam"} if beam is not None else {}
    for kind, names in SEARCHED_BY.items():
        if kind != search and (idle := sorted(names & given.keys())):
            flag = "--beam" if given[idle[0]] == "--beam" else f"--set decode.{idle[0]}"
            raise ConfigError(
                f"{flag} is for search = {kind}, and this is {search}: add --set decode.search={kind}, or leave it out"
            )


def placed(model: Transformer, device: torch.device, quantization: str) -> Transformer:
    """The model on a device, itself and not a copy; on a GPU, bfloat16 means that all of it is."""
    return model.to(device, torch.bfloat16) if (device.type, quantization) == ("cuda", "bfloat16") else model.to(device)


class Translator:
    """A model, its tokenizer, and how to search.

    Args:
        model: in evaluation mode or not; dropout is off while it translates.
        tokenizer: the model's own.
        config: how to search.
        max_len: source pieces, EOS included, that the model was trained on at most; longer lines are split.

    Attributes:
        start: source ids [N, S] to a decoding step, such as an ensemble's (see mtattn.translate_options); None: the
            prepared model's.
        on_graphs: whether what mtattn.graph_search knows is left to it: on a GPU.
        refine: applied to what each search found, in this order (see mtattn.glossary and mtattn.mbr).
        workers: batches searched side by side on a CPU, by a thread each: what one step computes is little, and threads
            that share it wait for each other.
        flagged: how many lines so far had each flag.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        config: DecodeConfig,
        *,
        max_len: int = 256,
    ) -> None:
        self.model, self.tokenizer, self.config, self.max_len = model, tokenizer, config, max_len
        self.device = next(model.parameters()).device
        self.prepared = PreparedModel(model, config.quantization)
        self.start: Callable[[Tensor], Step] | None = None
        self.on_graphs = self.device.type == "cuda"
        self.refine: list[Refine] = []
        self.workers = 1
        self.flagged, self._asked = Counter[str](), config.nbest

    def translate(
        self,
        lines: Iterable[str],
        done: Callable[[int], None] = lambda count: None,
        prefixes: Iterable[str] | None = None,
        first: int = 0,
        stream: bool = False,
    ) -> Iterator[Translation]:
        """Translate each line; as many come out as go in, in order, and a blank line comes out blank.

        Lines are read and translated in blocks, so that memory does not grow with the input: a small one first, so that
        there is something to see soon, then each twice as large.

        Args:
            lines: without line ends.
            done: told now and then how many texts have been translated: lines but blank ones, and parts of long ones.
            prefixes: how the translation of each line has to start, as many as lines; blank: freely.
            first: number of the first line, on which its samples depend.
            stream: translate each line before the next is read, for whoever waits for it.

        Raises:
            CorpusError: not as many prefixes as lines.
        """
        pairs = ((line, "") for line in lines) if prefixes is None else paired(lines, prefixes)
        most = 1 if stream else LINES_AHEAD
        before, finished, size = first, 0, min(FIRST_LINES, most)
        while block := list(islice(pairs, size)):
            parts = self._split(block, before)
            segments: list[Segment | None] = [None] * len(parts)
            batches = list(self._batches(parts))
            searched = self._searched([[parts[i] for i in numbers] for numbers in batches])
            for numbers, refined in zip(batches, searched, strict=True):
                for number, found in zip(numbers, refined, strict=True):
                    segments[number] = found
                finished += len(numbers)
                done(finished)
            translations = [Translation() for _ in block]
            for part, segment in zip(parts, segments, strict=True):
                if segment is not None:
                    translations[part.line - before].segments.append(segment)
            for translation in translations:
                self.flagged.update(translation.flags)
            before += len(block)
            size = min(2 * size, most)
            yield from translations

    def _split(self, block: Sequence[tuple[str, str]], before: int) -> list[Part]:
        """What to search for these (line, prefix), the first of which is line number `before`, in order."""
        parts, most = list[Part](), self.config.max_sentences
        # White space of any kind is blank, also what the tokenizer's normalization keeps, such as a tab.
        encoded = self.tokenizer.encode_src([line if line.strip() else "" for line, _ in block])
        for number, ((line, start), ids) in enumerate(zip(block, encoded, strict=True), start=before):
            prefix = self.tokenizer.encode_tgt([start])[0][:-1] if start else []
            self.flagged["prefix-unused"] += bool(prefix) and len(ids) == 1  # blank, if to the tokenizer alone
            if len(ids) <= self.max_len and not 0 < most < len(sentences(line)):
                parts.append(Part(number, line, ids, prefix))
                continue
            texts = split_long(line, lambda text: len(self.tokenizer.encode_src([text])[0]) - 1, self.max_len - 1, most)
            # A character that its normalization spells out may alone be too long.
            ids_of = ([*ids[:-1][: self.max_len - 1], ids[-1]] for ids in self.tokenizer.encode_src(texts))
            cut = [Part(number, *part) for part in zip(texts, ids_of, strict=True)]
            first = next((i for i, part in enumerate(cut) if len(part.src_ids) > 1), 0)  # that is searched at all
            cut[first] = replace(cut[first], prefix=prefix)
            parts.extend(cut)
        return parts

    def _batches(self, parts: Sequence[Part]) -> Iterator[list[int]]:
        """Numbers of what is not blank (EOS alone), those of like length together, the longest first.

        Of the neighbours that all workers take together each gets every n-th, so that all have as much to do.
        """
        lens = [len(part.src_ids) for part in parts]
        filled = sorted((i for i in range(len(parts)) if lens[i] > 1), key=lambda i: -lens[i])
        start = 0
        while start < len(filled):
            count = self._batch_size(lens[filled[start]])
            neighbours = filled[start : start + count * self.workers]
            yield from (neighbours[i :: self.workers] for i in range(min(self.workers, len(neighbours))))
            start += len(neighbours)

    def _batch_size(self, longest: int) -> int:
        """How many sentences of up to so many pieces are translated together."""
        if self.device.type == "cuda":
            return num_sentences(self.model, longest, self.config.width)
        return max(1, BATCH_POSITIONS // (longest * self.config.width))

    def notes(self) -> list[str]:
        """What the user should know about the lines translated so far."""
        found = [refine.report() for refine in self.refine]
        if count := self.flagged["split"]:
            most = self.config.max_sentences
            over = f"{most} sentence{'s' if most > 1 else ''} or {self.max_len}" if most else self.max_len
            found.append(
                f"{count} lines of over {over} pieces were split, at sentence ends where possible"
                + ("; as text, of each the best translation alone" if self._asked > 1 else "")  # whatever MBR had
            )
        for flag, what in NOTED.items():
            if count := self.flagged[flag]:
                found.append(f"warning: {count} {what}")
        return [note for note in found if note]

    def _searched(self, batches: Sequence[Sequence[Part]]) -> Iterator[Sequence[Segment]]:
        """What is found for each batch, in order."""
        if min(self.workers, len(batches)) <= 1:
            yield from map(self._refined, batches, map(self.search, batches))
            return
        with ThreadPoolExecutor(self.workers, initializer=use_one_thread) as pool:
            yield from map(self._refined, batches, pool.map(self.search, batches))

    def _refined(self, parts: Sequence[Part], found: Sequence[Segment]) -> Sequence[Segment]:
        for refine in self.refine:
            found = refine(parts, found, self.search)
        return found

    def search(self, parts: Sequence[Part], processors: Sequence[Processor] = ()) -> list[Segment]:
        """Search some parts together, none of them blank; `processors` know them by their place among these."""
        if any(part.prefix for part in parts):
            processors = [*processors, ForcedPrefix([part.prefix for part in parts])]
        found = self._hypotheses(parts, processors)
        texts = iter(self.tokenizer.decode_all([hypothesis.ids for hypotheses in found for hypothesis in hypotheses]))
        return [
            _segment(part, hypotheses, list(islice(texts, len(hypotheses))))
            for part, hypotheses in zip(parts, found, strict=True)
        ]

    def _hypotheses(self, parts: Sequence[Part], processors: Sequence[Processor]) -> list[list[Hypothesis]]:
        src = pad([part.src_ids for part in parts], self.tokenizer.pad_id).to(self.device)  # [N, S]
        src_lens = torch.tensor([len(part.src_ids) for part in parts])  # [N]
        ids = {name: getattr(self.tokenizer, name) for name in ("bos_id", "eos_id", "pad_id")}
        plain = self.start is None and not processors
        if self.on_graphs and plain and can_record(self.model, self.config):
            return graph_search(self.model)(src, src_lens, self.config, **ids)
        with evaluating(self.model):
            step = (self.start or self.prepared.start)(src)
            seeds = [part.line for part in parts]
            return search(step, src_lens.to(self.device), self.config, processors=processors, seeds=seeds, **ids)


def _segment(part: Part, hypotheses: list[Hypothesis], texts: list[str]) -> Segment:
    starts = hypotheses[0].ids[: len(part.prefix)] == part.prefix
    return Segment(part.src_ids, hypotheses, texts, frozenset() if starts else frozenset({"prefix-missed"}))
