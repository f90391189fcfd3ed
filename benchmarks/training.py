"""How fast does mtattn train, beside JoeyNMT, Hugging Face's MarianMT and a plain torch.nn.Transformer loop?

    python benchmarks/training.py CORPUS                  # target tokens a second, about 6 minutes on two CPU cores
    python benchmarks/training.py CORPUS --to-bleu 30     # training minutes to that greedy BLEU on val; up to an hour
    python benchmarks/training.py CORPUS --device cuda

CORPUS is a folder with train.en, train.de, val.en and val.de, or whatever --config and --set name. All train models
of equal shape (the config's: 256/1024, 4 heads, 3+3 layers), with the same subwords, on the same batches (padded; on a
GPU mtattn packs them), with label smoothing and dropout of the same rates in the same places, tied embeddings and
clipped gradients; each with the optimiser step that is usual for it. A contender is a process of its own
(benchmarks/peers/) that stays alive and waits while others compute: they take turns on the same batches, so that a slow
minute of the machine meets all of them. A ratio compares turns on the same batches and is given as median [lowest,
highest]; above 1x, mtattn is the faster. Counted are target tokens with EOS, without padding.

With --to-bleu, learning rates rise for --warmup steps and then stay, so that no schedule has to know how long training
will take. mtattn is scored with the average of its weights that it would release, the others with their weights as they
are, at the rate of --peer-lr. The first run makes the peers' environments, in --cache; a peer that cannot be installed
is left out.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from measuring import take_json, write_json
from peers.contenders import CONTENDERS, DEFAULT_TO_BLEU, ON_CPU, OURS, Contender, begin, say
from peers.protocol import Job, write_groups

import mtattn
from mtattn.batching import Batches, Position
from mtattn.budget import make_batches
from mtattn.config import Config, load_config
from mtattn.evaluate import score
from mtattn.prepare import Prepared, cache_folder, prepare
from mtattn.progress import Reporter
from mtattn.tokenizer import Tokenizer

PAUSE = 0.25  # seconds between turns: some thread pools spin for 0.2 s before they sleep
PLAIN = ("loss.rdrop=0", "train.batch_tokens=4096")  # of the config: what every contender can do, and fits a CPU
CACHE = cache_folder() / "peers"


def make_config(options: argparse.Namespace) -> Config:
    """The mtattn config that all contenders follow."""
    overrides = [*PLAIN, "data.test=[]", *options.set]
    if options.corpus is not None:
        overrides.insert(0, f"data.folder={json.dumps(str(options.corpus.resolve()))}")
    if options.device == "cuda":
        overrides.insert(0, "train.precision=auto")
    return load_config(options.config, overrides)


def steps_of_batches(batches: Batches, accumulate: int, most: int) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """(src, tgt_out) of each batch of each of the first steps; a step's batches are of one epoch."""
    steps = 0
    for epoch in count():
        numbers = iter(range(len(batches.plan(epoch))))
        while group := [batches.at(Position(epoch, number)) for number in islice(numbers, accumulate)]:
            if steps == most:
                return
            yield [(batch.src, batch.tgt_out) for batch in group]
            steps += 1


def make_job(config: Config, tokenizer: Tokenizer, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The job without its variant."""
    model = config.model
    for name, content in tokenizer.to_files().items():
        (folder / name).write_bytes(content)
    job = Job(
        batches=str(folder / "batches.npz"),
        config=config.to_toml(),
        tokenizer=str(folder),
        device=options.device,
        threads=options.threads,
        seed=config.train.seed,
        vocab_size=tokenizer.tgt_vocab_size,
        d_model=model.d_model,
        d_ff=model.d_ff,
        num_heads=model.num_heads,
        encoder_layers=model.encoder_layers,
        decoder_layers=model.decoder_layers,
        dropout=model.dropout,
        inner_dropout=model.inner_dropout,
        attention_dropout=model.attention_dropout,
        label_smoothing=config.loss.label_smoothing,
        lr=options.peer_lr,
        betas=config.optim.betas,
        weight_decay=config.optim.weight_decay,
        clip_norm=config.optim.clip_norm,
        warmup=options.warmup,
        pad_id=tokenizer.pad_id,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        variant="",
    )
    return asdict(job)


def measure_speed(contenders: dict[str, Contender], options: argparse.Namespace) -> None:
    """Rounds in which every contender takes the same steps, until there are enough or time is up."""
    names, deadline = list(contenders), time.monotonic() + 60 * options.minutes
    for number in range(options.rounds + 1):
        first = number % len(names)
        started = time.monotonic()
        for name in [*names[first:], *names[:first]]:
            time.sleep(PAUSE)
            turn = contenders[name].ask({"steps": options.turn})
            if number:  # the first round warms up
                contenders[name].turns.append(turn)
        now = time.monotonic()
        say(f"round {number} of {options.rounds}: {now - started:.0f} s")
        if number >= 3 and now + (now - started) > deadline:
            break


def measure_to_bleu(
    contenders: dict[str, Contender], data: Prepared, steps: int, options: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """For each contender its (training seconds, greedy BLEU on dev) every so often, up to the score or the limit."""
    sources = data.tokenizer.encode_src(data.dev.src)
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    running = dict(contenders)
    while running:
        for name, contender in list(running.items()):
            time.sleep(PAUSE)
            contender.turns.append(contender.ask({"steps": steps}))
            found = contender.ask({"translate": sources, "max_len": max(map(len, sources)) + 20})["translations"]
            bleu = score([data.tokenizer.decode(ids) for ids in found], data.dev.tgt, ter=False).bleu
            curves[name].append((contender.seconds, bleu))
            loss = contender.turns[-1]["loss"]
            say(f"{name}: BLEU {bleu:.1f}, loss {loss:.2f} after {contender.seconds / 60:.1f} minutes of training")
            if bleu >= options.to_bleu or contender.seconds > 60 * options.max_minutes:
                del running[name]
    return curves


def speed_rows(contenders: dict[str, Contender]) -> list[dict[str, Any]]:
    """One row for each contender: speed, spread, and mtattn's speed over its own, turn by turn."""
    ours = contenders[OURS].turns
    rows = []
    for name, contender in contenders.items():
        speeds = [turn["tokens"] / turn["seconds"] for turn in contender.turns]
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(contender.turns, ours, strict=True)]
        rows.append(
            {
                "name": name,
                "parameters": contender.parameters,
                "tokens_per_second": contender.speed,
                "tokens_per_second_range": [min(speeds), max(speeds)],
                "ratio": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
                "turns": contender.turns,
            }
        )
    return rows


def print_speed(rows: list[dict[str, Any]]) -> None:
    """The table of `speed_rows`, in Markdown."""
    print("| trainer | parameters | target tokens/s | mtattn is faster by |")
    print("| --- | --- | --- | --- |")
    for row in rows:
        (low, high), (least, most) = row["tokens_per_second_range"], row["ratio_range"]
        print(
            f"| {row['name']} | {row['parameters'] / 1e6:.2f} M | {row['tokens_per_second']:,.0f} "
            f"[{low:,.0f}, {high:,.0f}] | {row['ratio']:.2f}x [{least:.2f}, {most:.2f}] |"
        )


def bleu_rows(
    contenders: dict[str, Contender], curves: dict[str, list[tuple[float, float]]], bleu: float
) -> list[dict[str, Any]]:
    """One row for each contender; `minutes` is None where the score was not reached."""
    rows = []
    for name, curve in curves.items():
        reached = [seconds / 60 for seconds, value in curve if value >= bleu]
        best = max(value for _, value in curve)
        speed = contenders[name].speed
        rows.append(
            {
                "name": name,
                "minutes": reached[0] if reached else None,
                "best": best,
                "tokens_per_second": speed,
                "curve": curve,
            }
        )
    return rows


def print_bleu(rows: list[dict[str, Any]], bleu: float) -> None:
    """The table of `bleu_rows`, in Markdown."""
    print(f"| trainer | training minutes to BLEU {bleu:g} on dev (greedy) | best BLEU | target tokens/s |")
    print("| --- | --- | --- | --- |")
    for row in rows:
        limit = f"not within {row['curve'][-1][0] / 60:.1f}"
        minutes = limit if row["minutes"] is None else f"{row['minutes']:.1f}"
        print(f"| {row['name']} | {minutes} | {row['best']:.1f} | {row['tokens_per_second']:,.0f} |")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, nargs="?", help="instead of the folder that the config names")
    parser.add_argument("--config", default="multi30k-en-de", help="a config's name or file: shapes, batches, recipe")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="override a config value")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help=f"names, separated by semicolons; of {'; '.join(CONTENDERS)}")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each contender, at most")
    parser.add_argument("--minutes", type=float, default=4.0, help="no further round after this; at least 3")
    parser.add_argument("--turn", type=int, default=0, help="steps in a turn (default: 1; on a GPU 20)")
    parser.add_argument("--to-bleu", type=float, default=0.0, help="train until this BLEU instead")
    parser.add_argument("--every", type=int, default=0, help="steps between looks at BLEU (default: half an epoch)")
    parser.add_argument("--max-minutes", type=float, default=40.0, help="a contender's training time with --to-bleu")
    parser.add_argument("--peer-lr", type=float, default=1e-3, help="AdamW's peak rate of all but mtattn")
    parser.add_argument("--warmup", type=int, default=150, help="steps in which all rates rise; then they stay")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the peers' environments")
    take_json(parser)
    options = parser.parse_args()
    options.turn = options.turn or (20 if options.device == "cuda" else 1)
    names = [name.strip() for name in options.only.split(";") if name.strip()]
    if unknown := [name for name in names if name not in CONTENDERS]:
        parser.error(f"--only: unknown {', '.join(unknown)}; known: {'; '.join(CONTENDERS)}")
    chosen = names or list(DEFAULT_TO_BLEU if options.to_bleu else CONTENDERS if options.device == "cuda" else ON_CPU)
    options.only = list(dict.fromkeys([OURS, *chosen]))  # the one that all are compared with
    return options


def main() -> None:
    """Write the batches, start the contenders, measure, print."""
    options = parse()
    config = make_config(options)
    data = prepare(config, None, Reporter())
    batches = make_batches(config, data, int(config.train.batch_tokens))
    an_epoch = -(-len(batches.plan(0)) // config.train.accumulate)
    every = options.every or max(1, an_epoch // 2)
    steps = 10 * an_epoch if options.to_bleu else (options.rounds + 1) * options.turn
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_groups(folder / "batches.npz", list(steps_of_batches(batches, config.train.accumulate, steps)))
        contenders = begin(options.only, make_job(config, data.tokenizer, folder, options), folder, options.cache)
        try:
            if options.to_bleu:
                curves = measure_to_bleu(contenders, data, every, options)
                rows = bleu_rows(contenders, curves, options.to_bleu)
            else:
                measure_speed(contenders, options)
                rows = speed_rows(contenders)
        finally:
            for contender in contenders.values():
                contender.process.kill()
    conditions = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU threads",
        "torch": torch.__version__,
        "mtattn": mtattn.__version__,
        "batch_tokens": config.train.batch_tokens,
        "accumulate": config.train.accumulate,
        "vocab_size": data.tokenizer.tgt_vocab_size,
    }
    write_json(options, {**conditions, "to_bleu": options.to_bleu or None, "rows": rows})
    if options.to_bleu:
        print_bleu(rows, options.to_bleu)
    else:
        print_speed(rows)
    print("\n" + ", ".join(f"{key} {value}" for key, value in conditions.items()))


if __name__ == "__main__":
    main()
