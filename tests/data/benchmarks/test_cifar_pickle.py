"""The pickles of CIFAR: the published form is read, and no file becomes anything but values."""

import pickle
import struct

import numpy as np
import pytest

from ltlearn.data.benchmarks.cifar import load_cifar
from ltlearn.data.benchmarks.cifar_pickle import read_pickle
from ltlearn.errors import UserError

ROWS = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def dtype(kind: str) -> bytes:
    return name("numpy", "dtype") + text(kind) + b"K\x00K\x01\x87R"


RECONSTRUCT = (
    name("numpy.core.multiarray", "_reconstruct")
    + name("numpy", "ndarray") + number(0) + b"\x85U\x01b\x87R"
)  # fmt: skip


def published(rows=ROWS, labels=(3, 1)) -> bytes:
    """Return a batch as Python 2 wrote it for the published archive."""
    raw = rows.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R"
        b"(K\x01" + number(rows.shape[0]) + number(rows.shape[1]) + b"\x86"
        b"cnumpy\ndtype\nq\x03U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        + number(-1) + number(-1) + b"K\x00tb\x89T" + struct.pack("<I", len(raw)) + raw + b"tb"
    )  # fmt: skip
    ends = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}q\x00(U\x0bbatch_labelU\x15training batch 1 of 5U\x06labels](" + ends + b"e"
        b"U\x04data" + array + b"U\tfilenames](U\x05a.pngU\x05b.pngeu."
    )  # fmt: skip


def test_the_published_form_is_read():
    batch = read_pickle(published())
    assert batch["batch_label"] == "training batch 1 of 5"
    assert batch["labels"] == [3, 1]
    assert batch["filenames"] == ["a.png", "b.png"]
    np.testing.assert_array_equal(batch["data"], ROWS)
    np.testing.assert_array_equal(pickle.loads(published(), encoding="latin1")["data"], ROWS)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", range(1, 6))
def test_each_protocol_of_today_is_read(protocol, order):
    rows = np.array(ROWS, order=order)
    content = {"data": rows, "labels": [0, 300], "coarse": [True, None, 2.5], "x": (1, 2, 3, 4)}
    found = read_pickle(pickle.dumps(content, protocol))
    np.testing.assert_array_equal(found.pop("data"), rows)
    del content["data"]
    assert found == content


def stateful_dtype(pointer: int) -> bytes:
    """Return an array whose dtype claims, by its state, that its bytes are no Python objects."""
    state = (
        b"(" + number(3) + text("|") + b"N" + text("a") + b"\x85}" + text("a") + dtype("O")
        + number(0) + b"\x86s" + number(8) + number(1) + number(0) + b"t"
    )  # fmt: skip
    return (
        RECONSTRUCT + b"(" + number(1) + number(1) + b"\x85" + dtype("V8") + state + b"b\x89U\x08"
        + struct.pack("<Q", pointer) + b"tb"
    )  # fmt: skip


def test_bytes_of_a_file_do_not_become_an_object(tmp_path, write_cifar_pickles):
    """They once did: a pointer of the file's choice was then followed."""
    secret = ["an object of this process"]
    with pytest.raises(ValueError, match="unsigned bytes, not '(O|V8)'"):
        read_pickle(b"\x80\x02" + stateful_dtype(id(secret)) + b".")
    write_cifar_pickles(tmp_path, 10, [str(c) for c in range(10)], 1)
    file = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    file.write_bytes(b"\x80\x02}" + text("data") + stateful_dtype(0x4141414141414141) + b"s.")
    with pytest.raises(UserError, match=r"data_batch_1 as a CIFAR file \(an array must hold"):
        load_cifar(10, tmp_path, "train")


# 60 values, each of which holds the one before it twice: 2**60 in all.
DEEP_LIST = b"]" + b"".join(b"r%b]h%bah%ba" % (struct.pack("<I", i), bytes([i]), bytes([i]))
                             for i in range(60))  # fmt: skip
DEEP_TUPLE = b")" + b"".join(b"r%bh%b\x86" % (struct.pack("<I", i), bytes([i])) for i in range(60))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (name("numpy", "ndarray") + number(9) + b"\x85R", "must not be called"),
        (RECONSTRUCT, "no content"),
        (RECONSTRUCT + b"}b", "wrong place"),
        (RECONSTRUCT + b"(K\x01K\x02\x85" + dtype("u1") + b"\x89U\x01atb", "reshape"),
        (RECONSTRUCT + b"(K\x01" + number(-2) + b"\x85" + dtype("u1") + b"\x89U\x02abtb", "shape"),
        (RECONSTRUCT + b"(K\x01K\x01\x85" + dtype("i8") + b"\x89U\x08aaaaaaaatb", "not 'i8'"),
        (RECONSTRUCT + b"(K\x01K\x01\x85K\x01\x89U\x01atb", "wrong place"),
        (b"}" + DEEP_TUPLE + b"K\x01s", "wrong place"),
        (name("numpy", "dtype") + DEEP_LIST + b"\x85R", "wrong place"),
        (b"B\xff\xff\xff\x7fabc", "expected 2147483647 bytes"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\x00\x00abc", "expected 2814"),
        (b"]q\x01h\x02", "damaged"),
        (b"u", "damaged"),
        (b"(K\x01d", "damaged|argument"),
        (b"K\x01K\x02", "does not hold one value"),
        (b"Pabc\n", "PERSID must not"),
        (b"(ios\nsystem\n", "INST must not"),
        (b"\x82\x01", "EXT1 must not"),
        (b"K\x012", "DUP must not"),
    ],
)
def test_other_content_is_refused_at_once(content, reason):
    with pytest.raises(ValueError, match=reason):
        read_pickle(b"\x80\x02" + content + b".")


def test_a_large_number_in_the_memo_takes_no_memory():
    """`pickle.load` makes room for all numbers below it, here 32 GB."""
    assert read_pickle(b"\x80\x02]r\xff\xff\xff\x7f.") == []


@pytest.mark.parametrize("key", ["labels", "data", "label_names"])
def test_lists_that_share_their_parts_are_refused_at_once(tmp_path, write_cifar_pickles, key):
    write_cifar_pickles(tmp_path, 10, [str(c) for c in range(10)], 1)
    folder = tmp_path / "cifar-10-batches-py"
    file = folder / ("batches.meta" if key == "label_names" else "data_batch_1")
    content = pickle.dumps({"data": ROWS, "labels": [0, 1]}, 2)[:-1]
    content = b"\x80\x02}" if key == "label_names" else content
    file.write_bytes(content + text(key) + DEEP_LIST + b"s.")
    with pytest.raises(UserError, match=f"{file.name} as a CIFAR file"):
        load_cifar(10, tmp_path, "train")


def test_changed_files_are_read_or_refused():
    rng, good = np.random.default_rng(0), published(ROWS[:, :12])
    for _ in range(300):
        content = bytearray(good)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            content[at] = rng.integers(256)
        try:
            read_pickle(bytes(content))
        except ValueError:
            pass


def test_a_pipe_and_a_huge_file_are_refused(tmp_path, write_cifar_pickles):
    write_cifar_pickles(tmp_path, 10, [str(c) for c in range(10)], 1)
    file = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    with file.open("wb") as f:
        f.truncate(1 << 40)
    with pytest.raises(UserError, match="data_batch_2 .*more than 300,000,000 bytes"):
        load_cifar(10, tmp_path, "train")
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="data_batch_2 as a CIFAR file .*not a"):
        load_cifar(10, tmp_path, "train")
