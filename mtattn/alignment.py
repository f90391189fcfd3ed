"""Where each word looked: the decoder's attention to the source, by piece and by word."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtattn.attention import capture_weights
from mtattn.batch import pad
from mtattn.model import Transformer, evaluating
from mtattn.tokenizer import BYTE_PIECE, Tokenizer

WORD_START = "\u2581"  # SentencePiece's mark before a word


@dataclass(frozen=True)
class Look:
    """One translation and what each of its words attended to; weights[t, s] sums to 1 over s (EOS is left out)."""

    src_words: list[str]
    tgt_words: list[str]
    weights: Tensor  # [target words, source words]

    def links(self) -> list[tuple[int, int]]:
        """(source word, target word): for each target word, the source word it attended to most."""
        if not self.tgt_words or not self.src_words:
            return []
        return [(s, t) for t, s in enumerate(self.weights.argmax(-1).tolist())]


def look(
    model: Transformer, tokenizer: Tokenizer, src_ids: Sequence[Sequence[int]], tgt_ids: Sequence[Sequence[int]]
) -> list[Look]:
    """Attention from each target word to each source word, the mean over heads of the decoder's last layer but one.

    The layer is a choice by measurement: on the toy corpus's gold alignments the layers in the middle err least, as
    Garg et al. (2019, arXiv:1909.02074) found for larger models.

    Args:
        src_ids: N sources, each ended by EOS. tgt_ids: their translations, without BOS and EOS.

    Returns:
        One Look a pair.
    """
    device = next(model.parameters()).device
    src = pad(src_ids, tokenizer.pad_id).to(device)  # [N, S]
    tgt_in = pad([[tokenizer.bos_id, *ids[:-1]] for ids in tgt_ids], tokenizer.pad_id).to(device)  # [N, T]
    attention = model.get_submodule(f"decoder.{max(0, model.config.decoder_layers - 2)}.cross_attn")
    with evaluating(model), capture_weights(attention) as captured:
        model.hidden(src, tgt_in)
    weights = captured[""][-1].mean(1)  # [N, T, S]
    looks = []
    for rows, source, target in zip(weights.float().cpu(), src_ids, tgt_ids, strict=True):
        # Row t is what was seen when token t was chosen. The source's EOS collects what no word wants.
        by_piece = rows[: len(target), : len(source) - 1]  # [pieces, pieces]
        src_pieces, tgt_pieces = tokenizer.src_pieces(source[:-1]), tokenizer.tgt_pieces(target)
        by_word = _by_word(by_piece, _word_of(tgt_pieces), _word_of(src_pieces))
        looks.append(Look(_words(src_pieces), _words(tgt_pieces), by_word))
    return looks


def _by_word(weights: Tensor, tgt_word: list[int], src_word: list[int]) -> Tensor:
    """Sum over the pieces of a source word, mean over those of a target word, then each row to 1."""
    out = weights.new_zeros(max(tgt_word, default=-1) + 1, max(src_word, default=-1) + 1)
    if not out.numel():
        return out
    columns = weights.new_zeros(len(tgt_word), out.shape[1])
    columns.index_add_(1, torch.tensor(src_word), weights)
    out.index_add_(0, torch.tensor(tgt_word), columns)
    return out / out.sum(-1, keepdim=True).clamp(min=1e-9)


def _word_of(pieces: Sequence[str]) -> list[int]:
    """The number of the word that each piece belongs to."""
    word, numbers = -1, []
    for piece in pieces:
        if piece.startswith(WORD_START) or word < 0:
            word += 1
        numbers.append(word)
    return numbers


def _words(pieces: Sequence[str]) -> list[str]:
    words: list[bytes] = []
    for piece, number in zip(pieces, _word_of(pieces), strict=True):
        if number == len(words):
            words.append(b"")
        is_byte = BYTE_PIECE.fullmatch(piece)
        words[number] += bytes.fromhex(piece[3:5]) if is_byte else piece.replace(WORD_START, "").encode()
    return [_printable(word.decode(errors="replace")) for word in words]


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
