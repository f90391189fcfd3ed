"""Datasets of the Hugging Face hub, written ``hf:owner/name[:config]@split``; data files alone, never remote code."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mtattn.errors import CorpusError, FileError, MtattnError

if TYPE_CHECKING:
    import datasets

PREFIX = "hf:"
TIMEOUT_S = 10.0


class HubName(NamedTuple):
    """The parts of ``hf:owner/name[:config]@split``; `path` is local if it starts with ``.``, ``/`` or ``~``."""

    path: str
    config: str | None
    split: str

    @property
    def is_local(self) -> bool:
        """Whether `path` is a folder on this disk."""
        return self.path.startswith((".", "/", "~"))

    def __str__(self) -> str:
        return f"{PREFIX}{self.path}{':' + self.config if self.config else ''}@{self.split}"


def parse_hub_name(text: str) -> HubName:
    """Splits ``hf:owner/name[:config]@split``.

    Raises:
        CorpusError: a part is missing.
    """
    name, _, split = text.removeprefix(PREFIX).rpartition("@")
    path, _, config = name.partition(":")
    if not path or not split:
        raise CorpusError(f"{text}: a hub dataset is written hf:owner/name@split or hf:owner/name:config@split")
    return HubName(path, config or None, split)


def load_hub_split(text: str, scratch: Path) -> "datasets.Dataset":
    """Loads one split through ``datasets``.

    What comes from the hub stays in the Hugging Face cache; the working files of a local folder go to `scratch`.

    Raises:
        CorpusError: the hub cannot be reached, or has no such dataset, or its files are neither Parquet nor JSON.
        FileError: a disk is full, or a file may not be read.
    """
    from datasets import Dataset, load_dataset_builder
    from datasets.packaged_modules.cache.cache import Cache
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet
    from huggingface_hub.constants import HF_HUB_OFFLINE

    name = parse_hub_name(text)
    if not name.is_local and not HF_HUB_OFFLINE:
        check_on_hub(name)
    try:
        builder = load_dataset_builder(name.path, name.config, cache_dir=str(scratch) if name.is_local else None)
    except ConnectionError as error:
        raise unreachable(name, error) from error
    except Exception as error:  # datasets raises many types here: no data files, unknown config, broken metadata
        raise _failure(name, "open", error) from error
    if not isinstance(builder, (Json, Parquet, Cache)):  # Cache: what an earlier download left
        raise CorpusError(
            f"{name}: its files are read by the {type(builder).__name__} builder, but only Parquet and JSON are "
            "accepted; download the files and name them as a local corpus"
        )
    try:
        builder.download_and_prepare()
        dataset = builder.as_dataset(split=name.split)
    except ConnectionError as error:
        raise unreachable(name, error) from error
    except Exception as error:  # a broken data file, an unknown split
        raise _failure(name, "load", error.__cause__ or error) from error
    if not isinstance(dataset, Dataset):
        raise CorpusError(f"{name}: the split must be one name, such as train")
    return dataset


def _failure(name: HubName, deed: str, error: BaseException) -> MtattnError:
    """In one line what `datasets` may say in paragraphs; a system's refusal, such as a full disk, as one."""
    if isinstance(error, OSError) and error.errno:  # its own "not found" is an OSError too, without a number
        return FileError(f"{name}: cannot {deed}: {error.strerror or error}")
    return CorpusError(f"{name}: cannot {deed} ({' '.join(str(error).split()) or type(error).__name__})")


def check_on_hub(name: HubName) -> None:
    """Asks the hub once whether it has the dataset: `datasets` itself retries for half a minute before it gives up."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().dataset_info(name.path, timeout=TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError) as error:
        raise CorpusError(
            f"{name}: the hub does not give this dataset ({str(error).strip().splitlines()[0]}); check the name at "
            f"https://huggingface.co/datasets/{name.path}, and for a private one set HF_TOKEN"
        ) from error
    except Exception as error:  # whatever the HTTP library raises when there is no network
        raise unreachable(name, error) from error


def unreachable(name: HubName, error: Exception) -> CorpusError:
    """The error for a hub that does not answer."""
    return CorpusError(
        f"{name}: cannot reach the Hugging Face hub ({error}). Connect to the network; or, if it was downloaded "
        f"before, set HF_HUB_OFFLINE=1; or copy its Parquet or JSON files here and write hf:./FOLDER@{name.split}"
    )
