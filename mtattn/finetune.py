"""Fine-tuning: training starts from another model's weights, with its tokenizer, at lower learning rates.

What that model was trained on can be mixed in, so that it is not forgotten, and its dev set is scored before and after.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mtattn.card import before_and_after
from mtattn.checkpoint import RunDirectory, load_weights, make_model
from mtattn.config import Config, laid_over
from mtattn.errors import ConfigError, CorpusError, FileError, ModelError
from mtattn.evaluate import score
from mtattn.loading import load_model, weights_sha256
from mtattn.mixing import FinetuneConfig
from mtattn.model import Transformer
from mtattn.optim import OptimConfig
from mtattn.prepare import OldData, Prepared, held_out, load_split, open_corpus
from mtattn.progress import Reporter
from mtattn.tokenizer import Tokenizer
from mtattn.validate import greedy_translator

MAX_EPOCHS = 10  # unless the config says otherwise: the model knows the language already
INHERITED = ("filter", "loss", "optim")  # sections that are as the model was trained, unless given
MAY_DIFFER = {
    "model": ("preset", "dropout", "inner_dropout", "attention_dropout", "attention"),
    "tokenizer": ("sampling", "max_sentences"),
}
"""What of the model's shape and of its tokenizer may be given anew: what no weight depends on."""


def finetune_table(given: Mapping[str, Any], origin: Path, where: str) -> dict[str, Any]:
    """The config for going on from a model: what is given, over what the model says.

    Args:
        given: what config file and overrides say themselves, presets resolved.
        origin: a run directory or released model.
        where: the name of `given` in errors.

    Raises:
        ModelError: no model there. ConfigError: `given` asks for another shape, tokenizer or language.
    """
    _, _, config = load_model(origin)
    own = config.to_table()
    base = {
        "data": {name: own["data"][name] for name in ("src", "tgt")},
        **{name: own[name] for name in INHERITED},
        "decode": {**own["decode"], "max_sentences": 0},  # to be set to what the new lines hold
        "train": {"max_epochs": MAX_EPOCHS, **{name: own["train"][name] for name in ("batch_tokens", "accumulate")}},
        "finetune": {"old": own["data"], "old_seed": config.train.seed, "old_hold_out": config.train.hold_out},
    }
    table = kept(laid_over(given, base), own, f"{where}, for --from {origin}")
    came_from = {"model": str(origin), "weights": weights_sha256(origin), "earlier": config.finetune.ancestors}
    return _from(table, given, {**base["finetune"], **came_from})


def resumed_table(given: Mapping[str, Any], run: Path, own: Config, origin: Path | None, where: str) -> dict[str, Any]:
    """The config for going on with a run that fine-tunes: what is given, over the run's own.

    Args:
        origin: what --from says; the run knows where it came from, so it may be left out, and that model be gone.

    Raises:
        ConfigError: the run began otherwise.
    """
    if not own.finetune.model:
        raise ConfigError(f"{run} was begun without --from; --fresh starts over, --run DIR trains beside it")
    gone = origin is not None and str(origin) == own.finetune.model and not origin.is_dir()
    if origin is not None and not gone and weights_sha256(origin) != own.finetune.weights:
        raise ConfigError(
            f"{run} was begun from {own.finetune.model}, and {origin} has other weights than that had; leave out "
            "--from to go on, or --fresh starts over"
        )
    own_table = own.to_table()
    table = kept(laid_over(given, own_table), own_table, f"{where}, for {run}")
    return _from(table, given, own_table["finetune"])


def _from(table: dict[str, Any], given: Mapping[str, Any], finetune: dict[str, Any]) -> dict[str, Any]:
    """The table with what is given for [finetune], key by key also of its old corpus, but with this origin."""
    origin = {name: finetune[name] for name in ("model", "weights", "earlier")}
    return {**table, "finetune": {**laid_over(given.get("finetune", {}), finetune), **origin}}


def kept(table: dict[str, Any], own: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The table with the model's own [model] and [tokenizer], but for what may differ.

    Raises:
        ConfigError: it asks for something else there, or for other languages; one line a setting.
    """
    faults = [
        f"data.{side} is {table['data'][side]!r}, but the model's is {own['data'][side]!r}; it translates "
        f"{own['data']['src']} to {own['data']['tgt']}"
        for side in ("src", "tgt")
        if table["data"][side] != own["data"][side]
    ]
    result = dict(table)
    for section, free in MAY_DIFFER.items():
        asked = table.get(section, {})
        faults += [
            f"{section}.{key} is {value!r}, but the model's is {own[section][key]!r}"
            for key, value in asked.items()
            if key not in free and key in own[section] and not _agrees(value, own[section][key])
        ]
        unknown = {key: value for key, value in asked.items() if key not in own[section]}  # validation names them
        result[section] = {**own[section], **{key: asked[key] for key in free if key in asked}, **unknown}
    if faults:
        remedy = "leave such settings out: a fine-tuned model keeps its shape, its tokenizer and its languages"
        raise ConfigError("\n".join([f"{where}: {fault}" for fault in faults] + [remedy]))
    return result


def _agrees(asked: Any, own: Any) -> bool:
    """Whether a value, or all that a table names, is what the model has."""
    if isinstance(asked, dict) and isinstance(own, dict):
        return all(key in own and _agrees(value, own[key]) for key, value in asked.items())
    return bool(asked == own)


def explain(config: Config) -> list[str]:
    """What fine-tuning does otherwise, one line each, for the user."""
    options, optim, rates = config.finetune, config.optim, lowered(config)
    mixed = f"finetune.mix = {options.mix:g}: that share of an epoch's pairs is old ones, so that little is forgotten"
    lines = [
        f"fine-tuning {options.model} (weights {options.weights[:12]}): its shape and tokenizer are kept",
        f"finetune.lr_factor = {options.lr_factor:g}: learning rates {rates.lr:g} (AdamW) and {rates.muon_lr:g} (Muon) "
        f"instead of {optim.lr:g} and {optim.muon_lr:g}, since large steps undo what was learnt",
        mixed if options.mix else "no old data is mixed in; --mix 0.5 adds as many of its old pairs as there are new",
    ]
    if options.mix and options.earlier:
        before = options.earlier[0].partition(" (weights")[0]
        lines.append(f"old pairs are those that {options.model} was fine-tuned on, none of what {before} learnt")
    return lines


def lowered(config: Config) -> OptimConfig:
    """[optim] with the learning rates that fine-tuning uses; unchanged for a run that starts from nothing."""
    optim, factor = config.optim, config.finetune.lr_factor if config.finetune.model else 1.0
    return replace(optim, lr=optim.lr * factor, muon_lr=optim.muon_lr * factor)


def load_origin(options: FinetuneConfig) -> tuple[Transformer, Tokenizer]:
    """The model to start from, and its tokenizer.

    Raises:
        ModelError: it is not there, or not the one that this run was begun with.
    """
    folder = Path(options.model)
    model, tokenizer, _ = load_model(folder)
    found = weights_sha256(folder)
    if found != options.weights:
        raise ModelError(
            f"{options.model}: its weights are {found[:12]}, but this run was begun from {options.weights[:12]}; "
            "put that model back, or --fresh starts over"
        )
    return model, tokenizer


def old_data(config: Config, report: Reporter) -> OldData:
    """What is left of the old model's data: its dev set and, if old pairs are mixed in, its corpus and test set.

    Raises:
        CorpusError: the corpus to mix in is not there.
    """
    options = config.finetune
    if not options.model:
        return OldData()
    if (options.old.folder, options.old.train) == (config.data.folder, config.data.train):
        report.warn(
            f"by its config {options.model} was trained on the very files of this run, so nothing old is there to mix "
            "in or to score; if they only have the same names, say where its own are: --set finetune.old.folder=DIR"
        )
    try:
        corpus = open_corpus(options.old) if options.mix else None
    except (CorpusError, ConfigError) as error:
        raise CorpusError(
            f"the data that {options.model} was trained on cannot be mixed in: {error}. Say where it is now, by --set "
            "finetune.old.folder=DIR or, where that path is absolute, finetune.old.train=DIR/train.{en,de}; or leave "
            "out --mix"
        ) from None
    dev = test = None
    try:
        if options.old.dev:
            dev = load_split(options.old, "dev")
        else:
            dev = held_out(corpus or open_corpus(options.old), options.old_hold_out, options.old_seed)
    except (CorpusError, ConfigError, FileError) as error:
        report.note(f"the old dev set is not there any more, so only the new one is scored: {error}")
    try:
        if corpus is not None and options.old.test:
            test = load_split(options.old, "test")
    except (CorpusError, ConfigError, FileError) as error:
        report.warn(f"the old model's test set is not there, so its pairs may be among the old ones: {error}")
    return OldData(corpus, dev, test)


@dataclass(frozen=True)
class Finetuning:
    """What a run does at its two ends because it starts from another model.

    Args:
        check: called now and then; may raise to give up.
    """

    config: Config
    data: Prepared
    run: RunDirectory
    report: Reporter
    check: Callable[[], None]

    def end(self, best_step: int, device: torch.device, changed_dev: Sequence[str]) -> dict[str, Any]:
        """Say what fine-tuning changed, up to the step whose weights are released.

        Args:
            changed_dev: dev sets, "dev" or "old_dev", that had other sentences when the model was scored as it came.

        Returns:
            For scores.json: BLEU and chrF of both dev sets before and after, null where they could not be scored.
        """
        if not best_step:
            self.report.note("no step made BLEU on the new dev set better than it was: released as it came")
        if best_step or "old_dev" in changed_dev:  # else step 0 was scored when the run began
            best = make_model(self.config, self.data.tokenizer).to(device)
            load_weights(best, self.run.weights_to_release())
            self.score_old_dev(best, step=best_step)
        lines = self.run.metrics.read()
        compared = {
            name: {
                "before": None if dev in changed_dev else _scores_at(lines, kind, 0),
                "after": _scores_at(lines, kind, best_step),
            }
            for name, dev, kind in (("new_dev", "dev", "valid"), ("old_dev", "old_dev", "old_dev"))
        }
        for line in before_and_after(compared):
            self.report.note(line)
        return {"from": self.config.finetune.model, "from_weights": self.config.finetune.weights, **compared}

    def score_old_dev(self, model: Transformer, step: int) -> None:
        """A line of metrics.jsonl with the scores on the old dev set, if that is there."""
        if self.data.old_dev is None:
            return
        config, limit = self.config, self.config.train.valid_sentences
        src, tgt = self.data.old_dev.src[:limit], self.data.old_dev.tgt[:limit]
        translator = greedy_translator(model, self.data.tokenizer, config.decode, max_len=config.filter.max_len)
        with self.report.bar("scoring the old dev set", None):
            outputs = [translation.text for translation in translator.translate(src, lambda _: self.check())]
        scores = score(outputs, tgt, ter=False)
        values = {"bleu": scores.bleu, "chrf": scores.chrf, "signature": scores.signature["bleu"]}
        self.run.metrics.append({"kind": "old_dev", "step": step, **values})
        self.report.note(f"step {step}, old dev set: BLEU {scores.bleu:.1f} (greedy), chrF {scores.chrf:.1f}")


def _scores_at(lines: Sequence[Mapping[str, Any]], kind: str, step: int) -> dict[str, float] | None:
    found = [line for line in lines if line.get("kind") == kind and line.get("step") == step]
    return {name: found[-1][name] for name in ("bleu", "chrf")} if found else None
