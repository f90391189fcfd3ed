"""What does a model score, in both ways that papers report BLEU, and is one model better than another?

    python benchmarks/scores.py runs/A [--split test]          # translates a split of the run's config
    python benchmarks/scores.py runs/A runs/B                   # also a paired bootstrap test of B against A
    python benchmarks/scores.py a.de b.de --ref test.de         # files of translations instead of runs

- "cased": sacreBLEU's default (13a on detokenised, cased text), comparable across papers (Post 2018).
- "lowercased, tokenised": what Multi30k papers report: both sides lowercased, with normalised punctuation, and split by
  the Moses tokenizer, so that references are those of the dataset's own `lc.norm.tok` files; BLEU of those tokens
  without smoothing, as multi-bleu.perl computes it. It needs `pip install sacremoses`; without it, 13a's tokens stand
  in and the label says so (here and there by some tenths of a point different).

Each score has its 95 % interval over 1,000 bootstrap resamples; the p-value is that of the difference to the first
model (Koehn 2004; sacreBLEU's paired bootstrap, seed 12345).
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from measuring import lines_of, take_json, write_json
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest

from mtattn.checkpoint import read_config
from mtattn.config import Config
from mtattn.prepare import load_split
from mtattn.translate import load_translator

Rewrite = Callable[[str], str]


def ways(language: str) -> dict[str, tuple[BLEU, Rewrite]]:
    """Label -> (metric, what is done to hypothesis and reference before it)."""
    cased: dict[str, tuple[BLEU, Rewrite]] = {"cased, detokenised (sacreBLEU 13a)": (BLEU(), str)}
    try:
        from sacremoses import MosesPunctNormalizer, MosesTokenizer
    except ImportError:
        return cased | {"lowercased, 13a tokens (not Moses: no sacremoses)": (BLEU(lowercase=True), str)}
    normalizer, moses = MosesPunctNormalizer(lang=language), MosesTokenizer(lang=language)

    def tokens(line: str) -> str:
        return str(moses.tokenize(normalizer.normalize(line.lower()), return_str=True, escape=False))

    multi_bleu = BLEU(tokenize="none", smooth_method="none", force=True)
    return cased | {"lowercased, tokenised (Moses, multi-bleu)": (multi_bleu, tokens)}


def compare(outputs: Mapping[str, Sequence[str]], reference: Sequence[str], language: str) -> list[dict[str, Any]]:
    """One row for each way to score and each output; the first output is what the others are compared with."""
    rows: list[dict[str, Any]] = []
    for label, (metric, rewrite) in ways(language).items():
        rewritten = [[rewrite(line) for line in reference]]
        systems: list[tuple[str, Sequence[str]]] = [
            (name, [rewrite(line) for line in lines]) for name, lines in outputs.items()
        ]
        if len(systems) == 1:
            score = metric.corpus_score(systems[0][1], rewritten, n_bootstrap=1000)
            found: list[Any] = [(systems[0][0], score.score, score._ci, None)]
            signature = str(metric.get_signature())
        else:
            signatures, columns = PairedTest(systems, {"BLEU": metric}, rewritten, test_type="bs")()
            names, results = cast(dict[str, list[Any]], columns).values()
            same = {name for name, lines in systems[1:] if lines == systems[0][1]}  # sacreBLEU says 0.001 of these
            found = [
                (name, r.score, r.ci, 1.0 if name in same else r.p_value)
                for name, r in zip(names, results, strict=True)
            ]
            signature = str(signatures["BLEU"])
        for name, bleu, interval, p_value in found:
            row = {"how": label, "model": name, "bleu": bleu, "interval": interval, "p_value": p_value}
            rows.append({**row, "signature": signature})
    return rows


def translated(run: Path, config: Config, split: str, beam: int | None, device: str) -> tuple[list[str], list[str]]:
    """(translations, references) of a split."""
    pairs = load_split(config.data, split)
    translator = load_translator(run, torch.device(device), beam=beam)
    return [translation.text for translation in translator.translate(pairs.src)], pairs.tgt


def show(rows: Sequence[dict[str, Any]], num_sentences: int) -> None:
    """Print what `compare` found as a table, with the signatures."""
    print("| how | model | BLEU | 95 % interval | p (against the first) |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        p_value = "" if row["p_value"] is None else f"{row['p_value']:.3f}"
        print(f"| {row['how']} | {row['model']} | {row['bleu']:.2f} | ± {row['interval']:.2f} | {p_value} |")
    print(f"\n{num_sentences} sentences")
    for signature in dict.fromkeys(row["signature"] for row in rows):
        print(signature)


def main() -> None:
    """Translate or read, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", type=Path, nargs="+", help="run directories, released models or files of translations"
    )
    parser.add_argument("--split", default="test", choices=("dev", "test"), help="of the runs' configs")
    parser.add_argument("--ref", type=Path, help="the references, when the models are files")
    parser.add_argument("--language", default="de", help="code of the target language, for files")
    parser.add_argument("--beam", type=int, help="default: the config's")
    parser.add_argument("--device", default="cpu")
    take_json(parser)
    options = parser.parse_args()
    outputs: dict[str, Sequence[str]] = {}
    reference = lines_of(options.ref) if options.ref else []
    language = options.language
    for model in options.models:
        if model.is_file():
            outputs[str(model)] = lines_of(model)
            continue
        config = read_config(model)
        outputs[str(model)], split = translated(model, config, options.split, options.beam, options.device)
        if reference and split != reference:
            sys.exit(f"{model}: its {options.split} split has other references than what came before")
        reference, language = split, config.data.tgt
    if not reference:
        sys.exit("files of translations need --ref")
    if wrong := [name for name, lines in outputs.items() if len(lines) != len(reference)]:
        sys.exit(f"{', '.join(wrong)}: not as many lines as the {len(reference)} references")
    rows = compare(outputs, reference, language)
    write_json(options, {"num_sentences": len(reference), "rows": rows})
    show(rows, len(reference))


if __name__ == "__main__":
    main()
