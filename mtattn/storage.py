"""Files that are whole or not there: atomic writes, manifests, safetensors that are checked before they are read."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from mtattn.errors import FileError, ModelError

MANIFEST = "MANIFEST.json"
MAX_SMALL_FILE = 64 * 2**20  # bytes; no config, tokenizer, state or manifest comes near it

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

before_operation: Callable[[str], None] = lambda operation: None  # noqa: E731
"""Called with a name before each file operation of a save; the tests put a fault here, and nothing else uses it."""


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder that appears whole or not at all, with a manifest of each file's size and sha256.

    Written to `folder.tmp`, each file and the folder fsynced, the manifest last, then renamed, and the parent fsynced.

    Raises:
        FileError: no space, no permission; what stood at `folder` before is still there.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    try:
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        manifest = {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        }
        for name, data in {**files, MANIFEST: json.dumps(manifest, indent=1).encode()}.items():
            _write_synced(temporary / name, data)
        _sync_folder(temporary)
        before_operation(f"rename {folder.name}")
        if folder.exists():  # a released model, written anew: the old one steps aside until the new one stands
            aside = folder.with_name(folder.name + ".old")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            before_operation(f"replace {folder.name}")
            temporary.rename(folder)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            temporary.rename(folder)
        before_operation(f"sync parent of {folder.name}")
        _sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _cannot_write(folder, error) from None


def write_file(path: Path, data: bytes) -> None:
    """Write one file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        _write_synced(temporary, data)
        before_operation(f"rename {path.name}")
        temporary.replace(path)
        before_operation(f"sync parent of {path.name}")
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> FileError:
    return FileError(f"{path}: cannot be written: {error.strerror}; what was saved before is intact")


def _write_synced(path: Path, data: bytes) -> None:
    before_operation(f"write {path.name}")
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        before_operation(f"sync {path.name}")
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify_folder(folder: Path) -> None:
    """Compare each file with the manifest.

    Raises:
        ModelError: naming the first file that is missing, of another size or of another sha256.
    """
    manifest = read_json(folder / MANIFEST)
    for name, expected in manifest.items():
        if not isinstance(expected, dict) or Path(name).name != name:
            raise ModelError(f"{folder / MANIFEST}: names {name!r}, which is not a plain file of this folder")
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{path}: missing")
        if path.stat().st_size != expected.get("size"):
            raise ModelError(f"{path}: {path.stat().st_size} bytes where the manifest says {expected.get('size')}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected.get("sha256"):
                raise ModelError(f"{path}: damaged (its sha256 is not the manifest's)")


def read_small(path: Path) -> bytes:
    """A small file's bytes, refused before reading when it is missing, no file, or far too large.

    Raises:
        ModelError
    """
    if not path.is_file():
        raise ModelError(f"{path}: missing")
    if path.stat().st_size > MAX_SMALL_FILE:
        raise ModelError(f"{path}: {path.stat().st_size} bytes; such a file has at most {MAX_SMALL_FILE}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a small file.

    Raises:
        ModelError
    """
    try:
        value = json.loads(read_small(path))
    except (ValueError, RecursionError):
        raise ModelError(f"{path}: not valid JSON") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: not a JSON object")
    return value


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Named tensors as a safetensors file. Returned as bytes, since safetensors itself writes mode 0600."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file of ours whose manifest has been verified."""
    try:
        return load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a safetensors file: {error}") from None


def read_weights(path: Path, expected: Shapes) -> dict[str, Tensor]:
    """Tensors that must have these names, shapes and dtypes; compared with the file's header before any is read.

    Raises:
        ModelError: not safetensors (a pickle, say), another model's weights, or values that are not finite.
    """
    if not path.is_file():
        raise ModelError(f"{path}: missing")
    needed = sum(shape_bytes(shape, dtype) for shape, dtype in expected.values())
    if path.stat().st_size > needed + MAX_SMALL_FILE:
        raise ModelError(f"{path}: {path.stat().st_size} bytes; this config's weights have {needed}")
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _compare(path, found, {name: shape for name, (shape, _) in expected.items()})
            tensors = {name: file.get_tensor(name) for name in found}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a safetensors file: {error}") from None
    for name, tensor in tensors.items():
        if tensor.dtype != expected[name][1]:
            raise ModelError(f"{path}: {name} is {tensor.dtype}; expected {expected[name][1]}")
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{path}: {name} holds values that are not finite")
    return tensors


def shape_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of a tensor."""
    size = dtype.itemsize
    for length in shape:
        size *= length
    return size


def _compare(path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    differences = [
        f"{name}: {found.get(name, 'absent')} in the file, {expected.get(name, 'absent')} in the config"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ModelError(f"{path}: the weights are not this config's: {'; '.join(differences[:3])}{more}")
