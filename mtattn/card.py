"""The model card: what a released model is, in a page a stranger can read."""

from collections.abc import Mapping
from typing import Any

from mtattn.config import Config


def model_card(config: Config, scores: Mapping[str, Any], num_pairs: int) -> str:
    """README.md of a released model, with the metadata block that model hubs read."""
    data, model = config.data, config.model
    return f"""---
language: ["{data.src}", "{data.tgt}"]
license: unknown
library_name: mtattn
pipeline_tag: translation
---

# {data.src} to {data.tgt}, trained with mtattn

Translate with `mtattn translate THIS_FOLDER < text.{data.src}`.

- Trained on {num_pairs:,} pairs. The licence of the training text decides how this model may be used: fill in
  `license` above.
- Model: d_model {model.d_model}, d_ff {model.d_ff}, {model.num_heads} heads, {model.encoder_layers} encoder and
  {model.decoder_layers} decoder layers.
- Best greedy BLEU on the dev split while training: {scores["dev_bleu"]:.1f} (step {scores["step"]}).
- `config.toml` says how it was trained; `MANIFEST.json` lists each file's size and sha256.
"""
