"""What is suspicious about a translation, seen from the outside."""

from collections.abc import Sequence

from mtattn.history import Hypothesis

LOOP_REPEATS = 4  # an n-gram this often in a row is a loop, not a style


def flags(hypothesis: Hypothesis, text: str) -> list[str]:
    """What looks wrong: "empty", "cut" at the length limit, "loop". `text` is what the hypothesis spells."""
    found = [] if text.strip() else ["empty"]
    if not hypothesis.finished:
        found.append("cut")
    if _loops(hypothesis.ids):
        found.append("loop")
    return found


def _loops(ids: Sequence[int]) -> bool:
    if len(ids) - len(set(ids)) < LOOP_REPEATS - 1:  # four in a row would leave three repeats
        return False
    return any(_repeats(ids, n) for n in range(1, len(ids) // LOOP_REPEATS + 1))


def _repeats(ids: Sequence[int], n: int) -> bool:
    """Whether some n-gram stands LOOP_REPEATS times in a row."""
    same = 0
    for i in range(n, len(ids)):
        same = same + 1 if ids[i] == ids[i - n] else 0
        if same >= n * (LOOP_REPEATS - 1):
            return True
    return False
