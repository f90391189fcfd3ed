"""The train loop, on one page; and what surrounds it: starting, resuming, saving, releasing.

Everything that a step depends on is in `TrainState` and what `mtattn.learner` has: weights, optimisers and torch's
generator. A checkpoint holds all of it, so a run that was interrupted anywhere goes on exactly as if it had not been.
"""

import gc
import platform
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, NoReturn

import torch
from torch import Tensor

import mtattn
from mtattn.batch import Batch
from mtattn.batching import spread
from mtattn.budget import make_batches
from mtattn.card import model_card
from mtattn.checkpoint import Checkpoint, RunDirectory, load_weights, weights_of
from mtattn.config import Config
from mtattn.cooccurrence import start_embeddings
from mtattn.distributed import Ranks, join
from mtattn.errors import DivergedError
from mtattn.finetune import Finetuning, load_origin
from mtattn.health import ready
from mtattn.interrupts import Interrupted, Interrupts
from mtattn.learner import Learner
from mtattn.memory import keep_freed_memory
from mtattn.model import Transformer
from mtattn.optim import lr_multiplier
from mtattn.prepare import Pairs, Prepared
from mtattn.progress import Bar, Reporter
from mtattn.resume import DEV_SETS, changed_dev_sets, lineage, require_same
from mtattn.settle import settle_on_ranks
from mtattn.sharding import ShardedLearner
from mtattn.snapshot import TrainState
from mtattn.validate import Validation, validate

MAX_SKIPPED = 10  # steps in a row whose gradient is not finite before training goes back to the last checkpoint
MAX_ROLLBACKS = 2  # times that it goes back, each with half the learning rate, before the run gives up


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
        allow_changed_data: resume although the training pairs or a dev set have changed.

    Raises:
        MtattnError: see mtattn.errors. Interrupted: SIGTERM or Ctrl-C, after everything was saved.
    """
    keep_freed_memory()
    with ExitStack() as stack:
        ranks, device = stack.enter_context(join(device))
        ranks.from_main(lambda: stack.enter_context(run.lock()))
        interrupts = stack.enter_context(Interrupts())
        stack.enter_context(closing(report))
        config, prepared = settle_on_ranks(config, run, report, device, ranks, fresh=fresh)
        if ranks.is_main and not fresh:
            report.log_to(run.log_file)
        trainer = Trainer(config, run, prepared, report, interrupts, device, allow_changed_data, ranks, fresh=fresh)
        # Once nothing speaks against it: a refusal leaves the run as it was.
        ranks.from_main(lambda: run.begin(config, prepared.tokenizer))
        return trainer.run_to_end()


class Trainer:
    """One run in progress: what learns, the stream of batches and the state, and the loop over them."""

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        data: Prepared,
        report: Reporter,
        interrupts: Interrupts,
        device: torch.device,
        allow_changed_data: bool,
        ranks: Ranks | None = None,
        *,
        fresh: bool = False,
    ) -> None:
        self.config, self.run, self.data, self.report, self.interrupts = config, run, data, report, interrupts
        self.device, self.allow_changed_data, self.ranks = device, allow_changed_data, ranks or Ranks()
        self.lineage, self.alarmed = lineage(config, data), set[str]()
        self.batches = make_batches(config, data, int(config.train.batch_tokens))
        self.finetuning = Finetuning(config, data, run, report, interrupts.check) if config.finetune.model else None
        self._start(fresh=fresh)
        shared = f"; {self.ranks.size} processes share {self.learner.shared}" if self.ranks.size > 1 else ""
        parameters = self.learner.num_parameters
        report.note(f"model: {parameters:,} parameters on {device}; {torch.get_num_threads()} CPU threads{shared}")

    def _start(self, *, fresh: bool = False) -> None:
        """Stand where the newest checkpoint stands, or at the seeded beginning when there is none or it is replaced."""
        torch.manual_seed(self.config.train.seed)
        saved = None if fresh else self.ranks.main_first(lambda: self.run.newest(self.report.warn))
        self.state = TrainState() if saved is None else self._resumed(saved)
        self.learner = (ShardedLearner if self.config.train.shard else Learner)(
            self.config,
            self.data.tokenizer,
            self.device,
            self.ranks,
            parts=self.state.parts,
            named=lambda batch: self.data.names([batch]),
            warn=self.report.warn,
        )
        if saved is not None:
            self.learner.load(saved.weights, saved.optim)
            self.report.note(f"resuming at step {self.state.step}, epoch {self._epochs():.1f}")
        self._rehearse()
        if fresh:
            self._replace()
        if self.ranks.is_main:
            self.run.metrics.cut(self.state.metrics_bytes, self.report.warn)
        if saved is None:
            self._begin()  # which may write metrics
        elif self.allow_changed_data:
            self._save()  # so that the data of today is this run's, though it may have no step left to take

    def _rehearse(self) -> None:
        """Find out whether memory suffices; a CPU would not tell, as Linux promises memory that it lacks."""
        if self.device.type == "cuda":
            self.learner.rehearse(self.batches.largest(self.state.position.epoch))

    def _replace(self) -> None:
        """Clear the run directory, its log too, which therefore is opened only now."""
        if self.run.started:
            self.report.note(f"--fresh: replacing what {self.run.path} held")
        self.ranks.from_main(self.run.clear)
        if self.ranks.is_main:
            self.report.log_to(self.run.log_file)

    def _begin(self) -> None:
        """Set the weights of the first step: another model's, or random ones with embeddings that know the corpus."""
        model = self.learner.whole(self.learner.model)
        if (finetuning := self.finetuning) is not None:
            load_weights(model, weights_of(load_origin(self.config.finetune)[0]))
            self.ranks.from_main(lambda: finetuning.score_old_dev(model.to(self.device), step=0))
            self.state.valid_due = True  # what the model scores as it comes
        elif self.config.train.embeddings == "cooccurrence":
            src, tgt = self.data.examples.src, self.data.examples.tgt
            self.report.note("embeddings: they start from which pieces share pairs; train.embeddings = random does not")
            self.ranks.from_main(lambda: start_embeddings(model, src, tgt, seed=self.config.train.seed))
            self.ranks.share_weights(model)
        self.learner.begin(model)

    def _resumed(self, saved: Checkpoint) -> TrainState:
        """The state of a checkpoint, fitted to the corpus of today."""
        changed_data, warn = self.allow_changed_data, self.report.warn
        self.lineage["old_dev"] = self.lineage["old_dev"] or saved.state.get("old_dev")  # what it was, while it is gone
        self.ranks.from_main(lambda: require_same(self.run, saved.state, self.lineage, changed_data=changed_data))
        state = TrainState.from_json(saved.state.get("loop"))
        position = state.position
        position.batch = min(position.batch, len(self.batches.plan(position.epoch)))  # changed data may have fewer
        lost = state.best_bleu >= 0 and not self.ranks.from_main(lambda: self.run.is_whole(state.best_step, warn))
        changed = changed_dev_sets(saved.state, self.lineage)
        if lost or "dev" in changed:  # a score of what is not there, or of other text
            state.best_bleu, state.stale, state.valid_due = -1.0, 0, True
        state.changed_dev = sorted({*state.changed_dev, *changed})
        for name in changed:
            self.report.note(f"{DEV_SETS[name]} has changed: its earlier scores are not compared with those to come")
        if self.ranks.is_main:
            self.run.point_to(saved)
        return state

    # --- the loop -------------------------------------------------------------------------------------------------

    def run_to_end(self) -> TrainResult:
        """Step until a limit, validating and saving on the way; then release the best weights."""
        self.interrupts.deferred = True
        with self.report.bar("training", 100) as bar:
            try:
                while not (ended := self._run_until_diverged(bar)):
                    self._roll_back()
            except Interrupted:
                here = f"interrupted at step {self.state.step}"
                if self.state.skipped_in_a_row:
                    self.report.note(f"{here}, where gradients are not finite: not saved")
                else:
                    self._save()
                    self.report.note(f"{here}: saved; the same command goes on from here")
                raise
        return TrainResult(**self.ranks.from_main(lambda: asdict(self._finish(ended))))

    def _run_until_diverged(self, bar: Bar) -> str:
        """Step until a limit, and say which; "" when too many gradients in a row were not finite."""
        with closing(self.batches.stream(self.state.position)) as stream:
            while True:
                self.ranks.check(self.interrupts)
                ended = self._finished()
                # What may have diverged is neither scored nor saved: going back would lead to it.
                if self.state.valid_due and (ended or not self.state.skipped_in_a_row):
                    self._validate_and_save()
                    continue
                if ended:
                    if self.state.valid_step == self.state.step:
                        return ended
                    self.state.valid_due = True  # a lower limit than before leaves steps that nothing has scored
                    continue
                started = time.perf_counter()
                group = list(islice(stream, self.config.train.accumulate))
                batches = [batch for batch, _ in group]
                if self._step(batches):
                    self.state.skipped_in_a_row = 0
                elif not self._skip(batches):
                    return ""
                epoch = int(self._epochs())
                self.state.step += 1
                self.state.position = group[-1][1]
                self._count_time(started)
                self._after_step(bar, int(self._epochs()) > epoch)

    def _step(self, group: list[Batch]) -> bool:
        """One update; False when its gradient was not finite and it was skipped."""
        state = self.state
        multiplier = 0.5**state.rollbacks * lr_multiplier(self.config.optim, self._progress())
        nats = self.learner.step(group, state.step, multiplier)
        state.lr = multiplier * self.learner.peak_lr
        if nats is None:
            return False
        num_tokens = sum(batch.num_tokens for batch in group)
        state.nats += nats
        state.num_tokens += num_tokens
        state.tgt_tokens += num_tokens
        return True

    def _count_time(self, started: float) -> None:
        """Add the time since `started` to the run's, by rank 0's clock, on which the learning rate may depend."""
        now = time.perf_counter()
        self.state.elapsed_s = self.ranks.from_main(lambda: self.state.elapsed_s + now - started)

    def _after_step(self, bar: Bar, epoch_done: bool) -> None:
        state, options = self.state, self.config.train
        due = state.step % options.valid_every == 0 if options.valid_every else epoch_done
        state.valid_due = state.valid_due or due or bool(self._finished())  # it may have been put off
        if state.step % options.log_every == 0 and state.num_tokens:
            self._write_metrics("train", loss=state.nats / state.num_tokens, lr=self.state.lr)
            state.nats, state.num_tokens = 0.0, 0
        bar.advance(100 * self._progress(), self._status())
        save_due = options.save_every and state.step % options.save_every == 0
        if save_due and not state.valid_due and not state.skipped_in_a_row:
            self._save()

    def _skip(self, group: list[Batch]) -> bool:
        """Count a step whose gradient was not finite; False when there were too many in a row to go on.

        Raises:
            DivergedError: and going back to a checkpoint has not helped before.
        """
        self.state.skipped += 1
        self.state.skipped_in_a_row += 1
        self.report.warn(f"step {self.state.step + 1}: the gradient is not finite; the step is skipped")
        if self.state.skipped_in_a_row < MAX_SKIPPED:
            return True
        if self.state.rollbacks >= MAX_ROLLBACKS:
            self.ranks.from_main(lambda: self._give_up(group))
        return False

    def _give_up(self, group: list[Batch]) -> NoReturn:
        raise DivergedError(
            f"{MAX_SKIPPED} steps in a row had a gradient that is not finite, also after going back "
            f"{MAX_ROLLBACKS} times (last batch: {self.data.names(group)}); the last checkpoint is intact; try a lower "
            "optim.lr and optim.muon_lr, or train.precision = float32, with --fresh or in another --run"
        )

    def _roll_back(self) -> None:
        """Start again from the newest checkpoint, with half the learning rate."""
        rollbacks, skipped = self.state.rollbacks + 1, self.state.skipped
        del self.learner
        gc.collect()  # it refers to itself, and would keep its memory beside the new one's
        self._start()
        self.state.rollbacks, self.state.skipped, self.state.skipped_in_a_row = rollbacks, skipped, 0
        self.report.warn(
            f"{MAX_SKIPPED} gradients in a row were not finite: back to step {self.state.step}, "
            f"with {0.5**rollbacks:g} times the learning rate"
        )

    # --- limits ---------------------------------------------------------------------------------------------------

    def _progress(self) -> float:
        """Share of the run that is done, 0 to 1: of its steps, epochs or minutes, whichever is furthest."""
        options, state = self.config.train, self.state
        shares = [0.0]
        if options.max_steps:
            shares.append(state.step / options.max_steps)
        if options.max_epochs:
            shares.append(self._epochs() / options.max_epochs)
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
        self.learner.require_equal()
        bleu, state = self._validate(), self.state
        if bleu > state.best_bleu:
            state.best_bleu, state.best_step, state.stale = bleu, state.step, 0
        elif self.finetuning is not None or ready(epochs=self._epochs(), tgt_tokens=state.tgt_tokens):
            state.stale += 1
        state.valid_due, state.valid_step = False, state.step
        self._save()

    def _validate(self) -> float:
        """Score the weights on dev, say and write how they did, and return BLEU."""
        model = self.learner.whole(self.learner.released)
        return self.ranks.from_main(lambda: self._score(model.to(self.device)))

    def _score(self, model: Transformer) -> float:
        limit = self.config.train.valid_sentences
        dev = replace(self.data.dev, src=self.data.dev.src[:limit], tgt=self.data.dev.tgt[:limit])
        with self.report.bar("validating", None):
            outcome = validate(
                model,
                self.data.tokenizer,
                dev,
                self.config.decode,
                max_len=self.config.filter.max_len,
                epochs=self._epochs(),
                tgt_tokens=self.state.tgt_tokens,
                trained_on=self._trained_on(),
                check=self.interrupts.check,
            )
        self._report_validation(outcome)
        scores = outcome.scores
        self.state.signature = scores.signature["bleu"]
        self._write_metrics(
            "valid",
            loss=outcome.loss,
            lr=self.state.lr,
            bleu=scores.bleu,
            chrf=scores.chrf,
            perplexity=outcome.perplexity,
            signature=self.state.signature,
        )
        return scores.bleu

    def _trained_on(self) -> Pairs:
        """Some training pairs, evenly spread, to compare their loss with dev's."""
        return Pairs(*self.data.texts(spread(len(self.data.examples.tgt), 256).tolist()))

    def _report_validation(self, outcome: Validation) -> None:
        self.report.note(
            f"step {self.state.step}, epoch {self._epochs():.1f}: BLEU {outcome.scores.bleu:.1f} (greedy), "
            f"chrF {outcome.scores.chrf:.1f}, perplexity {outcome.perplexity:.2f}, "
            f"{self.state.tgt_tokens / max(self.state.elapsed_s, 1e-9):,.0f} target tokens/s"
        )
        for src, reference, output in outcome.samples:
            self.report.note(f"    source     {src}\n    reference  {reference}\n    output     {output}")
        for name, alarm in outcome.alarms.items():
            self.report.warn(alarm.partition(": ")[0] if name in self.alarmed else alarm)  # the advice once
        self.alarmed |= outcome.alarms.keys()

    def _write_metrics(self, kind: str, **values: Any) -> None:
        line = {
            "kind": kind,
            "step": self.state.step,
            "epoch": round(self._epochs(), 4),
            "elapsed_s": round(self.state.elapsed_s, 3),
            "tgt_tokens": self.state.tgt_tokens,
            **values,
        }
        if self.ranks.is_main:
            self.run.metrics.append(line)

    def _save(self) -> None:
        tensors = self.learner.tensors()
        self.ranks.from_main(lambda: self._write_checkpoint(*tensors))

    def _write_checkpoint(self, weights: dict[str, Tensor], rest: dict[str, Tensor]) -> None:
        self.state.metrics_bytes = self.run.metrics.size
        state = {
            "step": self.state.step,
            "best_step": self.state.best_step if self.state.best_bleu >= 0 else None,
            "loop": self.state.to_json(),
            **self.lineage,
            "versions": {"mtattn": mtattn.__version__, "torch": torch.__version__, "python": platform.python_version()},
        }
        self.run.save(Checkpoint(weights, rest, state))

    def _finish(self, reason: str) -> TrainResult:
        state = self.state
        scores: dict[str, Any] = {
            "dev_bleu": state.best_bleu,
            "dev_signature": state.signature,
            "step": state.best_step,
            "tgt_tokens": state.tgt_tokens,
        }
        if self.finetuning is not None:
            scores["finetune"] = self.finetuning.end(state.best_step, self.device, state.changed_dev)
        mixture = self.data.mixture
        pairs = (len(self.data.examples.tgt), 0) if mixture is None else (len(mixture.new), mixture.num_old)
        card = model_card(self.config, scores, *pairs)
        if not self.run.release(self.config, self.data.tokenizer, scores, card):
            self.report.note(f"{self.run.model / 'README.md'} may have been edited, so it stays; scores.json is new")
        if state.skipped:
            self.report.note(f"{state.skipped} steps were skipped, since their gradients were not finite")
        self.report.note(
            f"done: {reason} at step {state.step} after {state.elapsed_s / 60:.1f} minutes of training; best greedy "
            f"BLEU on dev {state.best_bleu:.1f} at step {state.best_step}; released to {self.run.model}"
        )
        return TrainResult(reason, state.step, state.best_bleu, state.elapsed_s)

    # --- small things ---------------------------------------------------------------------------------------------

    def _epochs(self) -> float:
        position = self.state.position
        return position.epoch + position.batch / len(self.batches.plan(position.epoch))

    def _status(self) -> str:
        state = self.state
        speed = state.tgt_tokens / max(state.elapsed_s, 1e-9)
        loss = f"loss {state.nats / state.num_tokens:.2f}, " if state.num_tokens else ""
        best = f", best BLEU {state.best_bleu:.1f}" if state.best_bleu >= 0 else ""
        return f"step {state.step}, {loss}{speed:,.0f} tok/s{best}"
