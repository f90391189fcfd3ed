"""JoeyNMT's model, loss, batches, gradient clipper and optimiser, in the order of its TrainManager's training step."""

from types import SimpleNamespace

import torch
from joeynmt.batch import Batch as JoeyBatch
from joeynmt.builders import build_gradient_clipper, build_optimizer
from joeynmt.model import Model, build_model
from joeynmt.search import search
from joeynmt.transformer_layers import MultiHeadedAttention, PositionwiseFeedForward
from joeynmt.vocabulary import Vocabulary
from protocol import Batch, Job, Peer, cut_at_eos, serve, set_lr
from torch import Tensor

SPECIALS = ("<unk>", "<pad>", "<s>", "</s>")  # JoeyNMT's order: their ids are 0 to 3


def vocabulary(size: int) -> Vocabulary:
    """JoeyNMT's special symbols and as many others as there are; their text does not matter here."""
    unk, pad, bos, eos = SPECIALS
    names = {"unk_token": unk, "pad_token": pad, "bos_token": bos, "eos_token": eos, "sep_token": None}
    ids = {"unk_id": 0, "pad_id": 1, "bos_id": 2, "eos_id": 3, "sep_id": None}
    return Vocabulary([f"piece{i}" for i in range(4, size)], SimpleNamespace(**names, **ids, lang_tags=[]))


def model_config(job: Job) -> dict[str, object]:
    """What would stand under `model:` in a JoeyNMT config."""

    def stack(num_layers: int) -> dict[str, object]:
        return {
            "type": "transformer",
            "num_layers": num_layers,
            "num_heads": job.num_heads,
            "embeddings": {"embedding_dim": job.d_model, "scale": True, "dropout": job.dropout},
            "hidden_size": job.d_model,
            "ff_size": job.d_ff,
            "dropout": job.dropout,
            "layer_norm": "pre",
            "activation": "relu",
        }

    tied = {"tied_embeddings": True, "tied_softmax": True, "initializer": "xavier_uniform"}
    return {**tied, "encoder": stack(job.encoder_layers), "decoder": stack(job.decoder_layers)}


def built(job: Job) -> Model:
    """The model, with the same dropout rates in the same places as the others: JoeyNMT has one rate for all."""
    words = vocabulary(job.vocab_size)
    model = build_model(model_config(job), words, words)
    for module in model.modules():
        if isinstance(module, MultiHeadedAttention):
            module.dropout.p = job.attention_dropout
        elif isinstance(module, PositionwiseFeedForward):
            module.pwff_layer[2].p = job.inner_dropout
    model.loss_function = ("crossentropy", job.label_smoothing)
    return model.to(job.device)


class Joey:
    """Float32, as JoeyNMT trains by default."""

    def __init__(self, job: Job) -> None:
        self.job, self.device = job, torch.device(job.device)
        self.model = built(job)
        training = {
            "optimizer": "adamw",
            "adam_betas": job.betas,
            "learning_rate": job.lr,
            "weight_decay": job.weight_decay,
            "clip_grad_norm": job.clip_norm,
            "clip_grad_val": None,
        }
        self.optimizer = build_optimizer(training, self.model.parameters())
        self.clip = build_gradient_clipper(training)
        self.to_joey = torch.arange(job.vocab_size)
        self.to_joey[[3, job.pad_id, job.bos_id, job.eos_id]] = torch.arange(4)
        self.from_joey = self.to_joey.argsort()

    def step(self, group: list[Batch], lr_multiplier: float) -> float:
        """See Peer."""
        set_lr(self.optimizer, self.job.lr * lr_multiplier)
        self.model.train()
        nats = 0.0
        for batch in map(self._joey_batch, group):
            batch.sort_by_src_length()
            loss, _, _, correct = self.model(return_type="loss", **vars(batch))
            loss = batch.normalize(loss, normalization="tokens", n_accumulation=len(group))
            loss.backward()
            nats += loss.item()
            correct.item()  # JoeyNMT looks at it after each batch
        self.clip(parameters=self.model.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad()
        return nats

    def _joey_batch(self, batch: Batch) -> JoeyBatch:
        tgt = torch.cat([batch.tgt_in[:, :1], batch.tgt_out], dim=1)
        lens = (batch.src != self.job.pad_id).sum(1)
        src, tgt = self.to_joey[batch.src], self.to_joey[tgt]
        return JoeyBatch(src, lens, None, tgt, None, torch.arange(len(src)), self.device, 1, 3)

    def translate(self, src: Tensor, max_len: int, min_len: int = 1, beam: int = 1) -> list[list[int]]:
        """See Peer; EOS is forbidden before min_len, and a beam of 1 is greedy search."""
        src = self.to_joey[src.cpu()].to(self.device)
        lens = (src != 1).sum(1)
        batch = JoeyBatch(src, lens, None, None, None, torch.arange(len(src)), self.device, 1, 3, is_train=False)
        found, _, _ = search(self.model, batch, max_len, beam, beam_alpha=1.0, min_output_length=min_len)
        return [cut_at_eos(ids, self.job.eos_id) for ids in self.from_joey[found].tolist()]


def build(job: Job) -> Peer:
    """The contender of this file."""
    return Joey(job)


if __name__ == "__main__":
    serve(build)
