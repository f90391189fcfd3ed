"""SentencePiece subwords: trained inside `train`, kept in the run directory, no separate vocabulary step or file."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import sentencepiece

from mtattn.errors import CorpusError, ModelError
from mtattn.interrupts import interruptible
from mtattn.storage import read_small

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")  # how SentencePiece writes a piece that is a byte
LONGEST_LINE = 4_192  # bytes: SentencePiece's own limit
NUM_RESERVED = 4 + 256  # the four special pieces, and one piece a byte (byte_fallback), so that <unk> cannot appear


@dataclass(frozen=True)
class TokenizerConfig:
    """The `[tokenizer]` section.

    kind: the subword model: "unigram" (Kudo 2018) or "bpe" (Sennrich et al. 2016).
    vocab_size: pieces; lowered by itself when the corpus is too small for it.
    joint: one vocabulary for both languages (and then one embedding table), or one a language.
    sampling: subword regularisation while training: 0 is off; for "bpe" the probability of leaving out a merge
        (BPE-dropout, Provilkov et al. 2020; 0.1 is usual), for "unigram" the smoothing alpha of Kudo (2018).
    max_sentences: lines that the subword model is trained on at most, sampled; training it takes about 1 kB for each.
    normalization: SentencePiece's rule: "nmt_nfkc" also folds compatibility characters and strips control
        characters; "identity" leaves the text as it is.
    """

    kind: Literal["unigram", "bpe"] = "unigram"
    vocab_size: int = 8000
    joint: bool = True
    sampling: float = 0.0
    max_sentences: int = 200_000
    normalization: Literal["nmt_nfkc", "nfkc", "identity"] = "nmt_nfkc"
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not NUM_RESERVED < self.vocab_size <= 1_000_000:
            raise ValueError(
                f"vocab_size is {self.vocab_size}; allowed: more than {NUM_RESERVED} (4 special pieces and 256 bytes), "
                "at most 1,000,000"
            )
        if not 1 <= self.max_sentences <= 1_000_000_000:
            raise ValueError(f"max_sentences is {self.max_sentences}; allowed: 1 to 1,000,000,000")
        if not 0 <= self.sampling < 1:
            raise ValueError(f"sampling is {self.sampling}; allowed: 0 <= sampling < 1")


class Tokenizer:
    """Text to ids and back, for the source and the target side (one SentencePiece model when joint)."""

    pad_id, bos_id, eos_id = PAD_ID, BOS_ID, EOS_ID

    def __init__(self, src_model: bytes, tgt_model: bytes | None = None) -> None:
        self._models = (src_model,) if tgt_model is None else (src_model, tgt_model)
        try:
            loaded = [sentencepiece.SentencePieceProcessor(model_proto=model) for model in self._models]
        except RuntimeError as error:
            raise ModelError(f"the tokenizer is not a SentencePiece model: {error}") from None
        for processor in loaded:
            ids = (processor.pad_id(), processor.bos_id(), processor.eos_id(), processor.unk_id())
            if ids != (PAD_ID, BOS_ID, EOS_ID, UNK_ID):
                raise ModelError(f"the tokenizer has pad, bos, eos, unk at {ids}; mtattn writes them at (0, 1, 2, 3)")
        self._src, self._tgt = loaded[0], loaded[-1]

    @property
    def processors(self) -> tuple[Any, Any]:
        """SentencePiece's own objects, of the source and of the target."""
        return self._src, self._tgt

    @property
    def joint(self) -> bool:
        """Whether both sides share one vocabulary."""
        return len(self._models) == 1

    @property
    def src_vocab_size(self) -> int:
        """Pieces on the source side."""
        return int(self._src.get_piece_size())

    @property
    def tgt_vocab_size(self) -> int:
        """Pieces on the target side."""
        return int(self._tgt.get_piece_size())

    def encode_src(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each source text, ended by EOS."""
        return self._src.encode(list(texts), out_type=int, add_eos=True)  # type: ignore[no-any-return]

    def encode_tgt(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each target text, ended by EOS; BOS is added where the decoder input is made."""
        return self._tgt.encode(list(texts), out_type=int, add_eos=True)  # type: ignore[no-any-return]

    def decode(self, ids: Sequence[int]) -> str:
        """Target ids to one line of text; a line break that byte pieces may spell becomes a space."""
        return self.decode_all([ids])[0]

    def decode_all(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """`decode` of each of many, at once and on all cores."""
        texts: list[str] = self._tgt.decode([[i for i in ids if i > UNK_ID] for ids in rows])
        return [text.replace("\r", " ").replace("\n", " ") for text in texts]

    def src_pieces(self, ids: Sequence[int]) -> list[str]:
        """The pieces behind source ids, as SentencePiece writes them."""
        return [self._src.id_to_piece(i) for i in ids]

    def tgt_pieces(self, ids: Sequence[int]) -> list[str]:
        """The pieces behind target ids."""
        return [self._tgt.id_to_piece(i) for i in ids]

    def to_files(self) -> dict[str, bytes]:
        """File name -> content: `tokenizer.model`, or `tokenizer.src.model` and `tokenizer.tgt.model`."""
        return dict(zip(file_names(self.joint), self._models, strict=True))

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read what `to_files` described.

        Raises:
            ModelError: no tokenizer there, far too large, or not a SentencePiece model of this project. FileError: it
                cannot be read.
        """
        for joint in (True, False):
            paths = [folder / name for name in file_names(joint)]
            if all(path.is_file() for path in paths):
                return cls(*map(read_small, paths))
        raise ModelError(f"{folder}: no tokenizer.model here; is this a run directory or a released model?")


def file_names(joint: bool) -> tuple[str, ...]:
    """What the SentencePiece models are called in a run directory."""
    return ("tokenizer.model",) if joint else ("tokenizer.src.model", "tokenizer.tgt.model")


def train_tokenizer(src: Iterable[str], tgt: Iterable[str], config: TokenizerConfig) -> tuple[Tokenizer, list[str]]:
    """Train the subword model(s) on both sides of the corpus.

    Args:
        src, tgt: texts; may be iterated once.

    Returns:
        The tokenizer, and notes for the user (such as a lowered vocabulary size).
    """
    alternating = chain.from_iterable(zip(src, tgt, strict=True))
    sides = [("joint", alternating)] if config.joint else [("source", iter(src)), ("target", iter(tgt))]
    notes: list[str] = []
    models: list[bytes] = []
    for name, texts in sides:
        # A list, since a vocabulary that turns out too large is trained again; the sample bounds its memory.
        lines = list(islice(texts, config.max_sentences))
        model = _train_one(lines, config)
        size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
        if size < config.vocab_size:
            notes.append(
                f"the {name} vocabulary has {size} pieces instead of {config.vocab_size}: the corpus holds no more"
            )
        models.append(model)
    return Tokenizer(*models), notes


def _train_one(lines: list[str], config: TokenizerConfig) -> bytes:
    vocab_size = config.vocab_size
    while True:
        model = BytesIO()
        train = partial(
            sentencepiece.SentencePieceTrainer.train,
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=config.kind,
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name=config.normalization,
            hard_vocab_limit=False,
            pad_id=PAD_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            minloglevel=2,
        )
        try:
            interruptible(train)  # minutes, for millions of lines
        except (RuntimeError, OSError) as error:
            vocab_size = _largest_possible(str(error), vocab_size)
        else:
            return model.getvalue()


def _largest_possible(message: str, vocab_size: int) -> int:
    """The vocabulary size that SentencePiece's refusal asks for, or CorpusError when it refuses for another reason."""
    allowed = re.search(r"value <= (\d+)", message)
    if allowed and int(allowed[1]) < vocab_size:
        return int(allowed[1])
    if "smaller than required_chars" in message:
        needed = re.search(r"required_chars\. (\d+) vs (\d+)", message)
        least = f" to at least {needed[2]}" if needed else ""
        raise CorpusError(
            f"tokenizer.vocab_size = {vocab_size} cannot hold the characters of this corpus; raise it{least}"
        )
    if "sentences_.empty()" in message:
        raise CorpusError(
            f"no line has at most {LONGEST_LINE:,} bytes, and SentencePiece skips longer ones: give a sentence a line"
        )
    if "all_chars_count" in message:
        raise CorpusError("no line of this corpus has a visible character")
    raise CorpusError(f"SentencePiece could not learn a vocabulary from this corpus: {message.strip()}")
