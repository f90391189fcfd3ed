"""Which pairs are not worth training on."""

from dataclasses import dataclass
from typing import Any, ClassVar

from mtattn.scripts import num_words

COPY_WORDS = 3  # names and numbers translate to themselves; what has more words than this and does was not translated


@dataclass(frozen=True)
class FilterConfig:
    """The `[filter]` section: which training pairs are left out. Dev and test are never filtered.

    max_len: pieces on either side, EOS included. max_ratio: the longer side's pieces over the shorter's, for pairs
    of more than 10 pieces. duplicate: a pair seen before. identical: a target that copies its source (`is_copy`).
    leaked: a source or target sentence of dev or test. A pair with a side of no piece but EOS is always left out.
    """

    max_len: int = 256
    max_ratio: float = 6.0
    duplicate: bool = True
    identical: bool = True
    leaked: bool = True
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.max_len < 2:
            raise ValueError(f"max_len is {self.max_len}; allowed: 2 or more (one piece and EOS)")
        if not self.max_ratio >= 1:
            raise ValueError(f"max_ratio is {self.max_ratio}; allowed: 1 or more")


def why_left_out(
    src: str, tgt: str, src_len: int, tgt_len: int, config: FilterConfig, held_out: frozenset[str]
) -> str | None:
    """The reason to leave a pair out of training, or None.

    Args:
        src_len, tgt_len: pieces of each side, EOS included.
        held_out: sentences of dev and test.
    """
    longer, shorter = max(src_len, tgt_len), min(src_len, tgt_len)
    if shorter < 2:  # EOS alone: the tokenizer may strip what str.strip() keeps, such as U+200B
        return "blank"
    if longer > config.max_len:
        return "too long"
    if longer > 10 and longer > config.max_ratio * shorter:
        return "length ratio"
    if config.identical and is_copy(src, tgt):
        return "identical"
    if src in held_out or tgt in held_out:
        return "in dev or test"
    return None


def is_copy(src: str, tgt: str) -> bool:
    """Whether the target is the source, over more than COPY_WORDS words."""
    return src == tgt and num_words(src) > COPY_WORDS
