"""To a Hugging Face repository: weights, config, tokenizer, and a card whose scores model hubs can read.

Where a class of `transformers` computes what the model does (see `stock`), the folder is written for it, and holds the
model as ours in `model/`. Otherwise the folder is a released model of ours alone. `mtattn translate FOLDER` runs both;
no code travels with either.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mtattn
from mtattn.card import UNLICENSED, licence
from mtattn.checkpoint import weights_of
from mtattn.config import Config
from mtattn.decode import DecodeConfig
from mtattn.errors import ConfigError, FileError, ModelError
from mtattn.export.exporter import Exporter, Trained
from mtattn.export.parity import EXACT, Engine, Native
from mtattn.export.stock import CLASSES, StockEngine, obstacles, special_ids, stock_files
from mtattn.loading import load_model
from mtattn.mixing import FinetuneConfig
from mtattn.sources import Corpus, as_sources
from mtattn.storage import read_json, tensors_to_bytes, write_folder
from mtattn.tokenizer import Tokenizer

CARD = """\
---
language: {languages}
{licence}
library_name: {library}
pipeline_tag: translation
tags: [translation, mtattn]
{model_index}---

# {src} to {tgt}

A Transformer of {parameters:,} parameters, trained with mtattn {version}.{transformers} With mtattn
installed, run it with

    mtattn translate THIS_FOLDER < text.{src}

- Training data: {data}. Its licence decides how this model may be used{fill_in}.{origin}
- Model: d_model {d_model}, d_ff {d_ff}, {num_heads} heads, {encoder_layers} encoder and {decoder_layers} decoder
  layers, {pieces} pieces.
- `config.toml` says how it was trained; `MANIFEST.json` lists each file's size and sha256.
"""


TRANSFORMERS = """ `transformers` runs it as {name}:

    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    model, tokenizer = (a.from_pretrained("THIS_FOLDER") for a in (AutoModelForSeq2SeqLM, AutoTokenizer))
    ids = model.generate(**tokenizer(["..."], return_tensors="pt", padding=True))
    print(tokenizer.batch_decode(ids, skip_special_tokens=True))

That is greedy search, and gives the text of `{command}`, except for texts of over {max_len:,}
tokens{sentences}, which mtattn splits, translations of over {ratio:g} times the text's tokens plus {extra:,}, which
mtattn cuts, and texts that begin with `>>`, which the tokenizer of `transformers` takes for a language code."""


ORIGIN = """
- Fine-tuned from {ancestors}; training data of the first: {data}. Their licences count too."""


def write(trained: Trained, folder: Path, quantization: str) -> None:
    """Fill a folder: model.safetensors, config.json, config.toml, the SentencePiece model(s), README.md, MANIFEST.json.

    For a class of transformers: what its classes read, README.md, and our files in model/.
    quantization: "float32", the only one.
    """
    ours = {
        "config.toml": trained.config.to_toml().encode(),
        **trained.tokenizer.to_files(),
        "model.safetensors": tensors_to_bytes(weights_of(trained.model)),
    }
    weights = hashlib.sha256(ours["model.safetensors"]).hexdigest()
    scores, terms = _scores(trained.folder, weights), _licence(trained.folder)
    readme = {"README.md": card(trained, scores, terms).encode()}
    known = {"scores.json": json.dumps(scores, indent=1).encode()} if scores else {}
    if obstacles(trained.config):
        write_folder(folder, {**ours, "config.json": _config_json(trained).encode()}, notes={**readme, **known})
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {**stock_files(trained), **readme}.items():
        (folder / name).write_bytes(data)
    write_folder(folder / "model", ours, notes=known)


def card(trained: Trained, scores: dict[str, Any], terms: str = UNLICENSED) -> str:
    """README.md.

    Args:
        scores: as `mtattn eval --json` prints them, or what training found ("dev_bleu").
        terms: what the model's own card says of its licence (see `mtattn.card.licence`).
    """
    data, model = trained.config.data, trained.config.model
    return CARD.format(
        library="mtattn" if obstacles(trained.config) else "transformers",
        transformers=_transformers(trained.config),
        # In quotes: YAML takes a bare `no`, Norwegian, for false.
        languages=json.dumps([data.src, data.tgt], ensure_ascii=False),
        src=data.src,
        tgt=data.tgt,
        licence=terms,
        fill_in=": fill in `license` above" if terms == UNLICENSED else "",
        model_index=_model_index(trained, scores),
        parameters=sum(p.numel() for p in trained.model.parameters()),
        version=mtattn.__version__,
        data=_named(data.train),
        origin=_origin(trained.config.finetune),
        pieces=f"{trained.tokenizer.tgt_vocab_size:,}",
        **{name: value for name, value in asdict(model).items() if name != "preset"},
    )


def _transformers(config: Config) -> str:
    """How a class of transformers runs the model."""
    if obstacles(config):
        return " It is no class of `transformers`."
    return TRANSFORMERS.format(
        name=CLASSES[config.model.norm_position].name,
        command=_greedy_command(config.decode),
        max_len=config.filter.max_len,
        sentences=f" or {most} sentence{'s' if most > 1 else ''}" if (most := config.decode.max_sentences) else "",
        ratio=config.decode.max_len_ratio,
        extra=config.decode.max_len_extra,
    )


def _origin(options: FinetuneConfig) -> str:
    """The model that training started from, and its data."""
    if not options.model:
        return ""
    return ORIGIN.format(ancestors=", itself from ".join(options.ancestors), data=_named(options.old.train))


def _named(corpus: Corpus) -> str:
    return ", ".join(source.path for source in as_sources(corpus)) or "not named"


def _greedy_command(decode: DecodeConfig) -> str:
    """What makes mtattn search as the folder's generation_config.json says, whatever the model's [decode] does."""
    plain = DecodeConfig()
    names = ("search", "nbest", "quantization", "min_len_ratio")
    changes = [f"--set decode.{n}={getattr(plain, n)}" for n in names if getattr(decode, n) != getattr(plain, n)]
    return " ".join(["mtattn translate --beam 1", *changes])


def _model_index(trained: Trained, scores: dict[str, Any]) -> str:
    """The metadata block of the scores (https://huggingface.co/docs/hub/model-cards), in JSON, which is also YAML."""
    signatures = scores.get("signature", {})
    found = [(name, scores[name]) for name in ("bleu", "chrf", "ter") if isinstance(scores.get(name), float)]
    scored = where = scores.get("scored", "test")
    if not found and isinstance(scores.get("dev_bleu"), float):
        found, signatures = [("bleu", scores["dev_bleu"])], {"bleu": scores.get("dev_signature")}
        scored, where = "dev", "dev, greedy, while training"
    if not found:
        return ""
    data = trained.config.data
    metrics = [
        {
            "type": name,
            "value": round(value, 2),
            "name": f"{name.upper()} ({where})",
            **({"config": signatures[name]} if signatures.get(name) else {}),
        }
        for name, value in found
    ]
    corpus = _named(getattr(data, scored)) if scored in ("test", "dev") else str(scored)
    result = {
        "task": {"type": "translation", "name": f"Translation {data.src}-{data.tgt}"},
        "dataset": {"type": corpus, "name": corpus},
        "metrics": metrics,
    }
    entry = {"name": f"{data.src}-{data.tgt}", "results": [result]}
    return f"model-index: {json.dumps([entry], ensure_ascii=False)}\n"


def _scores(run: Path, weights: str) -> dict[str, Any]:
    """What is known of the model: scores.json, of a run directory or released model; nothing when there is none.

    Raises:
        ConfigError: they were measured with other weights than these (sha256).
    """
    for path in (run / "scores.json", run / "model" / "scores.json"):
        try:
            found = read_json(path)
        except ModelError:
            continue
        if found.get("weights", weights) != weights:
            raise ConfigError(
                f"{path}: scores of other weights, such as before more training; delete it, or score these: "
                f"mtattn eval {run} --json > {path}"
            )
        return found
    return {}


def _licence(run: Path) -> str:
    """What the card of a run directory or released model says of its licence."""
    for path in (run / "README.md", run / "model" / "README.md"):
        if path.is_file() and (found := licence(path.read_text(encoding="utf-8", errors="replace"))):
            return found
    return UNLICENSED


def _config_json(trained: Trained) -> str:
    shape = {"model_type": "mtattn", "architectures": ["Transformer"], **asdict(trained.config.model)}
    return json.dumps({**shape, **special_ids(trained.tokenizer)}, indent=1)


def load(folder: Path, tokenizer: Tokenizer) -> Engine:
    """The written model, read back, by transformers where it is written for that."""
    if (folder / "model").is_dir():
        return StockEngine(folder, tokenizer)
    model, own_tokenizer, _ = load_model(folder)
    return Native(model, own_tokenizer)


def push(folder: Path, repository: str) -> str:
    """Upload a written folder to the hub, as a private repository if it is new.

    Args:
        repository: OWNER/NAME.

    Returns:
        Its address.

    Raises:
        FileError: the hub refused, or cannot be reached.
    """
    import huggingface_hub as hub

    try:
        address = hub.create_repo(repository, private=True, exist_ok=True)
        # An earlier copy may have been for a class of transformers; its model/ would be taken for this one's.
        hub.upload_folder(repo_id=repository, folder_path=folder, delete_patterns=["model/*"])
    except Exception as error:  # the hub's own errors, and whatever the HTTP library raises when there is no network
        raise FileError(f"{repository}: cannot be pushed: {error}") from error
    return str(address)


def remark(config: Config) -> str:
    """Who can run what is written of a model of this config."""
    reasons = obstacles(config)
    if not reasons:
        return f"transformers runs it as {CLASSES[config.model.norm_position].name}"
    return f"to be run with mtattn; a class of transformers would need {'; '.join(reasons)}"


# There are no refusals: what no class of transformers can run (`obstacles`) is run by the code that trained it.
EXPORTER = Exporter(write=write, load=load, limits={"float32": EXACT}, remark=remark)
