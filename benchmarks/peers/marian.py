"""Hugging Face's MarianMT from scratch, with its Trainer's LabelSmoother, fused AdamW and SDPA attention."""

from protocol import AdamWTraining, Batch, Job, Peer, cut_at_eos, serve
from torch import Tensor
from transformers import MarianConfig, MarianMTModel
from transformers.trainer_pt_utils import LabelSmoother


class Marian(AdamWTraining):
    """Variant: the name of the dtype, where bfloat16 is autocast, as `TrainingArguments(bf16=True)` does it."""

    def __init__(self, job: Job) -> None:
        config = MarianConfig(
            vocab_size=job.vocab_size,
            d_model=job.d_model,
            encoder_layers=job.encoder_layers,
            decoder_layers=job.decoder_layers,
            encoder_attention_heads=job.num_heads,
            decoder_attention_heads=job.num_heads,
            encoder_ffn_dim=job.d_ff,
            decoder_ffn_dim=job.d_ff,
            dropout=job.dropout,
            activation_dropout=job.inner_dropout,
            attention_dropout=job.attention_dropout,
            activation_function="relu",
            scale_embedding=True,
            init_std=job.d_model**-0.5,
            pad_token_id=job.pad_id,
            eos_token_id=job.eos_id,
            forced_eos_token_id=job.eos_id,
            decoder_start_token_id=job.bos_id,
            attn_implementation="sdpa",
        )
        super().__init__(job, MarianMTModel(config))
        self.smoother = LabelSmoother(epsilon=job.label_smoothing)

    def nats(self, batch: Batch) -> Tensor:
        """See AdamWTraining."""
        with self.autocast():
            outputs = self.model(
                input_ids=batch.src,
                attention_mask=(batch.src != self.job.pad_id).long(),
                decoder_input_ids=batch.tgt_in,
                use_cache=False,
            )
        outputs.logits = outputs.logits.float()
        labels = batch.tgt_out.masked_fill(batch.tgt_out == self.job.pad_id, self.smoother.ignore_index)
        return self.smoother(outputs, labels) * batch.num_tokens

    def translate(self, src: Tensor, max_len: int) -> list[list[int]]:
        """See Peer."""
        mask = (src != self.job.pad_id).long()
        found = self.model.generate(
            input_ids=src, attention_mask=mask, num_beams=1, do_sample=False, max_new_tokens=max_len
        )
        return [cut_at_eos(ids, self.job.eos_id) for ids in found[:, 1:].tolist()]


def build(job: Job) -> Peer:
    """The contender of this file."""
    return Marian(job)


if __name__ == "__main__":
    serve(build)
