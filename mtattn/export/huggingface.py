"""To a Hugging Face repository: weights, config, tokenizer, and a card whose scores model hubs can read.

The folder is also a released model of ours, so that `mtattn translate FOLDER` runs it; no code travels with it.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mtattn
from mtattn.checkpoint import load_model, weights_of
from mtattn.errors import FileError
from mtattn.export.exporter import Exporter, Trained, extra
from mtattn.export.parity import Engine, Limits, Native
from mtattn.model import ModelConfig
from mtattn.storage import tensors_to_bytes, write_folder
from mtattn.tokenizer import Tokenizer

CARD = """\
---
language: [{src}, {tgt}]
license: unknown
library_name: mtattn
pipeline_tag: translation
tags: [translation, mtattn]
{model_index}---

# {src} to {tgt}

A Transformer of {parameters:,} parameters, trained with mtattn {version}. It is no class of `transformers`; run it with

    pip install mtattn
    mtattn translate THIS_FOLDER < text.{src}

- Training data: {data}. Its licence decides how this model may be used: fill in `license` above.
- Model: d_model {d_model}, d_ff {d_ff}, {num_heads} heads, {encoder_layers} encoder and {decoder_layers} decoder
  layers, {pieces} pieces.
- `config.toml` says how it was trained; `MANIFEST.json` lists each file's size and sha256.
"""


def refusals(config: ModelConfig) -> list[str]:
    """Nothing: the folder is run by the code that trained it."""
    return []


def write(trained: Trained, folder: Path, quantization: str) -> None:
    """Fill a folder: model.safetensors, config.json, config.toml, the SentencePiece model(s), README.md, MANIFEST.json.

    quantization: "float32", the only one.
    """
    write_folder(
        folder,
        {
            "config.toml": trained.config.to_toml().encode(),
            "config.json": _config_json(trained).encode(),
            **trained.tokenizer.to_files(),
            "model.safetensors": tensors_to_bytes(weights_of(trained.model)),
            "README.md": card(trained, _scores(trained.folder)).encode(),
        },
    )


def card(trained: Trained, scores: dict[str, Any]) -> str:
    """README.md. scores: as `mtattn eval --json` prints them, or what training found ("dev_bleu")."""
    data, model = trained.config.data, trained.config.model
    corpora = data.train if isinstance(data.train, tuple) else (data.train,)
    return CARD.format(
        src=data.src,
        tgt=data.tgt,
        model_index=_model_index(trained, scores),
        parameters=sum(p.numel() for p in trained.model.parameters()),
        version=mtattn.__version__,
        data=", ".join(corpus if isinstance(corpus, str) else corpus.path for corpus in corpora) or "not named",
        pieces=f"{trained.tokenizer.tgt_vocab_size:,}",
        **{name: value for name, value in asdict(model).items() if name != "preset"},
    )


def _model_index(trained: Trained, scores: dict[str, Any]) -> str:
    """The metadata block of the scores (https://huggingface.co/docs/hub/model-cards), in JSON, which is also YAML."""
    signatures = scores.get("signature", {})
    found = [(name, scores[name]) for name in ("bleu", "chrf", "ter") if isinstance(scores.get(name), float)]
    if not found and isinstance(scores.get("dev_bleu"), float):
        found = [("bleu", scores["dev_bleu"])]
    if not found:
        return ""
    data = trained.config.data
    metrics = [
        {
            "type": name,
            "value": round(value, 2),
            "name": f"{name.upper()} ({'test' if signatures else 'dev, greedy, while training'})",
            **({"config": signatures[name]} if name in signatures else {}),
        }
        for name, value in found
    ]
    corpus = str(data.test if signatures else data.dev) or "not named"
    result = {
        "task": {"type": "translation", "name": f"Translation {data.src}-{data.tgt}"},
        "dataset": {"type": corpus, "name": corpus},
        "metrics": metrics,
    }
    return f"model-index: {json.dumps([{'name': f'{data.src}-{data.tgt}', 'results': [result]}])}\n"


def _scores(run: Path) -> dict[str, Any]:
    """What is known of the model: scores.json, of a run directory or released model; nothing when there is none."""
    for path in (run / "scores.json", run / "model" / "scores.json"):
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                continue
            return found if isinstance(found, dict) else {}
    return {}


def _config_json(trained: Trained) -> str:
    shape = {"model_type": "mtattn", "architectures": ["Transformer"], **asdict(trained.config.model)}
    tokenizer = trained.tokenizer
    ids = {"pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    return json.dumps({**shape, **ids, "decoder_start_token_id": tokenizer.bos_id}, indent=1)


def load(folder: Path, tokenizer: Tokenizer) -> Engine:
    """The written model, read back."""
    model, own_tokenizer, _ = load_model(folder)
    return Native(model, own_tokenizer)


def push(folder: Path, repository: str) -> str:
    """Upload a written folder to the hub, as a private repository if it is new.

    Args:
        repository: OWNER/NAME.

    Returns:
        Its address.

    Raises:
        ConfigError: huggingface_hub is missing. FileError: the hub refused, or cannot be reached.
    """
    hub = extra("huggingface_hub")
    try:
        address = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder)
    except (OSError, ValueError) as error:  # the hub's own errors are OSErrors, and ValueErrors for a name
        raise FileError(f"{repository}: cannot be pushed: {error}") from None
    return str(address)


EXPORTER = Exporter(refusals=refusals, write=write, load=load, limits={"float32": Limits(0.0, 0.0, 1.0)})
