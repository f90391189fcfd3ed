"""`mtattn inspect`: a translation with a picture, in text, of where each of its words looked."""

from collections.abc import Iterable, Iterator

from rich.cells import cell_len

from mtattn.alignment import Look, look
from mtattn.translate import Translator

SHADES = " .:-=+*#%@"  # one character for each tenth of a word's attention


def inspect_lines(translator: Translator, lines: Iterable[str]) -> Iterator[str]:
    """For each line: the source, the translation, and a grid with a row for each target word."""
    for number, line in enumerate(lines):
        (translation,) = translator.translate([line], first=number)
        if not translation.segments:
            yield "(blank)\n"
            continue
        sources = [segment.src_ids for segment in translation.segments]
        targets = [segment.hypotheses[0].ids for segment in translation.segments]
        grids = [draw(seen) for seen in look(translator.model, translator.tokenizer, sources, targets)]
        yield "\n\n".join([f"{line}\n{translation.text}", *grids]) + "\n"


def draw(seen: Look) -> str:
    """The attention grid as text: target words down, source words across, darker is more."""
    width = max(map(cell_len, seen.tgt_words), default=0)
    header = [f"{'':{width}}  " + "".join(f"{i + 1:>3}" for i in range(len(seen.src_words)))]
    rows = [
        f"{' ' * (width - cell_len(word))}{word}  " + "".join(f"  {SHADES[min(int(10 * weight), 9)]}" for weight in row)
        for word, row in zip(seen.tgt_words, seen.weights.tolist(), strict=True)
    ]
    legend = "  ".join(f"{i + 1} {word}" for i, word in enumerate(seen.src_words))
    return "\n".join([*header, *rows, "", legend])
