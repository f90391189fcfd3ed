"""torch.nn.Transformer in the loop that tutorials write, at its best: fused AdamW, one table."""

import math

import torch
import torch.nn.functional as F
from protocol import AdamWTraining, Batch, Job, Peer, cut_at_eos, serve
from torch import Tensor, nn


class Model(nn.Module):
    """Pre-norm nn.Transformer with sinusoidal positions and one embedding table."""

    def __init__(self, job: Job, max_len: int = 1024) -> None:
        super().__init__()
        self.pad_id, self.scale = job.pad_id, math.sqrt(job.d_model)
        self.embed = nn.Embedding(job.vocab_size, job.d_model)
        nn.init.normal_(self.embed.weight, std=job.d_model**-0.5)
        self.transformer = nn.Transformer(
            job.d_model,
            job.num_heads,
            job.encoder_layers,
            job.decoder_layers,
            job.d_ff,
            dropout=job.dropout,
            batch_first=True,
            norm_first=True,
        )
        self.dropout = nn.Dropout(job.dropout)
        # The same rates in the same places as the others: nn.Transformer has one rate for all.
        for module in self.transformer.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = job.attention_dropout
            elif isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
                module.dropout.p = job.inner_dropout
        angles = torch.arange(max_len)[:, None] * 10_000 ** (-torch.arange(0, job.d_model, 2) / job.d_model)
        self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], -1).flatten(1))  # [L, D]

    def forward(self, src: Tensor, tgt_in: Tensor) -> Tensor:
        """src [B, S], tgt_in [B, T] -> logits [B, T, V]."""
        padding = src == self.pad_id  # [B, S]
        padding = padding if padding.any() else None  # a mask that hides nothing costs time
        causal = nn.Transformer.generate_square_subsequent_mask(tgt_in.shape[1], device=tgt_in.device)
        hidden = self.transformer(
            self._embedded(src),
            self._embedded(tgt_in),
            tgt_mask=causal,
            tgt_is_causal=True,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )  # [B, T, D]
        return F.linear(hidden, self.embed.weight)

    def _embedded(self, ids: Tensor) -> Tensor:
        return self.dropout(self.embed(ids) * self.scale + self.positions[: ids.shape[1]])


class Plain(AdamWTraining):
    """Variant: the name of the dtype, where bfloat16 is autocast."""

    def __init__(self, job: Job) -> None:
        super().__init__(job, Model(job))

    def nats(self, batch: Batch) -> Tensor:
        """See AdamWTraining."""
        with self.autocast():
            logits = self.model(batch.src, batch.tgt_in)  # [B, T, V]
            return F.cross_entropy(
                logits.flatten(0, 1),
                batch.tgt_out.flatten(),
                ignore_index=self.job.pad_id,
                label_smoothing=self.job.label_smoothing,
                reduction="sum",
            )

    def translate(self, src: Tensor, max_len: int) -> list[list[int]]:
        """See Peer."""
        tgt = torch.full((len(src), 1), self.job.bos_id, device=src.device)
        for _ in range(max_len):
            best = self.model(src, tgt)[:, -1].argmax(-1)  # [B]
            tgt = torch.cat([tgt, best[:, None]], dim=1)
            if bool((tgt == self.job.eos_id).any(1).all()):
                break
        return [cut_at_eos(ids, self.job.eos_id) for ids in tgt[:, 1:].tolist()]


def build(job: Job) -> Peer:
    """The contender of this file."""
    return Plain(job)


if __name__ == "__main__":
    serve(build)
