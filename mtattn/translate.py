"""Lines in, hypotheses out: batch lines of like length, search, detokenise, restore the order."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from mtattn.tokenizer import Tokenizer

LINES_AHEAD = 10_000  # lines read before the first is written: sorting among so many leaves little padding
BATCH_POSITIONS = 16_384  # source pieces, padding included, that are translated together, times beams


@dataclass(frozen=True)
class Translation:
    """One line's outcome: its text, and the hypotheses behind it, best first (none for a blank line)."""

    text: str
    hypotheses: list[Hypothesis]
    texts: list[str]


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
    return Translator(model.to(device), tokenizer, decode, config.data)


def render(translation: Translation, translator: "Translator", *, as_json: bool) -> str:
    """What a line of output says: the text; the n-best texts, tab-separated from their line's others; or JSON."""
    if not as_json:
        return "\t".join(translation.texts) or ""
    found = [
        {
            "text": text,
            "score": hypothesis.score,
            "log_prob": hypothesis.log_prob,
            "token_log_probs": hypothesis.token_log_probs,
            "tokens": translator.tokenizer.tgt_pieces(hypothesis.ids),
            "finished": hypothesis.finished,
        }
        for text, hypothesis in zip(translation.texts, translation.hypotheses, strict=True)
    ]
    return json.dumps({"text": translation.text, "hypotheses": found}, ensure_ascii=False)


class Translator:
    """A model, its tokenizer, and how to search.

    Args:
        model: in evaluation mode or not; dropout is off while it translates.
        tokenizer: the model's own.
        config: how to search.
        trained_on: the corpora that the model's config names.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, config: DecodeConfig, trained_on: DataConfig | None = None
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.trained_on = trained_on or DataConfig()
        self.device = next(model.parameters()).device

    def translate(
        self, lines: Iterable[str], done: Callable[[int], None] = lambda count: None
    ) -> Iterator[Translation]:
        """Translate each line; as many come out as go in, in order, and a blank line comes out blank.

        Lines are read and translated in blocks, so that memory does not grow with the input.

        Args:
            lines: without line ends.
            done: told now and then how many lines have been translated.
        """
        lines = iter(lines)
        before = 0
        while block := list(islice(lines, LINES_AHEAD)):
            ids = self.tokenizer.encode_src(block)
            results = [Translation("", [], [])] * len(block)
            finished = 0
            for numbers in self._batches(ids):
                found = self._search([ids[i] for i in numbers], [before + i for i in numbers])
                for number, translation in zip(numbers, found, strict=True):
                    results[number] = translation
                finished += len(numbers)
                done(before + finished)
            before += len(block)
            yield from results

    def _batches(self, ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Numbers of the lines that are not blank (EOS alone), those of like length together, the longest first."""
        filled = sorted((i for i in range(len(ids)) if len(ids[i]) > 1), key=lambda i: -len(ids[i]))
        start = 0
        while start < len(filled):
            count = max(1, BATCH_POSITIONS // (len(ids[filled[start]]) * self.config.width))
            yield filled[start : start + count]
            start += count

    def _search(self, ids: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Translation]:
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
        return [Translation(text[0], nbest, text) for text, nbest in zip(texts, found, strict=True)]
