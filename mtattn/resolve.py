"""Which config `train` means: a file's, one sized to the corpus, one that goes on from a model, or the run's own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mtattn.checkpoint import RunDirectory
from mtattn.config import Config, laid_over, parse_config, read_table
from mtattn.errors import ConfigError
from mtattn.finetune import explain, finetune_table, resumed_table
from mtattn.prepare import open_corpus
from mtattn.progress import Reporter
from mtattn.sizing import as_table, choose, choose_batch, planned_step_tokens
from mtattn.speed import estimate, measure
from mtattn.storage import MANIFEST

TOGETHER = (("train.batch_tokens", "train.accumulate"), ("train.max_steps", "train.valid_every"))
"""Of these settings the second means little without the first: one that is given keeps the other from being chosen."""


@dataclass(frozen=True)
class Resolved:
    """A complete config, and for the user, in lines: how it came about."""

    config: Config
    notes: list[str]


def resolve(
    source: str | None,
    overrides: Sequence[str],
    run: RunDirectory,
    report: Reporter,
    *,
    device: torch.device,
    origin: Path | None = None,
    fresh: bool = False,
) -> Resolved:
    """The config to train with.

    Args:
        source: path, or name of a bundled config; None: no config, so sizes are chosen for the corpus.
        overrides: "section.key=value" each; they win over everything chosen.
        run: a run that was begun here, and is not replaced, goes on with the sizes that were chosen then.
        origin: a model to fine-tune; its shape and tokenizer are kept.
        fresh: what `run` holds is replaced.

    Raises:
        ConfigError, ModelError, CorpusError: see `load_config`, `finetune_table`, `load_corpus`.
    """
    given, where = read_table(source, overrides)
    if origin is None and isinstance(named := given.get("finetune", {}).get("model"), str) and named:
        origin = Path(named)
    if origin is not None and origin.resolve() in (run.path.resolve(), run.model.resolve()):
        raise ConfigError(f"--from {origin} is what --run {run.path} would replace; give another --run")
    if (run.path / MANIFEST).is_file():
        raise ConfigError(f"--run {run.path} is a released model; --from {run.path} goes on from it in another --run")
    if run.started and not fresh:
        return _begun(given, where, run, origin, sized=source is None)
    if origin is not None and not given.get("data", {}).get("train"):
        raise ConfigError("--from needs data to learn from: give --src-file and --tgt-file, or a config")
    base = finetune_table(given, origin, where) if origin is not None else {}
    if source is not None:
        config = parse_config(base or given, where)
        return Resolved(config, explain(config) if base else [])
    return _sized(given, base, where, report, device)


def _begun(given: dict[str, Any], where: str, run: RunDirectory, origin: Path | None, *, sized: bool) -> Resolved:
    """For a run that goes on: what was chosen or taken over then is in its own config."""
    own = run.read_config()
    if origin is not None or own.finetune.model:
        return Resolved(parse_config(resumed_table(given, run.path, own, origin, where), where), [])
    if sized:
        given = laid_over(given, own.to_table())
    return Resolved(parse_config(given, where), [])


def _sized(given: dict[str, Any], base: dict[str, Any], where: str, report: Reporter, device: torch.device) -> Resolved:
    """What is given, over what suits the corpus; for a model that is fine-tuned (`base`) only the batch is chosen."""
    config = parse_config(base or given, where)
    with report.bar("measuring the corpus", None):
        corpus = open_corpus(config.data)
        facts = measure(corpus.dataset, device, config.train, mix=config.finetune.mix)
    if "max_epochs" in given.get("train", {}):
        facts = replace(facts, max_epochs=config.train.max_epochs)
    found = choose_batch(facts) if base else choose(facts)
    choices = [choice for choice in found if _free(choice.key, given)]
    table = laid_over(as_table(choices), base or given)
    if not any(table.get("model", {}).get(name) for name in ("dropout", "inner_dropout", "attention_dropout")):
        choices = [choice for choice in choices if choice.key != "loss.rdrop"]  # two passes would be the same
        table = laid_over(as_table(choices), base or given)
    config = parse_config(table, where)
    old = ", old ones included" if config.finetune.mix else ""
    notes = [f"chosen for {facts.pairs:,} pairs{old} (--set wins over any of it):", *map(str, choices)]
    notes.append(
        f"languages: {config.data.src} to {config.data.tgt} (data.src and data.tgt, by which models are labelled)"
    )
    if base:
        notes = [*explain(config), *notes]
    return Resolved(config, [*notes, estimate(config, facts, planned_step_tokens(config, facts))])


def _free(key: str, given: dict[str, Any]) -> bool:
    """Whether nothing is given for this setting, nor for one that it depends on."""
    settings = {key, *(other for group in TOGETHER if key in group for other in group)}
    return not any(name in given.get(section, {}) for section, name in (each.split(".") for each in settings))
