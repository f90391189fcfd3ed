"""The train loop, on one page; and what surrounds it: starting, resuming, saving, releasing.

Everything that a step depends on is in `TrainState`, the weights, the optimisers and torch's generator; a checkpoint
holds all of them, so a run that was interrupted anywhere goes on exactly as if it had not been.
"""

import json
import math
import platform
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

import mtattn
from mtattn.batching import Batch, Batches, Position
from mtattn.card import model_card
from mtattn.checkpoint import Checkpoint, RunDirectory, load_weights, make_model, weights_of
from mtattn.config import Config
from mtattn.errors import ConfigError, CorpusError, DivergedError
from mtattn.interrupts import Interrupted, Interrupts
from mtattn.loss import linear_cross_entropy, linear_rdrop
from mtattn.memory import keep_freed_memory
from mtattn.optim import lr_multiplier, make_optimizers, set_lr
from mtattn.precision import WorkingModel, choose_precision
from mtattn.prepare import Prepared, prepare
from mtattn.progress import Bar, Reporter
from mtattn.tokenizer import Tokenizer
from mtattn.validate import Validation, validate

MAX_SKIPPED = 10  # steps in a row whose gradient is not finite before the run gives up
MAY_CHANGE = {"max_steps", "max_epochs", "max_minutes", "patience", "log_every"}  # on resuming, of [train]


@dataclass
class TrainState:
    """What the loop remembers between steps beside weights, optimisers and the random generator."""

    step: int = 0
    position: Position = field(default_factory=Position)
    elapsed_s: float = 0.0
    tgt_tokens: int = 0
    best_bleu: float = -1.0
    best_step: int = 0
    stale: int = 0  # validations since the best one
    skipped: int = 0  # steps whose gradient was not finite
    valid_due: bool = False
    nats: float = 0.0  # loss since the last "train" line, and the tokens it sums over
    num_tokens: int = 0
    metrics_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        """The inverse of `to_json`."""
        return cls(**{**values, "position": Position(**values["position"])})


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: why, after how many steps, and the best greedy BLEU on dev."""

    reason: str
    step: int
    best_bleu: float
    elapsed_s: float


def train(
    config: Config,
    run: RunDirectory,
    report: Reporter,
    *,
    device: torch.device,
    fresh: bool = False,
    allow_changed_data: bool = False,
) -> TrainResult:
    """Train, or go on where this run directory stopped, until one of the config's limits.

    Args:
        fresh: start over, replacing what the run directory holds.
        allow_changed_data: resume although the training files are not what they were.

    Raises:
        MtattnError: see mtattn.errors. Interrupted: SIGTERM or Ctrl-C, after everything was saved.
    """
    keep_freed_memory()
    with run.lock(), Interrupts() as interrupts:
        if fresh and run.started:
            report.note(f"--fresh: replacing what {run.path} held")
            run.clear()
        tokenizer = None
        if run.started:
            config = _resumed_config(config, run)
            tokenizer = Tokenizer.load(run.path)
        elif config.train.precision == "auto":
            chosen, why = choose_precision(device)
            report.note(f"precision: {chosen} ({why})")
            config = replace(config, train=replace(config.train, precision=chosen))
        torch.set_num_threads(config.train.threads or torch.get_num_threads())
        prepared = prepare(config, tokenizer, report)
        if tokenizer is None:
            run.begin(config, prepared.tokenizer)
        report.log_to(run.log_file)
        return Trainer(config, run, prepared, report, interrupts, device, allow_changed_data).run_to_end()


class Trainer:
    """One run in progress: model, optimisers, data stream and state, and the loop over them."""

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        data: Prepared,
        report: Reporter,
        interrupts: Interrupts,
        device: torch.device,
        allow_changed_data: bool,
    ) -> None:
        self.config, self.run, self.data, self.report, self.interrupts = config, run, data, report, interrupts
        self.device = device
        torch.manual_seed(config.train.seed)
        self.model = make_model(config, data.tokenizer).to(device)
        self.average = make_model(config, data.tokenizer).to(device) if config.train.ema else None
        if self.average is not None:
            load_weights(self.average, weights_of(self.model))
        self.optimizers = make_optimizers(self.model, config.optim)
        self.working = WorkingModel(self.model, getattr(torch, config.train.precision))
        self.batches = Batches(
            data.examples.src,
            data.examples.tgt,
            data.tokenizer,
            batch_tokens=config.train.batch_tokens,
            seed=config.train.seed,
            sampling=config.tokenizer.sampling,
            texts=data.texts,
        )
        self.state = TrainState()
        self._resume(allow_changed_data)
        self.working.push_weights()
        parameters = sum(p.numel() for p in self.model.parameters())
        report.note(f"model: {parameters:,} parameters on {device}; {torch.get_num_threads()} CPU threads")

    # --- the loop -------------------------------------------------------------------------------------------------

    def run_to_end(self) -> TrainResult:
        """Step until a limit, validating and saving on the way; then release the best weights."""
        self.interrupts.deferred = True
        started, ended = time.perf_counter(), ""
        skipped_in_a_row = 0
        with self.report.bar("training", 100) as bar, closing(self.batches.stream(self.state.position)) as stream:
            try:
                while True:
                    self.interrupts.check()
                    if self.state.valid_due:
                        self._validate_and_save()
                        started = time.perf_counter()
                    if ended := self._finished():
                        break
                    group = list(islice(stream, self.config.train.accumulate))
                    set_lr(self.optimizers, lr_multiplier(self.config.optim, self._progress()))
                    if self._step([batch for batch, _ in group]):
                        skipped_in_a_row = 0
                    else:
                        skipped_in_a_row += 1
                        self._give_up_after(skipped_in_a_row, group[0][0])
                    self.state.step += 1
                    self.state.position = group[-1][1]
                    now = time.perf_counter()
                    self.state.elapsed_s, started = self.state.elapsed_s + now - started, now
                    self._after_step(bar)
            except Interrupted:
                self._save()
                self.report.note(f"interrupted at step {self.state.step}: saved; the same command goes on from here")
                raise
        return self._finish(ended)

    def _step(self, group: list[Batch]) -> bool:
        """One update from the summed gradient of a group of batches; False when it was not finite and was skipped."""
        num_tokens = sum(batch.num_tokens for batch in group)
        nats = torch.zeros((), device=self.device)
        for batch in group:
            loss = self._loss(batch.to(self.device))
            torch.autograd.backward(loss / num_tokens)
            nats += loss.detach()
        self.working.pull_gradients()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm or math.inf)
        finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(nats))
        if finite:
            for optimizer in self.optimizers:
                optimizer.step()
            self._average()
            self.working.push_weights()
            self.state.nats += float(nats)
            self.state.num_tokens += num_tokens
            self.state.tgt_tokens += num_tokens
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return finite

    def _loss(self, batch: Batch) -> Tensor:
        """The batch's loss, summed over its tokens (nats)."""
        model, options, pad_id = self.working.model.train(), self.config.loss, self.model.pad_id
        if not options.rdrop:
            hidden = model.hidden(batch.src, batch.tgt_in).flatten(0, 1)  # [B*T, D]
            targets = batch.tgt_out.flatten()  # [B*T]
            return linear_cross_entropy(
                hidden, model.out_embed.weight, targets, pad_id=pad_id, label_smoothing=options.label_smoothing
            )[0]
        # R-Drop: both passes in one batch, the second half under dropout of its own.
        hidden = model.hidden(batch.src.repeat(2, 1), batch.tgt_in.repeat(2, 1)).flatten(0, 1)  # [2*B*T, D]
        return linear_rdrop(
            hidden,
            model.out_embed.weight,
            batch.tgt_out.flatten(),
            pad_id=pad_id,
            label_smoothing=options.label_smoothing,
            rdrop=options.rdrop,
        )[0]

    @torch.no_grad()
    def _average(self) -> None:
        """Polynomial-decay averaging (Shamir and Zhang 2013): the window grows with the run and needs no tuning."""
        if self.average is not None:
            weight = 1 / (1 + self.config.train.ema * self.state.step)
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), weight)

    def _after_step(self, bar: Bar) -> None:
        state, options = self.state, self.config.train
        epoch_done = state.position.batch == len(self.batches.plan(state.position.epoch))
        state.valid_due = state.step % options.valid_every == 0 if options.valid_every else epoch_done
        state.valid_due = state.valid_due or bool(self._finished())
        if state.step % options.log_every == 0 and state.num_tokens:
            self._write_metrics("train", loss=state.nats / state.num_tokens, lr=self._lr())
            state.nats, state.num_tokens = 0.0, 0
        bar.advance(100 * self._progress(), self._status())
        if options.save_every and state.step % options.save_every == 0 and not state.valid_due:
            self._save()

    def _give_up_after(self, skipped_in_a_row: int, batch: Batch) -> None:
        self.state.skipped += 1
        self.report.warn(f"step {self.state.step + 1}: the gradient is not finite; the step is skipped")
        if skipped_in_a_row >= MAX_SKIPPED:
            lines = ", ".join(str(self.data.examples.numbers[i] + 1) for i in batch.indices[:5])
            raise DivergedError(
                f"{skipped_in_a_row} steps in a row had a gradient that is not finite (last batch: pairs {lines}, "
                f"...); the last checkpoint is intact; try a lower optim.lr and optim.muon_lr, or precision float32"
            )

    # --- limits ---------------------------------------------------------------------------------------------------

    def _progress(self) -> float:
        """Share of the run that is done, 0 to 1: of its steps, epochs or minutes, whichever is furthest."""
        options, state = self.config.train, self.state
        shares = [0.0]
        if options.max_steps:
            shares.append(state.step / options.max_steps)
        if options.max_epochs:
            batches = len(self.batches.plan(state.position.epoch))
            shares.append((state.position.epoch + state.position.batch / batches) / options.max_epochs)
        if options.max_minutes:
            shares.append(state.elapsed_s / (60 * options.max_minutes))
        return min(max(shares), 1.0)

    def _finished(self) -> str:
        """Why the run is over, or ""."""
        if self._progress() >= 1:
            return "reached its limit"
        if self.config.train.patience and self.state.stale >= self.config.train.patience:
            return f"BLEU has not risen for {self.state.stale} validations"
        return ""

    # --- validation, metrics, saving ------------------------------------------------------------------------------

    def _validate_and_save(self) -> None:
        model = self.average if self.average is not None else self.model
        limit = self.config.train.valid_sentences
        dev = replace(self.data.dev, src=self.data.dev.src[:limit], tgt=self.data.dev.tgt[:limit])
        with self.report.bar("validating", None):
            outcome = validate(model, self.data.tokenizer, dev, self.config.decode, check=self.interrupts.check)
        self._report_validation(outcome)
        state, scores = self.state, outcome.scores
        is_best = scores.bleu > state.best_bleu
        if is_best:
            state.best_bleu, state.best_step, state.stale = scores.bleu, state.step, 0
        else:
            state.stale += 1
        self._write_metrics(
            "valid",
            loss=outcome.loss,
            lr=self._lr(),
            bleu=scores.bleu,
            chrf=scores.chrf,
            perplexity=outcome.perplexity,
            signature=scores.signature["bleu"],
        )
        state.valid_due = False
        self._save(is_best=is_best)

    def _report_validation(self, outcome: Validation) -> None:
        self.report.note(
            f"step {self.state.step}, epoch {self._epochs():.1f}: BLEU {outcome.scores.bleu:.1f} (greedy), "
            f"chrF {outcome.scores.chrf:.1f}, perplexity {outcome.perplexity:.2f}, "
            f"{self.state.tgt_tokens / max(self.state.elapsed_s, 1e-9):,.0f} target tokens/s"
        )
        for src, reference, output in outcome.samples:
            self.report.note(f"    source     {src}\n    reference  {reference}\n    output     {output}")

    def _write_metrics(self, kind: str, **values: Any) -> None:
        line = {
            "kind": kind,
            "step": self.state.step,
            "epoch": round(self._epochs(), 4),
            "elapsed_s": round(self.state.elapsed_s, 3),
            "tgt_tokens": self.state.tgt_tokens,
            **values,
        }
        with self.run.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.state.metrics_bytes = self.run.metrics_file.stat().st_size

    def _save(self, *, is_best: bool = False) -> None:
        released = self.average if self.average is not None else self.model
        optim: dict[str, Tensor] = {"random.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            optim["random.cuda"] = torch.cuda.get_rng_state(self.device)
        if self.average is not None:
            optim |= {f"raw.{name}": tensor for name, tensor in weights_of(self.model).items()}
        for i, optimizer in enumerate(self.optimizers):
            for index, tensors in optimizer.state_dict()["state"].items():
                optim |= {f"{i}.{index}.{name}": tensor for name, tensor in tensors.items()}
        state = {
            "step": self.state.step,
            "loop": self.state.to_json(),
            "files": self.data.files,
            "versions": {"mtattn": mtattn.__version__, "torch": torch.__version__, "python": platform.python_version()},
        }
        self.run.save(Checkpoint(weights_of(released), optim, state), is_best=is_best)

    def _resume(self, allow_changed_data: bool) -> None:
        saved = self.run.newest(self.report.warn)
        if saved is None:
            self.run.metrics_file.write_bytes(b"")
            return
        if saved.state["files"] != self.data.files and not allow_changed_data:
            changed = {*saved.state["files"].items()} ^ {*self.data.files.items()}
            raise CorpusError(
                f"training files changed since this run began: {', '.join(sorted({name for name, _ in changed}))}; "
                "--allow-changed-data goes on with them, --fresh starts over"
            )
        self.state = TrainState.from_json(saved.state["loop"])
        if self.average is not None:
            load_weights(self.average, saved.weights)
            raw = {name.removeprefix("raw."): t for name, t in saved.optim.items() if name.startswith("raw.")}
        load_weights(self.model, raw if self.average is not None else saved.weights)
        for i, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, tensor in saved.optim.items():
                number, _, rest = key.partition(".")
                if number == str(i):
                    index, name = rest.split(".")
                    state.setdefault(int(index), {})[name] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        torch.set_rng_state(saved.optim["random.cpu"])
        if "random.cuda" in saved.optim and self.device.type == "cuda":
            torch.cuda.set_rng_state(saved.optim["random.cuda"], self.device)
        with self.run.metrics_file.open("ab") as file:
            file.truncate(self.state.metrics_bytes)
        self.report.note(f"resuming at step {self.state.step}, epoch {self._epochs():.1f}")

    def _finish(self, reason: str) -> TrainResult:
        state = self.state
        scores = {"dev_bleu": state.best_bleu, "step": state.best_step, "tgt_tokens": state.tgt_tokens}
        card = model_card(self.config, scores, len(self.data.examples.tgt))
        self.run.release(self.config, self.data.tokenizer, scores, card)
        self.report.note(
            f"done: {reason} at step {state.step} after {state.elapsed_s / 60:.1f} minutes of training; best greedy "
            f"BLEU on dev {state.best_bleu:.1f} at step {state.best_step}; released to {self.run.model}"
        )
        return TrainResult(reason, state.step, state.best_bleu, state.elapsed_s)

    # --- small things ---------------------------------------------------------------------------------------------

    def _epochs(self) -> float:
        position = self.state.position
        return position.epoch + position.batch / len(self.batches.plan(position.epoch))

    def _lr(self) -> float:
        return float(self.optimizers[-1].param_groups[0]["lr"])

    def _status(self) -> str:
        state = self.state
        speed = state.tgt_tokens / max(state.elapsed_s, 1e-9)
        loss = f"loss {state.nats / state.num_tokens:.2f}, " if state.num_tokens else ""
        best = f", best BLEU {state.best_bleu:.1f}" if state.best_bleu >= 0 else ""
        return f"step {state.step}, {loss}{speed:,.0f} tok/s{best}"


def _resumed_config(asked: Config, run: RunDirectory) -> Config:
    """The run's own config, with those limits that may change while a run is under way taken from what was asked."""
    own = run.read_config()
    limits = {name: getattr(asked.train, name) for name in MAY_CHANGE}
    precision = own.train.precision if asked.train.precision == "auto" else asked.train.precision
    asked = replace(asked, train=replace(asked.train, precision=precision), decode=own.decode)
    own = replace(own, train=replace(own.train, **limits))
    if asked != own:
        mine, theirs = asdict(own), asdict(asked)
        differences = [
            f"{section}.{key} = {theirs[section][key]!r}, was {mine[section][key]!r}"
            for section in mine
            for key in mine[section]
            if mine[section][key] != theirs[section][key]
        ]
        raise ConfigError(
            f"{run.path} was begun with another config: {'; '.join(differences)}; "
            "--fresh starts over, --run DIR trains beside it"
        )
    return own
