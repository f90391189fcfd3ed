"""What a contender and training.py say to each other: one JSON object a line, questions on stdin, answers on stdout.

A contender computes only while it owes an answer and otherwise waits for a line, so that several take turns on one
machine without disturbing each other. This file runs in every contender's environment: it needs numpy and torch alone.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

BATCH = 128  # sources that are translated together


@dataclass(frozen=True)
class Job:
    """What all contenders have in common; `variant` is a contender's own.

    batches: an .npz file that `read_groups` reads. config: the resolved TOML of the mtattn config that the numbers come
    from. tokenizer: the folder of its SentencePiece model. warmup: steps in which the learning rate rises to its peak;
    it stays there.
    """

    batches: str
    config: str
    tokenizer: str
    device: str
    threads: int
    seed: int
    vocab_size: int
    d_model: int
    d_ff: int
    num_heads: int
    encoder_layers: int
    decoder_layers: int
    dropout: float
    inner_dropout: float
    attention_dropout: float
    label_smoothing: float
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    clip_norm: float
    warmup: int
    pad_id: int
    bos_id: int
    eos_id: int
    variant: str

    def lr_multiplier(self, step: int) -> float:
        """1 once the warm-up is over; `step` counts from 1."""
        return min(1.0, step / max(1, self.warmup))


@dataclass
class Batch:
    """Padded ids. tgt_in is tgt_out shifted by one, with BOS at its start."""

    src: Tensor  # [B, S]
    tgt_in: Tensor  # [B, T]
    tgt_out: Tensor  # [B, T], ends with EOS
    num_tokens: int  # of tgt_out, without padding

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(self.src.to(device), self.tgt_in.to(device), self.tgt_out.to(device), self.num_tokens)


class Peer(Protocol):
    """A model, its optimiser, and how it takes a step."""

    model: torch.nn.Module

    def step(self, group: list[Batch], lr_multiplier: float) -> float:
        """One update from the gradients of a group of batches; returns the loss in nats a token, smoothing included."""

    def translate(self, src: Tensor, max_len: int) -> list[list[int]]:
        """Greedy translations of sources [B, S] on the device: ids up to EOS, of at most max_len tokens."""


def write_groups(path: Path, groups: list[list[tuple[Tensor, Tensor]]]) -> None:
    """Save groups of (src [B, S], tgt_out [B, T]); a group is what one step learns from."""
    arrays = {
        f"{step}.{i}.{side}": tensor.numpy().astype(np.int32)
        for step, group in enumerate(groups)
        for i, batch in enumerate(group)
        for side, tensor in zip(("src", "tgt"), batch, strict=True)
    }
    np.savez(path, shape=np.array([len(group) for group in groups]), **arrays)


def read_groups(path: str, pad_id: int, bos_id: int) -> list[list[Batch]]:
    """What `write_groups` saved, with the decoder's input beside it."""
    with np.load(path) as file:
        return [
            [_batch(file[f"{step}.{i}.src"], file[f"{step}.{i}.tgt"], pad_id, bos_id) for i in range(count)]
            for step, count in enumerate(file["shape"].tolist())
        ]


def _batch(src: Any, tgt: Any, pad_id: int, bos_id: int) -> Batch:
    tgt_out = torch.from_numpy(tgt.astype(np.int64))  # [B, T]
    tgt_in = torch.cat([torch.full_like(tgt_out[:, :1], bos_id), tgt_out[:, :-1]], dim=1)  # [B, T]
    return Batch(torch.from_numpy(src.astype(np.int64)), tgt_in, tgt_out, int((tgt_out != pad_id).sum()))


def serve(build: Callable[[Job], Peer]) -> None:
    """Build the contender that the job in argv[1] describes, then answer until stdin ends.

    {"steps": n} trains on the next n groups (round and round): {"seconds", "tokens", "loss"}.
    {"translate": [[ids], ...], "max_len": n} translates greedily: {"translations": [[ids], ...]}. What else such a
    question says, the contender's `translate` is told.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    job = Job(**{**options, "betas": tuple(options["betas"])})
    torch.manual_seed(job.seed)
    contender, groups = build(job), read_groups(job.batches, job.pad_id, job.bos_id)

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    answer({"parameters": sum(p.numel() for p in contender.model.parameters() if p.requires_grad)})
    done = 0
    for line in sys.stdin:
        request = json.loads(line)
        if "steps" in request:
            answer(_train(contender, job, groups, done, request["steps"]))
            done += request["steps"]
        else:
            answer({"translations": _translate(contender, job, request.pop("translate"), request)})


def _train(contender: Peer, job: Job, groups: list[list[Batch]], done: int, steps: int) -> dict[str, Any]:
    chosen = [groups[step % len(groups)] for step in range(done, done + steps)]
    nats = 0.0
    _synchronise(job)
    start = time.perf_counter()
    for step, group in enumerate(chosen, done + 1):
        nats += contender.step(group, job.lr_multiplier(step))
    _synchronise(job)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "tokens": sum(batch.num_tokens for group in chosen for batch in group),
        "loss": nats / steps,
    }


def _synchronise(job: Job) -> None:
    if job.device == "cuda":
        torch.cuda.synchronize()


def _translate(contender: Peer, job: Job, sources: list[list[int]], options: dict[str, Any]) -> list[list[int]]:
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    found: list[list[int]] = [[]] * len(sources)
    contender.model.eval()
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        longest = max(len(sources[i]) for i in chosen)
        rows = [sources[i] + [job.pad_id] * (longest - len(sources[i])) for i in chosen]
        with torch.no_grad():
            outputs = contender.translate(torch.tensor(rows, device=job.device), **options)
        for i, ids in zip(chosen, outputs, strict=True):
            found[i] = ids
    return found


def cut_at_eos(ids: list[int], eos_id: int) -> list[int]:
    """The ids before the first EOS."""
    return ids[: ids.index(eos_id)] if eos_id in ids else ids


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group of an optimiser this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class AdamWTraining:
    """How torch users train: fused AdamW, clipped gradients, autocast where the variant is bfloat16."""

    def __init__(self, job: Job, model: torch.nn.Module) -> None:
        self.job, self.device = job, torch.device(job.device)
        self.model = model.to(self.device)
        options = {"lr": job.lr, "betas": job.betas, "weight_decay": job.weight_decay}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True, **options)

    def nats(self, batch: Batch) -> Tensor:
        """The loss of a batch on the device, summed over its tokens."""
        raise NotImplementedError

    def autocast(self) -> torch.autocast:
        """In here products are bfloat16 if the job says so."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.variant == "bfloat16")

    def step(self, group: list[Batch], lr_multiplier: float) -> float:
        """See Peer."""
        set_lr(self.optimizer, self.job.lr * lr_multiplier)
        self.model.train()
        nats, num_tokens = torch.zeros((), device=self.device), sum(batch.num_tokens for batch in group)
        for batch in group:
            loss = self.nats(batch.to(self.device))
            (loss / num_tokens).backward()
            nats += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.job.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(nats) / num_tokens
