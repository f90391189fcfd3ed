"""What must agree before a run goes on: the config that is asked for, the tokenizer, the training pairs."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from mtattn.checkpoint import RunDirectory, tokenizer_hashes
from mtattn.config import Config
from mtattn.corpus import DataConfig, LoadedCorpus
from mtattn.errors import ConfigError, CorpusError, ModelError
from mtattn.hub import PREFIX as HUB_PREFIX
from mtattn.hub import parse_hub_name
from mtattn.prepare import Pairs, Prepared
from mtattn.sources import CorpusSource, as_sources

MAY_CHANGE = ("max_steps", "max_epochs", "max_minutes", "patience", "log_every", "shard")  # on resuming, of [train]
SPLITS = ("train", "dev", "test")
DEV_SETS = {"dev": "the dev set", "old_dev": "the old dev set"}  # in a lineage, and what they are called


def resumed_config(asked: Config, run: RunDirectory) -> Config:
    """The run's own config, with what may change while a run is under way taken from what is asked for.

    That is [decode], of [train] what MAY_CHANGE has, and where corpora have moved to.

    Raises:
        ConfigError: anything else differs; the message lists each field. ModelError: the run's config is no config.
    """
    own = run.read_config()
    changed = {name: getattr(asked.train, name) for name in MAY_CHANGE}
    data, old = _moved(own.data, asked.data), _moved(own.finetune.old, asked.finetune.old)
    own = replace(
        own,
        data=data,
        train=replace(own.train, **changed),
        finetune=replace(own.finetune, old=old),
    )
    for name in ("precision", "batch_tokens", "packing"):
        if getattr(asked.train, name) == "auto":
            asked = replace(asked, train=replace(asked.train, **{name: getattr(own.train, name)}))
    if found := _differences(asdict(asked) | {"decode": {}}, asdict(own)):
        raise ConfigError(
            f"{run.path} was begun with another config: {'; '.join(found)}; "
            "--fresh starts over, another --run trains beside it"
        )
    return replace(own, decode=asked.decode)


def _moved(own: DataConfig, asked: DataConfig) -> DataConfig:
    """The corpora of a run, at the places that are asked for; `require_same` compares their content."""
    moved = {
        split: getattr(asked, split)
        for split in SPLITS
        if [*map(_kind, as_sources(getattr(asked, split)))] == [*map(_kind, as_sources(getattr(own, split)))]
    }
    return replace(own, folder=asked.folder, **moved)


def _kind(source: CorpusSource) -> tuple[Any, ...]:
    """What of a source is not the place of a file."""
    return source.format, source.columns, source.path if source.path.startswith(HUB_PREFIX) else ""


def lineage(config: Config, data: Prepared) -> dict[str, Any]:
    """What a checkpoint says of its origin, for `require_same` to compare; JSON values."""
    table = asdict(config)
    del table["decode"]
    for corpora in (table["data"], table["finetune"]["old"]):  # of which the content counts, below
        for name in ("folder", *SPLITS):
            del corpora[name]
    for name in MAY_CHANGE:
        del table["train"][name]
    del table["finetune"]["earlier"]  # for people to read
    if not config.finetune.model:
        del table["finetune"]
    files = dict(data.corpus.files)
    if any(map(_is_remote, [*as_sources(config.data.train), *as_sources(config.finetune.old.train)])):
        files["text from the hub"] = _text_hash(data.corpus)  # which may be another one day, under the same name
    return {
        "config": json.loads(json.dumps(table)),  # tuples become lists, as when it is read back
        "tokenizer": tokenizer_hashes(data.tokenizer),
        "files": files,
        # Which pairs the filters left: a position in the data means nothing among others.
        "examples": hashlib.sha256(data.examples.numbers.data).hexdigest(),
        "dev": _pairs_hash(data.dev),
        "old_dev": data.old_dev and _pairs_hash(data.old_dev),
    }


def _is_remote(source: CorpusSource) -> bool:
    return source.path.startswith(HUB_PREFIX) and not parse_hub_name(source.path).is_local


def _text_hash(corpus: LoadedCorpus) -> str:
    digest = hashlib.sha256()
    for column in ("src", "tgt"):
        for chunk in corpus.dataset.data.column(column).chunks:
            for buffer in filter(None, chunk.buffers()):
                digest.update(buffer)
    return digest.hexdigest()


def _pairs_hash(pairs: Pairs) -> str:
    return hashlib.sha256(json.dumps([pairs.src, pairs.tgt]).encode()).hexdigest()


def changed_dev_sets(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which of DEV_SETS have other sentences now; one that was not there before is none of them."""
    return [name for name in DEV_SETS if saved.get(name) not in (None, now[name])]


def require_same(run: RunDirectory, saved: Mapping[str, Any], now: Mapping[str, Any], *, changed_data: bool) -> None:
    """Refuse a checkpoint that does not belong to this run any more.

    Args:
        saved, now: `lineage` of the checkpoint and of the run that wants to go on from it.
        changed_data: accept other training files or pairs, and other dev sets.

    Raises:
        ModelError: another shape, optimiser or tokenizer. CorpusError: other training files, or other pairs of them, or
            another dev set.
    """
    found = _differences(now["config"], saved.get("config", {}))
    if now["tokenizer"] != saved.get("tokenizer"):
        found.append("tokenizer.model is not the one it was trained with")
    if found:
        raise ModelError(f"{run.checkpoints}: the newest checkpoint does not fit this run: {'; '.join(found)}")
    if changed_data:
        return
    # Content alone counts: a corpus may have moved to another folder.
    if [*now["files"].values()] != [*saved.get("files", {}).values()]:
        changed = sorted({name for name, _ in {*saved.get("files", {}).items()} ^ {*now["files"].items()}})
        raise CorpusError(
            f"training files changed since this run began: {', '.join(changed) or 'they stand in another order'}; "
            "--allow-changed-data goes on with them, --fresh starts over"
        )
    if saved.get("examples") != now["examples"]:
        raise CorpusError(
            f"{run.path}: other training pairs pass the filters than when this run began, as when dev or test has "
            "changed and rules out others; --allow-changed-data goes on with them, --fresh starts over"
        )
    for name in changed_dev_sets(saved, now):
        raise CorpusError(
            f"{run.path}: {DEV_SETS[name]} is another than when this run began, so its scores would be compared with "
            "those of other sentences; --allow-changed-data goes on with it, --fresh starts over"
        )


def _differences(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Each setting of a config, as tables of sections, that is not what it was."""
    return [
        f"{section}.{key} = {now[section][key]!r}, was {before.get(section, {}).get(key)!r}"
        for section in now
        for key in now[section]
        if now[section][key] != before.get(section, {}).get(key)
    ]
