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
    pad_id, smoothing = model.pad_id, config.label_smoothing
    targets = batch.tgt_out.flatten().long()  # [B*T]
    if not config.rdrop:
        hidden = model.hidden(batch.src, batch.tgt_in, batch.packing).flatten(0, 1)  # [B*T, D]
        table = model.out_embed.weight  # [V, D]; only now, for a sharded model (mtattn.sharding) puts it together first
        return linear_cross_entropy(hidden, table, targets, pad_id=pad_id, label_smoothing=smoothing)[0]
    # Both passes in one batch, the second half under dropout of its own.
    twice = batch.src.repeat(2, 1), batch.tgt_in.repeat(2, 1)
    packing = None if batch.packing is None else batch.packing.twice()
    hidden = model.hidden(*twice, packing).flatten(0, 1)  # [2*B*T, D]
    return linear_rdrop(
        hidden, model.out_embed.weight, targets, pad_id=pad_id, label_smoothing=smoothing, rdrop=config.rdrop
    )[0]
