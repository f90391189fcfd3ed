"""Are the sizes that `mtattn train` chooses by itself as good as hand-made configs?

    python benchmarks/sizing.py 'train.{en,de}' --dev 'val.{en,de}' --test 'test.{en,de}' \\
        [--src en --tgt de] [--pairs 3000,30000,157000] [--minutes 30] [--hand small,tatoeba-en-de] [--json OUT]

For each number of pairs a random part of the training corpus, the same for all, is trained on with the sizes chosen
automatically and with each hand-made config, which is one of `HAND_MADE` or a bundled one on this corpus, all with the
same limit of training minutes. A table for each number of pairs gives beam-search scores on the test corpus; its last
column is how far BLEU is below the table's best. The corpus has to hold as many pairs as --pairs says at most. A
corpus is named as in a config's [data] section. Runs stay in --folder, and running the same command again goes on
where it stopped.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import numbers, take_json, write_json

from mtattn.checkpoint import RunDirectory
from mtattn.corpus import DataConfig
from mtattn.prepare import open_corpus
from mtattn.progress import Reporter
from mtattn.resolve import resolve
from mtattn.scoring import evaluate_run
from mtattn.threads import use_threads
from mtattn.train import train

HAND_MADE = {
    "small": ("tokenizer.vocab_size=2000", "model.preset=tiny", "model.dropout=0.3", "train.batch_tokens=1024"),
    "medium": ("tokenizer.vocab_size=4000", "model.d_model=192", "model.d_ff=768", "train.batch_tokens=2048"),
}
"""What a person would write for three and for ten thousand pairs: what differs from the defaults (256 wide, 3 + 3
layers, dropout 0.3). For more there are bundled configs."""


def write_part(data: DataConfig, pairs: int, folder: Path) -> str:
    """Two text files with a seeded choice of the training pairs; the corpus name that means them.

    Raises:
        SystemExit: there are not so many.
    """
    corpus = open_corpus(data)
    total = len(corpus.dataset)
    if pairs > total:
        raise SystemExit(f"{data.train}: has {total:,} pairs; give --pairs up to that")
    rows = corpus.dataset[np.sort(np.random.default_rng(1).permutation(total)[:pairs])]
    folder.mkdir(parents=True, exist_ok=True)
    for side, language in (("src", data.src), ("tgt", data.tgt)):
        lines = (text.replace("\n", " ") for text in rows[side])
        (folder / f"train.{language}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return f"{folder.resolve()}/train.{{{data.src},{data.tgt}}}"


def trained(name: str, data: dict[str, str], run: Path, minutes: float, device: torch.device) -> dict[str, Any]:
    """Scores of one contender, and what it was."""
    report = Reporter()
    named = [f"data.{key}={json.dumps(value)}" for key, value in data.items()]
    given = [*named, f"train.max_minutes={minutes}"]
    source = None if name == "auto" else name  # only without a config are sizes chosen
    if source is not None:
        given.append("train.max_epochs=0")
    if name in HAND_MADE:
        given.extend(HAND_MADE[name])
        source = str(run.with_suffix(".toml"))
        Path(source).write_text("", encoding="utf-8")
    directory = RunDirectory(run)
    resolved = resolve(source, given, directory, report, device=device)
    for note in resolved.notes:
        report.note(note)
    outcome = train(resolved.config, directory, report, device=device)
    scores = evaluate_run(run, "test", None, device=device, beam=None, report=report)
    config = directory.read_config()
    return {
        "name": name,
        "bleu": scores["bleu"],
        "chrf": scores["chrf"],
        "dev_bleu": outcome.best_bleu,
        "steps": outcome.step,
        "minutes": outcome.elapsed_s / 60,
        "vocab_size": config.tokenizer.vocab_size,
        "d_model": config.model.d_model,
        "layers": config.model.encoder_layers,
        "dropout": config.model.dropout,
        "signature": scores["signature"]["bleu"],
    }


def show(pairs: int, rows: list[dict[str, Any]]) -> None:
    """One table."""
    best = max(row["bleu"] for row in rows)
    print(f"\n{pairs:,} pairs")
    print("| config | vocabulary | d_model | layers | dropout | steps | minutes | BLEU | chrF | below |")
    print("| --- " * 10 + "|")
    for row in rows:
        sizes = f"{row['vocab_size']:,} | {row['d_model']} | {row['layers']} | {row['dropout']}"
        scores = f"{row['bleu']:.1f} | {row['chrf']:.1f} | {best - row['bleu']:.1f}"
        print(f"| {row['name']} | {sizes} | {row['steps']:,} | {row['minutes']:.1f} | {scores} |", flush=True)


def main() -> None:
    """Parse, cut the corpus, train, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="training corpus, named as in a config")
    parser.add_argument("--dev", required=True)
    parser.add_argument("--test", help="default: the dev corpus, which flatters all alike")
    parser.add_argument("--src", default="en", help="language code of the source")
    parser.add_argument("--tgt", default="de", help="language code of the target")
    parser.add_argument("--pairs", type=numbers, default="3000,30000,157000")
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, for each contender")
    hand = ",".join([*HAND_MADE, "multi30k-en-de-quick", "tatoeba-en-de"])
    parser.add_argument("--hand", default=hand, help="hand-made configs to compare with")
    parser.add_argument("--folder", type=Path, default=Path("runs/sizing"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    take_json(parser)
    options = parser.parse_args()
    use_threads(options.threads)
    whole = DataConfig(src=options.src, tgt=options.tgt, train=options.train)
    results: dict[int, list[dict[str, Any]]] = {}
    for pairs in options.pairs:
        folder = options.folder / str(pairs)
        data = {"src": options.src, "tgt": options.tgt, "train": write_part(whole, pairs, folder / "text")}
        data |= {"dev": options.dev, "test": options.test or options.dev, "folder": ""}
        rows = results[pairs] = []
        for name in ("auto", *options.hand.split(",")):
            rows.append(trained(name, data, folder / name, options.minutes, torch.device(options.device)))
            write_json(options, results)
        show(pairs, rows)


if __name__ == "__main__":
    main()
