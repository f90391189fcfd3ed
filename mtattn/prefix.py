"""Lines of input, each with what its translation has to start with: two files read in step."""

from collections.abc import Iterable, Iterator
from itertools import zip_longest

from mtattn.errors import CorpusError


def paired(lines: Iterable[str], prefixes: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(line, prefix) of each line, read as they are asked for.

    Raises:
        CorpusError: one of the two ends before the other; the message says after how many.
    """
    left, right = iter(lines), iter(prefixes)
    for count, (line, prefix) in enumerate(zip_longest(left, right)):
        if line is None or prefix is None:
            # Lines are not counted to their end: who sends them may wait for an answer before there are more.
            num_lines = count if line is None else f"more than {count}"
            num_prefixes = count if prefix is None else count + 1 + sum(1 for _ in right)
            raise CorpusError(
                f"{num_lines} lines to translate, but {num_prefixes} lines of prefixes: line n of --prefix belongs to "
                "line n of the input, and an empty line leaves its translation free; give equally many"
            )
        yield line, prefix
