"""Files that are whole or not there: atomic writes, manifests, safetensors that are checked before they are read."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from mtattn.errors import FileError, ModelError

MANIFEST = "MANIFEST.json"
EDITABLE = "editable"  # what the manifest says of files that are for people to edit
MAX_SMALL_FILE = 64 * 2**20  # bytes; no config, tokenizer, state or manifest comes near it

before_operation: Callable[[str], None] = lambda operation: None  # noqa: E731
"""Called with a name before each file operation of a save; the tests put a fault here, and nothing else uses it."""


def write_folder(
    folder: Path, files: Mapping[str, bytes], notes: Mapping[str, bytes] | None = None, *, keep_others: bool = False
) -> None:
    """Write a folder that appears whole or not at all, with a manifest of each file's size and sha256.

    Written to `folder.tmp`, each file and the folder fsynced, the manifest last, then renamed, and the parent fsynced.
    A folder that stood there steps aside to `folder.old` until the new one stands; see `recover_folder`.

    Args:
        notes: more files, which are for people to read and edit: the manifest says so, and they are not verified.
        keep_others: what others put into the folder that stood there is copied, such as a licence; and those of its
            notes that are not among these.

    Raises:
        FileError: no space, no permission; what stood at `folder` before is still there.
    """
    folder = _followed(folder)
    temporary, aside = _beside(folder, ".tmp"), _beside(folder, ".old")
    try:
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        notes = notes or {}
        manifest = json.dumps({**make_manifest(files), **_editable(notes)}, indent=1).encode()
        for name, data in {**files, **notes, MANIFEST: manifest}.items():
            _write_synced(temporary / name, data)
        if keep_others:
            _copy_others(folder, temporary)
        _sync_folder(temporary)
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
            before_operation(f"set aside {folder.name}")
            folder.rename(aside)
        before_operation(f"rename {folder.name}")
        temporary.rename(folder)
        before_operation(f"sync parent of {folder.name}")
        _sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        recover_folder(folder)
        raise _cannot_write(folder, error) from None
    before_operation(f"remove what {folder.name} replaced")
    shutil.rmtree(aside, ignore_errors=True)


def _copy_others(before: Path, after: Path) -> None:
    """Copy what is not in `after` yet, and was not vouched for in `before`."""
    ours = vouched_for(before)
    for path in before.iterdir() if before.is_dir() else ():
        target = after / path.name
        if path.name in ours or target.exists() or not (path.is_symlink() or path.is_file() or path.is_dir()):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target, symlinks=True)
        else:
            shutil.copy2(path, target, follow_symlinks=False)


def vouched_for(folder: Path) -> set[str]:
    """The names that a folder's manifest lists, but for those that are for people to edit; none without a manifest."""
    try:
        manifest = read_json(folder / MANIFEST)
    except ModelError:  # none there, or damaged
        return set()
    plain = {name: entry for name, entry in manifest.items() if Path(name).name == name and isinstance(entry, dict)}
    return {name for name, entry in plain.items() if not entry.get(EDITABLE)}


def recover_folder(folder: Path) -> None:
    """Put back what was set aside, as `write_folder` does it, where no new folder came to stand."""
    folder = _followed(folder)
    aside = _beside(folder, ".old")
    if aside.is_dir() and not folder.exists():
        with suppress(OSError):
            aside.rename(folder)


def make_manifest(files: Mapping[str, bytes]) -> dict[str, dict[str, int | str]]:
    """File name -> size in bytes and sha256 in hexadecimal."""
    return {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}


def _editable(notes: Mapping[str, bytes]) -> dict[str, dict[str, int | str]]:
    return {name: {**entry, EDITABLE: True} for name, entry in make_manifest(notes).items()}


def holds(folder: Path, files: Mapping[str, bytes], notes: Mapping[str, bytes] | None = None) -> bool:
    """Whether a folder that verifies already has exactly these files, and was written with these notes at least."""
    try:
        verify_folder(folder)
        listed = read_json(folder / MANIFEST)
        vouched = {name: entry for name, entry in listed.items() if EDITABLE not in entry}
        return vouched == make_manifest(files) and _editable(notes or {}).items() <= listed.items()
    except ModelError:
        return False


def write_file(path: Path, data: bytes) -> None:
    """Write one file so that a reader sees the old content or the new, never a part."""
    temporary = _beside(path, ".tmp")
    try:
        _write_synced(temporary, data)
        before_operation(f"rename {path.name}")
        temporary.replace(path)
        before_operation(f"sync parent of {path.name}")
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _cannot_write(path, error) from None


def _followed(folder: Path) -> Path:
    """A link to a folder on another disk stays, and what it names is replaced."""
    return folder.resolve() if folder.is_symlink() else folder


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _cannot_write(path: Path, error: OSError) -> FileError:
    return FileError(f"{path}: cannot be written: {error.strerror or error}; what was saved before is intact")


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


def verify_folder(folder: Path, required: Iterable[str] = ()) -> None:
    """Compare each file with the manifest.

    Args:
        required: names that the manifest must list, so that nothing is used which nobody vouched for.

    Raises:
        ModelError: naming the first file that is missing, of another size or of another sha256.
    """
    manifest, required = read_json(folder / MANIFEST), [*required]
    for name in required:
        if name not in manifest:
            raise ModelError(f"{folder / MANIFEST}: does not list {name}")
    for name, expected in manifest.items():
        if not isinstance(expected, dict) or Path(name).name != name or "\0" in name:
            raise ModelError(f"{folder / MANIFEST}: names {name!r}, which is not a plain file of this folder")
        if expected.get(EDITABLE) and name not in required:
            continue
        try:
            _verify_file(folder / name, expected)
        except OSError as error:
            raise ModelError(f"{folder / name}: cannot be read: {error.strerror}") from None


def _verify_file(path: Path, expected: Mapping[str, Any]) -> None:
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
        ModelError: so; FileError: it cannot be read.
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


def read_weights(path: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """float32 tensors that must have these names and shapes; compared with the file's header before any is read.

    Raises:
        ModelError: not safetensors (a pickle, say), another model's weights, or values that are not finite.
    """
    if not path.is_file():
        raise ModelError(f"{path}: missing")
    needed = 4 * sum(map(math.prod, expected.values()))
    if path.stat().st_size > needed + MAX_SMALL_FILE:
        raise ModelError(f"{path}: {path.stat().st_size} bytes; this config's weights have {needed}")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: f"{s.get_dtype()} {s.get_shape()}" for name, s in slices.items()}
            _compare(path, found, {name: f"F32 {[*shape]}" for name, shape in expected.items()})
            tensors = {name: file.get_tensor(name) for name in found}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a safetensors file: {error}") from None
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{path}: {name} holds values that are not finite")
    return tensors


def _compare(path: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    differences = [
        f"{name}: {found.get(name, 'absent')} in the file, {expected.get(name, 'absent')} in the config"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ModelError(f"{path}: the weights are not this config's: {'; '.join(differences[:3])}{more}")
