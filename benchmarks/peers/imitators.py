"""Engines with other weights, made to write as many tokens as mtattn does: their text means nothing, their time does.

What is comparable: the shape of the model, the source ids, how they are sorted and batched, the beam, and the number of
decoding steps, which for a batch is the mean of mtattn's lengths in it. No engine can end a sentence before the others
of its batch, which mtattn and CTranslate2 do and profit from; nor are there ends to look for.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from peers.contenders import Contender
from torch import Tensor

from mtattn.batch import pad
from mtattn.tokenizer import Tokenizer
from mtattn.translate import Translator

Write = Callable[[Tensor, int, int], list[list[int]]]
"""(padded sources [N, S], beam size, number of tokens t) -> ids, [N] lists of t."""


def in_batches(
    tokenizer: Tokenizer, lines: Sequence[str], batch: int, write: Callable[[Tensor, list[int]], list[list[int]]]
) -> list[str]:
    """Translate lines, the longest first, so many a batch: (padded sources [N, S], which lines) -> ids, N lists."""
    encoded = tokenizer.encode_src(lines)
    order = sorted(range(len(lines)), key=lambda i: -len(encoded[i]))
    texts = [""] * len(lines)
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        src = pad([encoded[i] for i in numbers], tokenizer.pad_id)  # [N, S]
        for i, text in zip(numbers, tokenizer.decode_all(write(src, numbers)), strict=True):
            texts[i] = text
    return texts


class Imitator:
    """Lines in, lines out, by an engine that is told how many tokens to write.

    Args:
        translator: mtattn's, which says how many.
        write: the engine.
    """

    def __init__(self, translator: Translator, write: Write) -> None:
        self.translator, self.tokenizer, self.write = translator, translator.tokenizer, write
        self.lengths: dict[tuple[str, int], int] = {}  # (line, beam size) -> tokens, EOS included

    def learn(self, lines: Sequence[str], beam: int) -> None:
        """Let mtattn translate what it has not yet, to know the lengths."""
        unknown = [line for line in lines if (line, beam) not in self.lengths]
        self.translator.config = replace(self.translator.config, search="beam", beam_size=beam, nbest=1)
        for line, found in zip(unknown, self.translator.translate(unknown), strict=True):
            self.lengths[line, beam] = sum(len(segment.hypotheses[0].ids) + 1 for segment in found.segments)

    def translate(self, lines: Sequence[str], beam: int, batch: int) -> list[str]:
        """Lines that were learnt, so many a batch."""

        def write(src: Tensor, numbers: list[int]) -> list[list[int]]:
            return self.write(src, beam, max(1, round(statistics.mean(self.lengths[lines[i], beam] for i in numbers))))

        return in_batches(self.tokenizer, lines, batch, write)


def marian(translator: Translator, dtype: torch.dtype) -> Write:
    """`generate` of transformers' MarianMT on the translator's device; it keeps the keys of earlier steps."""
    from transformers import MarianConfig, MarianMTModel

    config, tokenizer = translator.model.config, translator.tokenizer
    torch.manual_seed(0)
    model = MarianMTModel(
        MarianConfig(
            vocab_size=tokenizer.tgt_vocab_size,
            decoder_vocab_size=tokenizer.tgt_vocab_size,
            d_model=config.d_model,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_attention_heads=config.num_heads,
            decoder_attention_heads=config.num_heads,
            encoder_ffn_dim=config.d_ff,
            decoder_ffn_dim=config.d_ff,
            pad_token_id=tokenizer.pad_id,
            eos_token_id=tokenizer.eos_id,
            decoder_start_token_id=tokenizer.bos_id,
            forced_eos_token_id=None,
        )
    ).eval()
    model.to(translator.device, dtype)

    @torch.inference_mode()
    def write(src: Tensor, beam: int, length: int) -> list[list[int]]:
        src = src.to(translator.device)
        mask = src != tokenizer.pad_id
        lengths = {"min_new_tokens": length, "max_new_tokens": length}
        ids = model.generate(src, attention_mask=mask, num_beams=beam, do_sample=False, **lengths)
        return ids[:, 1:].tolist()

    return write


def joeynmt(process: Contender, pad_id: int) -> Write:
    """JoeyNMT's own greedy and beam search in its process, which compute all earlier steps anew at each."""

    def write(src: Tensor, beam: int, length: int) -> list[list[int]]:
        rows = [row[row != pad_id].tolist() for row in src]
        question = {"translate": rows, "max_len": length, "min_len": length, "beam": beam}
        return process.ask(question)["translations"]

    return write
