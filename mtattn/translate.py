"""Lines in, hypotheses out: batch lines of like length, search, detokenise, restore the order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mtattn.batching import pad
from mtattn.checkpoint import load_model
from mtattn.corpus import DataConfig
from mtattn.decode import DecodeConfig, Hypothesis, search
from mtattn.errors import ConfigError
from mtattn.model import Transformer, evaluating
from mtattn.segments import split_long
from mtattn.tokenizer import Tokenizer

LINES_AHEAD = 10_000  # lines read before the first is written: sorting among so many leaves little padding
BATCH_POSITIONS = 16_384  # source pieces, padding included, that are translated together, times beams


@dataclass(frozen=True)
class Segment:
    """A line, or a part of one that was too long: its ids and texts, and its hypotheses, best first."""

    src_ids: list[int]
    hypotheses: list[Hypothesis]
    texts: list[str]


@dataclass(frozen=True)
class Translation:
    """One line's outcome: one segment, several where the line was too long for the model, none where it was blank."""

    segments: list[Segment] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """The n-best translations; of a line in several segments the best alone."""
        if len(self.segments) == 1:
            return self.segments[0].texts
        return [" ".join(segment.texts[0] for segment in self.segments)]

    @property
    def text(self) -> str:
        """The best translation; "" for a blank line."""
        return self.texts[0]


def load_translator(
    run: Path, device: torch.device, *, beam: int | None = None, nbest: int | None = None
) -> "Translator":
    """The model of a run directory or released model, searching as its config says unless told otherwise.

    Raises:
        ModelError: no usable model there. ConfigError: beam or nbest is not allowed.
    """
    model, tokenizer, config = load_model(run)
    asked: dict[str, Any] = {"beam_size": beam, "nbest": nbest}
    if nbest is not None and beam is None:
        asked["beam_size"] = max(nbest, config.decode.beam_size)
    try:
        decode = replace(config.decode, **{name: value for name, value in asked.items() if value is not None})
    except ValueError as error:
        raise ConfigError(f"decode: {error}") from None
    return Translator(model.to(device), tokenizer, decode, max_len=config.filter.max_len, trained_on=config.data)


class Translator:
    """A model, its tokenizer, and how to search.

    Args:
        model: in evaluation mode or not; dropout is off while it translates.
        tokenizer: the model's own.
        config: how to search.
        max_len: source pieces, EOS included, that the model was trained on at most; longer lines are split.
        trained_on: the corpora that the model's config names.

    Attributes:
        num_split: lines that were too long so far.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        config: DecodeConfig,
        *,
        max_len: int = 256,
        trained_on: DataConfig | None = None,
    ) -> None:
        self.model, self.tokenizer, self.config, self.max_len = model, tokenizer, config, max_len
        self.trained_on = trained_on or DataConfig()
        self.device = next(model.parameters()).device
        self.num_split = 0

    def translate(
        self, lines: Iterable[str], done: Callable[[int], None] = lambda count: None
    ) -> Iterator[Translation]:
        """Translate each line; as many come out as go in, in order, and a blank line comes out blank.

        Lines are read and translated in blocks, so that memory does not grow with the input.

        Args:
            lines: without line ends.
            done: told now and then how many lines, and parts of long ones, have been translated.
        """
        lines = iter(lines)
        before = finished = 0
        while block := list(islice(lines, LINES_AHEAD)):
            parts, owners = self._split(block)
            segments: list[Segment | None] = [None] * len(parts)
            for numbers in self._batches(parts):
                found = self._search([parts[i] for i in numbers], [before + owners[i] for i in numbers])
                for number, segment in zip(numbers, found, strict=True):
                    segments[number] = segment
                finished += len(numbers)
                done(finished)
            translations = [Translation() for _ in block]
            for owner, segment in zip(owners, segments, strict=True):
                if segment is not None:
                    translations[owner].segments.append(segment)
            before += len(block)
            yield from translations

    def _split(self, block: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """The ids of each line, of each part where a line is too long; and the line that each belongs to."""
        parts, owners = list[list[int]](), list[int]()
        for number, (line, ids) in enumerate(zip(block, self.tokenizer.encode_src(block), strict=True)):
            if len(ids) <= self.max_len:
                parts.append(ids)
                owners.append(number)
                continue
            self.num_split += 1
            cut = split_long(line, lambda text: len(self.tokenizer.encode_src([text])[0]), self.max_len)
            parts.extend(self.tokenizer.encode_src(cut))
            owners.extend([number] * len(cut))
        return parts, owners

    def _batches(self, ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Numbers of what is not blank (EOS alone), those of like length together, the longest first."""
        filled = sorted((i for i in range(len(ids)) if len(ids[i]) > 1), key=lambda i: -len(ids[i]))
        start = 0
        while start < len(filled):
            count = max(1, BATCH_POSITIONS // (len(ids[filled[start]]) * self.config.width))
            yield filled[start : start + count]
            start += count

    def _search(self, ids: Sequence[list[int]], seeds: Sequence[int]) -> list[Segment]:
        src = pad(ids, self.tokenizer.pad_id).to(self.device)  # [N, S]
        src_lens = torch.tensor([len(row) for row in ids], device=self.device)  # [N]
        with evaluating(self.model):
            found = search(
                self.model.start(src),
                src_lens,
                self.config,
                bos_id=self.tokenizer.bos_id,
                eos_id=self.tokenizer.eos_id,
                pad_id=self.tokenizer.pad_id,
                seeds=seeds,
            )
        texts = [[self.tokenizer.decode(hypothesis.ids) for hypothesis in nbest] for nbest in found]
        return [Segment(*segment) for segment in zip(ids, found, texts, strict=True)]
