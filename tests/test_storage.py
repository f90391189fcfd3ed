"""Folders and files that are whole or not there, and safetensors that are checked before they are read."""

import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtattn import storage
from mtattn.errors import FileError, ModelError
from mtattn.storage import (
    MANIFEST,
    holds,
    read_json,
    read_small,
    read_tensors,
    read_weights,
    recover_folder,
    tensors_to_bytes,
    verify_folder,
    vouched_for,
    write_file,
    write_folder,
)

OLD = {"a.txt": b"old a", "b.bin": b"\x00\xff"}
NEW = {"a.txt": b"new a", "c": b""}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


def kill_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise Killed before the file operation of this number, counted from 0."""
    left = [number]

    def before(operation: str) -> None:
        if left[0] == 0:
            raise Killed(operation)
        left[0] -= 1

    monkeypatch.setattr(storage, "before_operation", before)


@contextmanager
def disk_full(after: int) -> Iterator[None]:
    """No file of this process may grow beyond `after` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder without its manifest."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}


def test_a_folder_is_written_with_a_manifest_that_verifies(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", OLD)
    verify_folder(tmp_path / "f", OLD)
    assert contents(tmp_path / "f") == OLD
    assert read_json(tmp_path / "f" / MANIFEST)["a.txt"]["size"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_writing_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", OLD)
    write_folder(tmp_path / "f", NEW)
    verify_folder(tmp_path / "f", NEW)
    assert contents(tmp_path / "f") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_holds_compares_content_not_names(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", OLD)
    assert holds(tmp_path / "f", OLD)
    assert not holds(tmp_path / "f", {**OLD, "a.txt": b"0ld a"})
    (tmp_path / "f" / "a.txt").write_bytes(b"0ld a")
    assert not holds(tmp_path / "f", OLD)
    assert not holds(tmp_path / "nowhere", OLD)


@pytest.mark.parametrize("before", [None, OLD], ids=["new", "replacing"])
@pytest.mark.parametrize("number", range(12))
def test_killed_before_any_operation_the_folder_is_whole_old_or_new(
    number: int, before: dict[str, bytes] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "f"
    if before is not None:
        write_folder(folder, before)
    kill_at(number, monkeypatch)
    try:
        write_folder(folder, NEW)
        finished = True
    except Killed:
        finished = False
    monkeypatch.undo()
    recover_folder(folder)
    if folder.exists():
        verify_folder(folder)
        assert contents(folder) in ([NEW] if finished else [before, NEW])
    else:
        assert before is None and not finished
    write_folder(folder, NEW)  # what the kill left behind is in nobody's way
    assert contents(folder) == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("number", range(4))
def test_killed_before_any_operation_a_file_is_old_or_new(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last"
    write_file(path, b"step-1\n")
    kill_at(number, monkeypatch)
    with pytest.raises(Killed):
        write_file(path, b"step-2\n")
    assert path.read_bytes() == (b"step-2\n" if number == 3 else b"step-1\n")


def test_a_link_to_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "f").symlink_to(tmp_path / "disk" / "f")
    for files in (OLD, NEW, OLD):
        write_folder(tmp_path / "f", files)
        assert (tmp_path / "f").is_symlink() and contents(tmp_path / "disk" / "f") == files
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["f"]


def test_what_is_for_people_to_edit_is_not_verified_unless_it_is_needed(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", OLD, notes={"README.md": b"card"})
    (tmp_path / "f" / "README.md").write_bytes(b"mine")
    verify_folder(tmp_path / "f", OLD)
    assert holds(tmp_path / "f", OLD) and vouched_for(tmp_path / "f") == {*OLD}
    with pytest.raises(ModelError, match=r"README\.md: damaged"):
        verify_folder(tmp_path / "f", ["README.md"])


def test_what_others_put_there_is_kept_where_it_can_be(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", OLD, notes={"README.md": b"card"})
    (tmp_path / "f" / "sub").mkdir()
    (tmp_path / "f" / "sub" / "x").write_bytes(b"x")
    (tmp_path / "f" / "README.md").write_bytes(b"mine")
    os.mkfifo(tmp_path / "f" / "pipe")
    write_folder(tmp_path / "f", NEW, keep_others=True)
    assert (tmp_path / "f" / "sub" / "x").read_bytes() == b"x"
    assert (tmp_path / "f" / "README.md").read_bytes() == b"mine"
    assert {path.name for path in (tmp_path / "f").iterdir()} == {*NEW, "sub", "README.md", MANIFEST}
    write_folder(tmp_path / "f", OLD)
    assert {path.name for path in (tmp_path / "f").iterdir()} == {*OLD, MANIFEST}


def test_a_full_disk_leaves_the_old_folder_and_no_rest(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", OLD)
    with disk_full(10_000), pytest.raises(FileError, match="f: cannot be written: File too large; what was saved"):
        write_folder(tmp_path / "f", {"big": bytes(20_000)})
    assert contents(tmp_path / "f") == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    write_file(tmp_path / "x", b"old")
    with disk_full(10_000), pytest.raises(FileError, match="x: cannot be written: File too large"):
        write_file(tmp_path / "x", bytes(20_000))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_failing_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "f", OLD)

    def fail(operation: str) -> None:
        if operation == "rename f":
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(storage, "before_operation", fail)
    with pytest.raises(FileError, match="Input/output error"):
        write_folder(tmp_path / "f", NEW)
    assert contents(tmp_path / "f") == OLD


@pytest.mark.parametrize("target", ["file/f", "file"])
def test_a_file_where_a_folder_should_be_is_a_file_error(target: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(FileError):
        write_folder(tmp_path / target / "g", NEW)
    with pytest.raises(FileError):
        write_file(tmp_path / target / "g", b"")
    assert (tmp_path / "file").read_bytes() == b"in the way"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_folder(tmp_path / "f", {"model.safetensors": tensors_to_bytes({"w": torch.ones(2)})})
        write_file(tmp_path / "last", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o777 & ~umask
    for path in (tmp_path / "f" / "model.safetensors", tmp_path / "f" / MANIFEST, tmp_path / "last"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_required_files_must_be_in_the_manifest(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", OLD)
    with pytest.raises(ModelError, match=r"MANIFEST.json: does not list tokenizer.model"):
        verify_folder(tmp_path / "f", ("a.txt", "tokenizer.model"))


@pytest.mark.parametrize("name", ["../a.txt", "/etc/passwd", "sub/a.txt", "a\0b", "."])
def test_a_manifest_names_plain_files_only(name: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "f", OLD)
    (tmp_path / "f" / MANIFEST).write_text(json.dumps({name: {"size": 1, "sha256": ""}}))
    with pytest.raises(ModelError, match=r"not a plain file"):
        verify_folder(tmp_path / "f")


@pytest.mark.parametrize("name", ["..", "", "x" * 300])
def test_a_manifest_names_files_that_are_there(name: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "f", OLD)
    (tmp_path / "f" / MANIFEST).write_text(json.dumps({name: {"size": 1, "sha256": ""}}))
    with pytest.raises(ModelError):
        verify_folder(tmp_path / "f")


@settings(max_examples=40, deadline=None)
@given(data=st.binary(min_size=1, max_size=60), where=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, data: bytes, where: int, bit: int) -> None:
    folder = tmp_path_factory.mktemp("flip") / "f"
    write_folder(folder, {"x": data})
    damaged = bytearray(data)
    damaged[where % len(data)] ^= 1 << bit
    (folder / "x").write_bytes(damaged)
    with pytest.raises(ModelError, match=r"x: damaged"):
        verify_folder(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000])
def test_what_is_not_a_json_object_is_a_model_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"x.json: not "):
        read_json(tmp_path / "x.json")


def test_a_huge_small_file_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(2**40)  # sparse: no byte of it is on the disk, and none may be read
    with pytest.raises(ModelError, match="1099511627776 bytes; such a file has at most"):
        read_small(tmp_path / "x")


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 4), "b": torch.tensor([float("nan"), -0.0]), "c": torch.arange(3, dtype=torch.uint8)}
    (tmp_path / "t").write_bytes(tensors_to_bytes(weights))
    found = read_tensors(tmp_path / "t")
    assert set(found) == set(weights)
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_a_view_is_saved_as_what_it_shows(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(tensors_to_bytes({"a": torch.arange(6.0).view(2, 3).T}))
    assert torch.equal(read_tensors(tmp_path / "t")["a"], torch.arange(6.0).view(2, 3).T)


EXPECTED = {"w": (2, 3), "v": (4,)}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"w": torch.ones(2, 3)}, r"v: absent in the file, F32 \[4\] in the config"),
        ({"w": torch.ones(3, 2), "v": torch.ones(4)}, r"w: F32 \[3, 2\] in the file, F32 \[2, 3\] in the config"),
        ({"w": torch.ones(2, 3), "v": torch.ones(4, dtype=torch.float64)}, r"v: F64 \[4\] in the file"),
        ({"w": torch.ones(2, 3), "v": torch.ones(4), "x": torch.ones(1)}, r"x: F32 \[1\] in the file, absent"),
        ({"w": torch.ones(2, 3), "v": torch.full((4,), torch.nan)}, "v holds values that are not finite"),
        ({"w": torch.ones(2, 3), "v": torch.full((4,), -torch.inf)}, "v holds values that are not finite"),
        ({f"layer{i}": torch.ones(1) for i in range(9)}, "and 8 more"),
    ],
)
def test_other_weights_are_refused_with_the_difference(
    weights: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    (tmp_path / "m").write_bytes(tensors_to_bytes(weights))
    with pytest.raises(ModelError, match=message):
        read_weights(tmp_path / "m", EXPECTED)


def header(text: str, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    return len(text).to_bytes(8, "little") + text.encode() + data


OVERLAP = json.dumps(
    {
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "v": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
    }
)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95" + bytes(100),  # a pickle
        (2**62).to_bytes(8, "little") + b"{}",
        (2**64 - 1).to_bytes(8, "little"),
        header("{}")[:9],
        header("not json"),
        header("[" * 10_000),
        header(OVERLAP, bytes(24)),
        header('{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
        header('{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
        header('{"w":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    ],
    ids=["empty", "pickle", "2^62", "2^64", "cut", "text", "deep", "overlap", "beyond", "overflow", "dtype"],
)
def test_what_is_not_safetensors_is_a_model_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_weights(tmp_path / "m", EXPECTED)
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_tensors(tmp_path / "m")


def test_a_file_far_larger_than_its_config_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "m").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ModelError, match="1099511627776 bytes; this config's weights have 40"):
        read_weights(tmp_path / "m", EXPECTED)
