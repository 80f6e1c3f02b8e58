"""Checkpoints: what was saved, whole or not at all, and never anything that is executed."""

from __future__ import annotations

import copy
import io
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest

from core.errors import Failure, Mistake
from runs import checkpoints

ARRAYS = {
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fleet.keys": np.array([2**64 - 1], np.uint64),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 4)),
}


def test_what_was_saved_comes_back(tmp_path):
    path = tmp_path / "checkpoint.npz"
    checkpoints.save(path, ARRAYS, {"round": 7, "wall_s": 1.5})
    arrays, meta = checkpoints.load(path)
    assert meta == {"round": 7, "wall_s": 1.5}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(), KeyboardInterrupt()])
def test_a_crash_while_writing_leaves_the_previous_one(tmp_path, monkeypatch, error):
    path = tmp_path / "checkpoint.npz"
    checkpoints.save(path, ARRAYS, {"round": 1})
    before = path.read_bytes()

    def break_off(file, **arrays):
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(np, "savez", break_off)
    wanted = Failure if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted) as raised:
        checkpoints.save(path, ARRAYS, {"round": 2})
    if wanted is Failure:
        assert "No space left" in str(raised.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.npz"], "a leftover"


def test_a_folder_that_is_gone_is_a_failure_in_words(tmp_path):
    with pytest.raises(Failure, match="could not be written"):
        checkpoints.save(tmp_path / "gone" / "checkpoint.npz", ARRAYS, {})


def test_a_missing_file_is_a_mistake(tmp_path):
    with pytest.raises(Mistake, match="no checkpoint"):
        checkpoints.load(tmp_path / "checkpoint.npz")


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


class Trap:
    """Executed by whoever unpickles it."""

    def __reduce__(self):
        return (pytest.fail, ("the file was executed",))


def bomb():
    """A few kB that would be a gigabyte: an honest file, only compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("__meta__.npy", npy(META))
        with packed.open("x.npy", "w", force_zip64=True) as member:
            member.write(npy(np.zeros(0, np.float32)).replace(b"(0,)", b"(1<<28,)"))
            for _ in range(1024):
                member.write(bytes(2**20))
    return file.getvalue()


def claiming(shape):
    """An array whose head promises more than follows."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("__meta__.npy", npy(META))
        packed.writestr("x.npy", head.getvalue() + bytes(1000))
    return file.getvalue()


def overlapping():
    """Many names for the same bytes: a bomb without compression."""
    member = npy(np.zeros(250_000, np.float32))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("__meta__.npy", npy(META))
        packed.writestr("x.npy", member)
        first = packed.getinfo("x.npy")
        for number in range(1000):
            again = copy.copy(first)
            again.filename = again.orig_filename = f"x{number}.npy"
            packed.filelist.append(again)
    return file.getvalue()


META = np.frombuffer(b"{}", np.uint8)
FOREIGN = {
    "nothing": b"",
    "a text": b"round 3\n",
    "noise": np.random.default_rng(0).bytes(5000),
    "an npz of someone else": npz(x=np.zeros(3)),
    "a single array": npy(np.zeros(3)),
    "a pickle": pickle.dumps(Trap()),
    "a pickled array": npz(__meta__=META, x=np.array([Trap()], dtype=object)),
    "a pickled meta": npz(__meta__=np.array([Trap()], dtype=object)),
    "meta that is no JSON": npz(__meta__=np.frombuffer(b"\xff\xfe{", np.uint8)),
    "a bomb": bomb(),
    "a claim of a terabyte": claiming((2**38,)),
    "a claim of more than there is": claiming((2**62, 2**62)),
    "overlapping members": overlapping(),
    "meta too deep": npz(__meta__=np.frombuffer(b"[" * 200_000, np.uint8)),
    "meta that is no table": npz(__meta__=np.frombuffer(b"[1, 2]", np.uint8)),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_checkpoint_is_refused_in_a_sentence(tmp_path, what):
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(FOREIGN[what])
    with pytest.raises(Failure) as refused:
        checkpoints.load(path)
    assert "cannot be read" in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("what", ["a bomb", "a claim of a terabyte", "overlapping members"])
def test_what_claims_to_be_large_takes_no_memory(tmp_path, what):
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(FOREIGN[what])
    tracemalloc.start()
    try:
        with pytest.raises(Failure):
            checkpoints.load(path)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_a_folder_in_its_place_is_refused(tmp_path):
    with pytest.raises(Failure, match="cannot be read"):
        checkpoints.load(tmp_path)


def test_a_damaged_file_is_refused_wherever_it_is_damaged(tmp_path):
    """Cut short or with a flipped byte: refused, or what was saved; never something else."""
    path = tmp_path / "checkpoint.npz"
    checkpoints.save(path, ARRAYS, {"round": 7})
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    damaged = [good[:n] for n in rng.integers(0, len(good), 60)]
    for at in rng.integers(0, len(good), 300):
        flipped = bytearray(good)
        flipped[at] ^= int(rng.integers(1, 256))
        damaged.append(bytes(flipped))
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            arrays, meta = checkpoints.load(path)
        except Failure:
            refused += 1
            continue
        assert meta == {"round": 7}
        for name, array in arrays.items():
            if name in ARRAYS:
                np.testing.assert_array_equal(array, ARRAYS[name])
    assert refused > 200
