"""Loading a trained model, whoever made it: what its files claim is compared with what is there before it is read."""

from pathlib import Path

from mtattn.checkpoint import (
    RunDirectory,
    load_weights,
    make_model,
    read_config,
    tokenizer_hashes,
    tokenizer_names,
    weights_of,
)
from mtattn.config import Config
from mtattn.errors import ModelError
from mtattn.model import Transformer
from mtattn.storage import MANIFEST, read_json, read_weights, verify_folder
from mtattn.tokenizer import Tokenizer
from mtattn.unfilled import Unfilled

MAX_LAYERS = 1000  # of a model; a deeper one would take minutes to build before its weights are looked at


def model_folder(folder: Path) -> Path:
    """Where the model of a folder lies: runs that ended and copies for classes of transformers hold it in model/."""
    return folder / "model" if (folder / "model" / "config.toml").is_file() else folder


def load_model(folder: Path) -> tuple[Transformer, Tokenizer, Config]:
    """The translator in a run directory (its released model, else its best checkpoint) or a released model folder.

    What the config says is compared with the file's size before a model is made of it, and with the file's header
    before anything is read.

    Raises:
        ModelError
    """
    if folder.is_file():
        raise ModelError(f"{folder}: is a file; a model is a folder, such as runs/NAME, and comes before text")
    if not folder.is_dir():
        hint = f"did you mean {near}?" if (near := "runs" / folder).is_dir() else "give a run directory (runs/NAME)"
        raise ModelError(f"{folder}: no such folder; {hint}")
    folder = model_folder(folder)
    config = read_config(folder)
    source = _verified(folder)
    weights_file = source / "model.safetensors"
    tokenizer = Tokenizer.load(folder)
    if source != folder and read_json(source / "state.json").get("tokenizer") != tokenizer_hashes(tokenizer):
        raise ModelError(f"{folder}: its tokenizer is not the one that {source.name} was trained with")
    _require_size(config, tokenizer, weights_file)
    with Unfilled():
        model = make_model(config, tokenizer)
    load_weights(model, read_weights(weights_file, {name: tuple(t.shape) for name, t in weights_of(model).items()}))
    return model.eval(), tokenizer, config


def weights_sha256(folder: Path) -> str:
    """What tells the weights of a folder that `load_model` reads from all others: their file's sha256, verified.

    Raises:
        ModelError
    """
    return str(read_json(_verified(model_folder(folder)) / MANIFEST)["model.safetensors"]["sha256"])


def _verified(folder: Path) -> Path:
    """Where the weights of a folder lie, verified: in itself if it was released, else in the run's best checkpoint."""
    if not (folder / MANIFEST).is_file():
        return RunDirectory(folder).best_checkpoint()
    verify_folder(folder, ("config.toml", "model.safetensors", *(tokenizer_names(folder) or ["tokenizer.model"])))
    return folder


def _require_size(config: Config, tokenizer: Tokenizer, weights_file: Path) -> None:
    """Refuse a config that asks for more weights than its file can hold, before even an empty model is built of it."""
    model = config.model
    layers = model.encoder_layers + model.decoder_layers
    if layers > MAX_LAYERS:
        raise ModelError(f"config.toml beside {weights_file}: {layers} layers; a model has at most {MAX_LAYERS}")
    layer = 2 * model.d_ff + 2 * model.d_model  # rows of D: feed-forward; queries and output of one attention
    least = 4 * model.d_model * (layer * layers + tokenizer.tgt_vocab_size)  # bytes
    if weights_file.is_file() and weights_file.stat().st_size < least:
        raise ModelError(
            f"{weights_file}: {weights_file.stat().st_size} bytes; a model as in config.toml has at least {least}"
        )
