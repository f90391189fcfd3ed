"""What a step makes smaller: the loss of one batch, in nats, summed over its target tokens."""

from torch import Tensor

from mtattn.batch import Batch
from mtattn.loss import LossConfig, linear_cross_entropy, linear_rdrop
from mtattn.model import Transformer


def batch_loss(model: Transformer, batch: Batch, config: LossConfig) -> Tensor:
    """The label-smoothed cross entropy of a batch, with R-Drop's term (arXiv:2106.14448) where the config asks for it.

    Args:
        model: in training mode.

    Returns:
        A scalar; divided by the number of tokens of all batches of a step, its gradients add up to the step's.
    """
    src, tgt_in, packing = batch.src, batch.tgt_in, batch.packing
    if config.rdrop:  # both passes in one batch, the second half under dropout of its own
        src, tgt_in = src.repeat(2, 1), tgt_in.repeat(2, 1)
        packing = None if packing is None else packing.twice()
    hidden = model.hidden(src, tgt_in, packing).flatten(0, 1)  # [B*T, D], or [2*B*T, D]
    # The table only now: a sharded model (mtattn.sharding) has put it together for `hidden`.
    table, targets = model.out_embed.weight, batch.tgt_out.flatten().long()  # [V, D], [B*T]
    pad_id, smoothing = model.pad_id, config.label_smoothing
    if config.rdrop:
        return linear_rdrop(hidden, table, targets, pad_id=pad_id, label_smoothing=smoothing, rdrop=config.rdrop)[0]
    return linear_cross_entropy(hidden, table, targets, pad_id=pad_id, label_smoothing=smoothing)[0]
