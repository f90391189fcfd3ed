"""The model card: what a released model is, in a page a stranger can read."""

import json
import re
from collections.abc import Mapping
from typing import Any

from mtattn.config import Config

UNLICENSED = "license: unknown"


def model_card(config: Config, scores: Mapping[str, Any], num_pairs: int, num_old: int) -> str:
    """README.md of a released model, with the metadata block that model hubs read.

    Args:
        scores: those of scores.json.
        num_pairs: pairs that it was trained on; num_old: of the model it was fine-tuned from, drawn anew each epoch.
    """
    data, model = config.data, config.model
    tuned = scores.get("finetune")
    changed = "".join(f"\n- {line}." for line in before_and_after(tuned)) if tuned else ""
    origin = f"\n- Fine-tuned from {', itself from '.join(config.finetune.ancestors)}." if tuned else ""
    trained_on = f"{num_pairs:,} pairs"
    if num_old:
        trained_on = f"{num_pairs:,} new pairs and, in each epoch, another draw of {num_old:,} old ones"
    return f"""---
language: {json.dumps([data.src, data.tgt], ensure_ascii=False)}
{UNLICENSED}
library_name: mtattn
pipeline_tag: translation
---

# {data.src} to {data.tgt}, trained with mtattn

Translate with `mtattn translate THIS_FOLDER < text.{data.src}`.

- Trained on {trained_on}.
  The licence of the training text decides how this model may be used: fill in `license` above.
- Model: d_model {model.d_model}, d_ff {model.d_ff}, {model.num_heads} heads, {model.encoder_layers} encoder and
  {model.decoder_layers} decoder layers.
- Best greedy BLEU on the dev split while training: {scores["dev_bleu"]:.1f} (step {scores["step"]};
  {scores["dev_signature"]}).{origin}{changed}
- `config.toml` says how it was trained; `MANIFEST.json` lists each file's size and sha256.
"""


def licence(card: str) -> str:
    """The lines of a card's metadata block that say under what licence its model stands, as people filled them in."""
    block = re.match(r"---\n(.*?\n)---\n", card, re.DOTALL)
    return "\n".join(re.findall(r"^license.*(?:\n[ \t-].*)*", block[1], re.MULTILINE)) if block else ""


def before_and_after(finetune: Mapping[str, Any]) -> list[str]:
    """What fine-tuning changed (scores.json, "finetune"): one line for each dev set that was scored both times."""
    lines = []
    for name, title in (("new_dev", "New dev set"), ("old_dev", "Old dev set")):
        before, after = finetune[name]["before"], finetune[name]["after"]
        if before and after:
            lines.append(
                f"{title}: BLEU {before['bleu']:.1f} -> {after['bleu']:.1f} ({after['bleu'] - before['bleu']:+.1f}), "
                f"chrF {before['chrf']:.1f} -> {after['chrf']:.1f} (greedy)"
            )
    return lines
