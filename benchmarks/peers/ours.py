"""mtattn's own training step: what `mtattn train` does between two looks at its limits."""

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from protocol import Batch, Contender, Job, serve
from torch import Tensor

import mtattn.batching
from mtattn.checkpoint import RunDirectory
from mtattn.config import parse_config
from mtattn.decode import DecodeConfig, search
from mtattn.interrupts import Interrupts
from mtattn.memory import keep_freed_memory
from mtattn.optim import set_lr
from mtattn.precision import choose_precision
from mtattn.prepare import prepare
from mtattn.progress import Reporter
from mtattn.tokenizer import Tokenizer
from mtattn.train import Trainer


class Ours:
    """A Trainer that is handed its batches. Variant "adamw": AdamW alone, at the peers' learning rate."""

    def __init__(self, job: Job) -> None:
        keep_freed_memory()
        self.job, self.device = job, torch.device(job.device)
        config = parse_config(tomllib.loads(job.config), "job")
        if job.variant == "adamw":
            config = replace(config, optim=replace(config.optim, kind="adamw", lr=job.lr))
        if config.train.precision == "auto":
            config = replace(config, train=replace(config.train, precision=choose_precision(self.device)[0]))
        report = Reporter()
        report.console.quiet = True
        data = prepare(config, Tokenizer.load(Path(job.tokenizer)), report)
        run = RunDirectory(Path(job.tokenizer) / f"run-{job.variant}")  # inside the comparison's temporary folder
        run.path.mkdir()
        self.trainer = Trainer(config, run, data, report, Interrupts(), self.device, False)

    @property
    def model(self) -> torch.nn.Module:
        """The weights that would be released."""
        return self.trainer.released

    def step(self, group: list[Batch], lr_multiplier: float) -> float:
        """See Contender."""
        state = self.trainer.state
        set_lr(self.trainer.optimizers, lr_multiplier)
        nobody = np.zeros(0, dtype=np.int64)
        before = state.nats, state.num_tokens
        self.trainer._step([mtattn.batching.Batch(b.src, b.tgt_in, b.tgt_out, b.num_tokens, nobody) for b in group])
        state.step += 1
        return (state.nats - before[0]) / max(1, state.num_tokens - before[1])

    def translate(self, src: Tensor, max_len: int) -> list[list[int]]:
        """See Contender."""
        greedy = DecodeConfig(beam_size=1, max_len_ratio=0.0, max_len_extra=max_len)
        lens = (src != self.job.pad_id).sum(1)
        ids = {"bos_id": self.job.bos_id, "eos_id": self.job.eos_id, "pad_id": self.job.pad_id}
        return [hypotheses[0].ids for hypotheses in search(self.model.start(src), lens, greedy, **ids)]


def build(job: Job) -> Contender:
    """The contender of this file."""
    return Ours(job)


if __name__ == "__main__":
    serve(build)
