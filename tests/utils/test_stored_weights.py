"""Files of weights are looked at before they are opened."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch

from ltlearn.errors import UserError
from ltlearn.utils.stored_weights import check_saved_learner, read_shapes
from tests.callbacks.helpers import make_dls, make_lt_learner


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def dtype(kind: bytes) -> bytes:
    return b"cnumpy\ndtype\n" + text(kind) + b"\x89\x88\x87R"


# A dtype whose state claims that its bytes, which are a pointer, are no Python object.
STATE = (
    b"(K\x03" + text(b"|") + b"N" + text(b"a") + b"\x85}" + text(b"a") + dtype(b"O")
    + b"K\x00\x86sK\x08K\x01K\x00t"
)  # fmt: skip
POINTER = (
    b"\x80\x02cnumpy._core.multiarray\nscalar\n" + dtype(b"V8") + STATE + b"b"
    + b"c_codecs\nencode\n" + text(b"AAAAAAAA") + text(b"latin1") + b"\x86R\x86R."
)  # fmt: skip


def archive_with(path, pickled):
    torch.save({"a": torch.zeros(1)}, path.with_suffix(".good"))
    with zipfile.ZipFile(path.with_suffix(".good")) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return path


def test_a_saved_learner_of_a_stranger_follows_no_pointer(tmp_path):
    """fastai's `load` once ended in a segmentation fault."""
    learn = make_lt_learner(make_dls([8, 4, 2]))
    learn.path, learn.model_dir = tmp_path, "models"
    (tmp_path / "models").mkdir()
    archive_with(tmp_path / "models" / "evil.pth", POINTER)
    with pytest.raises(UserError, match=r"evil\.pth is not opened .*state"):
        learn.load("evil")
    (tmp_path / "models" / "evil.pth").write_bytes(POINTER)
    with pytest.raises(UserError, match=r"evil\.pth is not opened"):
        learn.load("evil")
    with (tmp_path / "models" / "evil.pth").open("rb") as file:
        with pytest.raises(UserError, match=r"evil\.pth.* is not opened"):
            learn.load(file)


def test_a_learner_loads_an_open_file_and_one_that_the_user_trusts(tmp_path):
    learn = make_lt_learner(make_dls([8, 4, 2]))
    learn.path = tmp_path
    learn.fit_stage1(1, 0.01)
    learn.create_opt()
    content = {"model": learn.model.state_dict(), "opt": learn.opt.state_dict()}
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    other = make_lt_learner(make_dls([8, 4, 2]))
    other.load(file)
    key = "head.weight"
    assert torch.equal(other.model.state_dict()[key], learn.model.state_dict()[key])
    # An array among the values needs the user's word.
    (tmp_path / "models").mkdir(exist_ok=True)
    torch.save({**content, "opt": {"a": np.arange(3)}}, tmp_path / "models" / "arrays.pth")
    with pytest.raises(UserError, match=r"arrays\.pth is not opened"):
        learn.load("arrays", with_opt=False)
    learn.load("arrays", with_opt=False, weights_only=False)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_and_fastai_save_passes(tmp_path, legacy):
    learn = make_lt_learner(make_dls([8, 4, 2]))
    learn.fit_stage1(1, 0.01)
    state = {"model": learn.model.state_dict(), "opt": {"lr": np.float64(0.1), "n": np.int64(3)}}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    check_saved_learner(tmp_path / "a.pth")


def test_shapes_are_read_from_the_header(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(())}, tmp_path / "a.safetensors")
    assert read_shapes(tmp_path / "a.safetensors") == {"a": (2, 3), "b": ()}
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=r"b\.safetensors is damaged"):
        read_shapes(tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"no weights .*c\.safetensors"):
        read_shapes(tmp_path / "c.safetensors")
