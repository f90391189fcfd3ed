"""What is settled before the first step: which config counts, what "auto" stands for, and the data; on every rank."""

import tomllib
from dataclasses import replace

import torch

from mtattn.batching import spread
from mtattn.budget import choose_batch_tokens, choose_packing, unrecordable
from mtattn.checkpoint import RunDirectory
from mtattn.config import Config, parse_config
from mtattn.distributed import Ranks
from mtattn.errors import ConfigError
from mtattn.finetune import load_origin, old_data
from mtattn.precision import choose_precision
from mtattn.prepare import Prepared, prepare
from mtattn.progress import Reporter
from mtattn.resume import resumed_config
from mtattn.segments import learnt_sentences
from mtattn.sharding import require_shardable
from mtattn.threads import use_threads
from mtattn.tokenizer import Tokenizer

COUNTED = 20_000  # training lines whose sentences are counted, evenly spread


def settle(
    config: Config, run: RunDirectory, report: Reporter, device: torch.device, *, fresh: bool
) -> tuple[Config, Prepared]:
    """The config that counts, that of a run to resume or else the one asked for, with nothing left on "auto"; the data.

    Raises:
        MtattnError: see mtattn.errors.
    """
    tokenizer = None
    resuming = run.started and not fresh
    if resuming:
        config = resumed_config(config, run)
        tokenizer = Tokenizer.load(run.path)
    elif not fresh:
        run.require_unmarked()
    if device.type == "cpu" and config.model.attention == "flex":
        raise ConfigError("model.attention = flex has no gradient on a CPU: train on a GPU, or leave it on auto")
    if device.type == "cuda" and config.train.packing is True and (against := unrecordable(config)):
        instead = "go on without train.shard" if config.train.shard and resuming else "leave it on auto"
        raise ConfigError(f"train.packing = true: {against}; {instead}")
    if config.finetune.model and tokenizer is None:
        tokenizer = load_origin(config.finetune)[1]
    if config.train.precision == "auto":
        precision, why = choose_precision(device)
        report.note(f"precision: {precision} ({why})")
        config = replace(config, train=replace(config.train, precision=precision))
    if config.train.packing == "auto":
        packing, why = choose_packing(config, device)
        if device.type == "cuda":
            report.note(f"packing: {'on' if packing else 'off'} ({why})")
        config = replace(config, train=replace(config.train, packing=packing))
    use_threads(config.train.threads)
    prepared = prepare(config, tokenizer, report, old_data(config, report))
    if config.train.batch_tokens == "auto":
        batch_tokens, why = choose_batch_tokens(config, prepared, device)
        report.note(f"batch_tokens: {batch_tokens} ({why})")
        config = replace(config, train=replace(config.train, batch_tokens=batch_tokens))
    if not config.decode.max_sentences:
        texts, _ = prepared.texts(spread(len(prepared.examples.tgt), COUNTED).tolist())
        most = learnt_sentences(texts)
        report.note(f"decode.max_sentences: {most} (lines of more are translated in parts, as few training lines have)")
        config = replace(config, decode=replace(config.decode, max_sentences=most))
    return config, prepared


def settle_on_ranks(
    config: Config, run: RunDirectory, report: Reporter, device: torch.device, ranks: Ranks, *, fresh: bool
) -> tuple[Config, Prepared]:
    """What rank 0 settles, on every rank: what it measured and trained is sent, the data is read from its cache."""
    settled: list[tuple[Config, Prepared]] = []

    if config.train.shard and ranks.size == 1:
        report.note("train.shard does nothing in a single process; torchrun starts several")
        config = replace(config, train=replace(config.train, shard=False))

    def on_main() -> tuple[str, list[str]]:
        if config.train.shard:
            require_shardable(config, ranks.size)
        settled.append(settle(config, run, report, device, fresh=fresh))
        own, data = settled[0]
        return own.to_toml(), [file.decode("latin-1") for file in data.tokenizer.to_files().values()]

    text, files = ranks.from_main(on_main)

    def follow() -> tuple[Config, Prepared]:
        own = parse_config(tomllib.loads(text), "rank 0's config")
        use_threads(own.train.threads)
        tokenizer = Tokenizer(*(file.encode("latin-1") for file in files))
        return own, prepare(own, tokenizer, report, old_data(own, report))

    return ranks.together(lambda: settled[0] if settled else follow())
