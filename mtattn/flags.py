"""What is suspicious about a translation, seen from the outside."""

from collections.abc import Sequence

from mtattn.decode import Hypothesis

LOOP_REPEATS = 4  # an n-gram this often in a row is a loop, not a style


def flags(hypothesis: Hypothesis, text: str) -> list[str]:
    """The names of what is: "empty", "cut" at the length limit, "loop". `text` is what the hypothesis spells."""
    found = [] if text.strip() else ["empty"]
    if not hypothesis.finished:
        found.append("cut")
    if any(_loops(hypothesis.ids, n) for n in range(1, len(hypothesis.ids) // LOOP_REPEATS + 1)):
        found.append("loop")
    return found


def _loops(ids: Sequence[int], n: int) -> bool:
    """Whether some n-gram stands LOOP_REPEATS times in a row."""
    same = 0
    for i in range(n, len(ids)):
        same = same + 1 if ids[i] == ids[i - n] else 0
        if same >= n * (LOOP_REPEATS - 1):
            return True
    return False
