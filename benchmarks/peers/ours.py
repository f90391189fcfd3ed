"""mtattn's own training step: what `mtattn train` does between two looks at its limits."""

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from protocol import Batch, Job, Peer, serve
from torch import Tensor

import mtattn.batch
from mtattn.budget import choose_packing
from mtattn.config import parse_config
from mtattn.decode import DecodeConfig, search
from mtattn.distributed import Ranks
from mtattn.learner import Learner
from mtattn.memory import keep_freed_memory
from mtattn.packing import RowShape, assign
from mtattn.precision import choose_precision
from mtattn.tokenizer import Tokenizer


class Ours:
    """A Learner that is handed its batches; embeddings are random. Variant "adamw": AdamW alone, at the peers' rate."""

    def __init__(self, job: Job) -> None:
        keep_freed_memory()
        self.job, self.device = job, torch.device(job.device)
        config = parse_config(tomllib.loads(job.config), "job")
        if job.variant == "adamw":
            config = replace(config, optim=replace(config.optim, kind="adamw", lr=job.lr))
        if config.train.precision == "auto":
            config = replace(config, train=replace(config.train, precision=choose_precision(self.device)[0]))
        self.packing = choose_packing(config, self.device)[0]
        config = replace(config, train=replace(config.train, packing=self.packing))
        # The padded batches that all contenders get hold at most so many tokens a side, and rows fill to nine tenths.
        rows = -(-int(config.train.batch_tokens) // 115)
        self.shape = RowShape(rows, 128, 128)
        torch.manual_seed(config.train.seed)
        tokenizer = Tokenizer.load(Path(job.tokenizer))
        self.learner = Learner(config, tokenizer, self.device, Ranks(), parts={}, named=repr, warn=print)
        self.learner.begin(self.learner.model)
        self.steps = 0

    @property
    def model(self) -> torch.nn.Module:
        """The weights that would be released."""
        return self.learner.released

    def step(self, group: list[Batch], lr_multiplier: float) -> float:
        """See Peer."""
        nats = self.learner.step([self._own(batch) for batch in group], self.steps, lr_multiplier)
        assert nats is not None, "a gradient was not finite"
        self.steps += 1
        return nats / sum(batch.num_tokens for batch in group)

    def _own(self, batch: Batch) -> mtattn.batch.Batch:
        """The same pairs as mtattn trains on them here: padded, or several in a row."""
        if not self.packing:
            nobody = np.zeros(0, dtype=np.int64)
            return mtattn.batch.Batch(batch.src, batch.tgt_in, batch.tgt_out, batch.num_tokens, nobody)
        ids = [[row[row != self.job.pad_id].numpy() for row in side] for side in (batch.src, batch.tgt_out)]
        lens = [np.array([*map(len, side)]) for side in ids]
        rows = assign(lens[0], lens[1], self.shape)
        assert (rows >= 0).all(), "a batch does not fit into the rows"
        order = np.argsort(rows, kind="stable")
        src, tgt = (
            (np.concatenate([side[i] for i in order]), size[order]) for side, size in zip(ids, lens, strict=True)
        )
        special = {"pad_id": self.job.pad_id, "bos_id": self.job.bos_id}
        return mtattn.batch.pack(src, tgt, order, rows[order], shape=self.shape, **special)

    def translate(self, src: Tensor, max_len: int) -> list[list[int]]:
        """See Peer."""
        greedy = DecodeConfig(beam_size=1, max_len_ratio=0.0, max_len_extra=max_len)
        lens = (src != self.job.pad_id).sum(1)
        ids = {"bos_id": self.job.bos_id, "eos_id": self.job.eos_id, "pad_id": self.job.pad_id}
        return [hypotheses[0].ids for hypotheses in search(self.model.start(src), lens, greedy, **ids)]


def build(job: Job) -> Peer:
    """The contender of this file."""
    return Ours(job)


if __name__ == "__main__":
    serve(build)
