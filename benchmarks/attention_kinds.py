"""Which attention for the toy corpus: BLEU, loss and time by kind of score, position and number of heads.

    python benchmarks/attention_kinds.py [--steps 600] [--json OUT]

Every row changes one thing of the first, trains the same number of steps on the bundled corpus with the same seeds, and
is scored on its test split (greedy). Times are of training alone, so compare them within one run.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import take_json, write_json

from mtattn.attention import POSITIONS, SCORES
from mtattn.checkpoint import RunDirectory
from mtattn.config import load_config
from mtattn.progress import Reporter
from mtattn.scoring import evaluate_run
from mtattn.train import train
from mtattn.validate import dev_loss

HEADS = (1, 2, 4, 8)
BASE = {"score": "scaled_dot", "position": "rotary", "heads": 4, "kv_heads": 4}


def variants() -> list[dict[str, Any]]:
    """The base, then one change at a time."""
    rows = [BASE]
    rows += [{**BASE, "score": score} for score in SCORES if score != BASE["score"]]
    rows += [{**BASE, "position": kind} for kind in POSITIONS if kind != BASE["position"]]
    rows += [{**BASE, "heads": heads, "kv_heads": heads} for heads in HEADS if heads != BASE["heads"]]
    rows += [{**BASE, "kv_heads": kv_heads} for kv_heads in (2, 1)]
    return rows


def measure(variant: dict[str, Any], steps: int, seed: int) -> dict[str, float]:
    """Train one variant and score it on the test split."""
    from mtattn.prepare import load_split
    from mtattn.translate import load_translator

    overrides = [
        f"train.max_steps={steps}",
        "train.max_epochs=0",
        "model.dropout=0.1",
        "train.embeddings=random",
        f"train.seed={seed}",
        f"train.valid_every={steps}",
        "train.valid_sentences=50",
        f'model.score="{variant["score"]}"',
        f'model.position.kind="{variant["position"]}"',
        f"model.num_heads={variant['heads']}",
        f"model.num_kv_heads={variant['kv_heads']}",
    ]
    config = load_config("toy", overrides)
    with tempfile.TemporaryDirectory() as folder:
        run, report, cpu = Path(folder) / "run", Reporter(), torch.device("cpu")
        report.console.quiet = True  # the table is the output
        result = train(config, RunDirectory(run), report, device=cpu)
        scores = evaluate_run(run, "test", None, device=cpu, beam=1, report=report)
        translator = load_translator(run, cpu)
        loss = dev_loss(translator.model, translator.tokenizer, load_split(config.data, "test"))
    return {"bleu": scores["bleu"], "loss": loss, "seconds": result.elapsed_s}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1)
    take_json(parser)
    arguments = parser.parse_args()
    print("| score | position | heads | key/value heads | BLEU | loss, nats/token | training time |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    found: list[dict[str, Any]] = []
    base_seconds = 0.0
    for variant in variants():
        measured = [measure(variant, arguments.steps, seed) for seed in range(1, arguments.seeds + 1)]
        means = {key: statistics.mean(m[key] for m in measured) for key in measured[0]}
        base_seconds = base_seconds or means["seconds"]
        found.append({**variant, **means})
        print(
            f"| {variant['score']} | {variant['position']} | {variant['heads']} | {variant['kv_heads']} "
            f"| {means['bleu']:.1f} | {means['loss']:.3f} | {means['seconds'] / base_seconds:.2f} x |",
            flush=True,
        )
    print(f"\n{arguments.steps} steps, {arguments.seeds} seed(s); 1 x = {base_seconds:.0f} s of training")
    write_json(arguments, found)


if __name__ == "__main__":
    main()
