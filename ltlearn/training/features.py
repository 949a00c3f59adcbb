"""`FeatureBank`: the features of a dataset from a frozen backbone, computed once."""

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ltlearn.data.transforms import mix_seed
from ltlearn.errors import UserError, check_choice, spell
from ltlearn.models.backbone import evaluating
from ltlearn.utils.progress import ProgressLine

__all__ = ["weights_fingerprint", "Features", "FeatureBank"]

_log = logging.getLogger("ltlearn")
DTYPES = ("float16", "float32")
_FLUSH_BATCHES = 50
_CHUNK_BYTES = 1 << 24
_LARGE_FILE = 1 << 28  # bytes; from a larger file, rows are read instead of mapped


def weights_fingerprint(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that identify the weights and buffers of a model.

    Args:
        model: The model.
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@dataclass
class Features:
    """Pooled features of a dataset, one array per view; a dataset for `LTDataLoader`.

    Each draw of an image takes one of its views at random, or the first if there is no seed.
    """

    n_inp = 1
    views: list[np.ndarray]  # V arrays (N, D), float16 or float32, in memory or memory-mapped
    targets: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.targets)

    def get_batch(self, index: list[int], seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return features (B, D), float32, and targets (B,)."""
        index = np.asarray(index)
        if seed is None or len(self.views) == 1:
            x = _rows(self.views[0], index)
        else:
            view = np.random.RandomState(seed).randint(len(self.views), size=len(index))
            x = np.empty((len(index), self.views[0].shape[1]), dtype=self.views[0].dtype)
            for v in np.unique(view):
                x[view == v] = _rows(self.views[v], index[view == v])
        return torch.from_numpy(x).float(), self.targets[torch.from_numpy(index)]

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = self.get_batch([i])
        return x[0], y[0]


def _rows(view: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return rows of an array, in memory or in a file.

    Reading a random row of a mapped file maps up to a MiB around it, which counts as memory of this
    process. So rows of a large file are read without mapping.
    """
    mapped = isinstance(view, np.memmap) and view.filename is not None
    whole = mapped and view.flags.c_contiguous and view.base is view._mmap
    if not whole or view.nbytes <= _LARGE_FILE or not hasattr(os, "preadv"):
        return view[index]
    x = np.empty((len(index), *view.shape[1:]), dtype=view.dtype)
    size = x[0].nbytes
    with open(view.filename, "rb", buffering=0) as file:
        for row, k in zip(x, index.tolist(), strict=True):
            if os.preadv(file.fileno(), [row], view.offset + k * size) != size:
                raise UserError(f"the features in {view.filename} end early; remove the file.")
    return x


class FeatureBank:
    """Run a frozen backbone over a data loader, once per view, and keep the result.

    On disk each view is one array with a key of (weights, data, transform, view). So a second
    method reads the features of the first, and an interrupted extraction resumes. Memory use stays
    at one batch for any number of images. Without a folder, the features of the last weights stay
    in memory.

    Args:
        path: Folder of the arrays; None keeps them in the memory of this process.
        dtype: Type of the stored features, "float16" or "float32". Features above 65,504 need
            float32.

    Raises:
        UserError: If `dtype` is unknown, or the folder cannot be written.

    Example:
        >>> bank = FeatureBank("cache")
        >>> features = bank.features(learn.model.backbone, learn.dls.train, data="my images")
    """

    def __init__(self, path: str | Path | None = None, dtype: str = "float16"):
        check_choice("dtype", dtype, DTYPES)
        self.path = None if path is None else Path(path).expanduser()
        self.dtype = dtype
        self._memory: dict[str, np.ndarray] = {}
        self._memory_weights = ""

    def __getstate__(self) -> dict:
        # An exported learner contains no features of its data.
        return {**vars(self), "_memory": {}, "_memory_weights": ""}

    def features(
        self, backbone: nn.Module, dl, data: str, views: int = 0, seed: int = 0, autocast=None
    ) -> Features:
        """Return the features of every image of a loader, in the order of its dataset.

        Args:
            backbone: Returns (N, D) features. It runs in evaluation mode, and its mode is restored.
            dl: An `LTDataLoader`; its sampler has no effect.
            data: Name of the images, such as a split's fingerprint.
            views: Number of augmented passes; 0 makes one pass without augmentation.
            seed: Seed of the augmentation.
            autocast: Called without arguments, it returns the context for the backbone, of dtype
                `autocast.dtype`; None uses none.

        Shape:
            Arrays (N, D), one per view.

        Raises:
            UserError: If a feature is not finite or does not fit float16, the cache folder cannot
                be written, or the disk is full.
        """
        weights = weights_fingerprint(backbone)
        # `data` may name images regardless of the location and the time of their files.
        files = getattr(dl.dataset, "files_name", None)
        data = f"{data} {files}" if files else data
        arrays = []
        for view in range(max(views, 1)):
            augment = views > 0
            key = {
                "weights": weights,
                # Networks with equal weights can differ in layers without any, such as pooling.
                "network": hashlib.sha256(repr(backbone).encode()).hexdigest()[:16],
                "data": data,
                "images": dl.n,
                "shape": list(getattr(dl.dataset, "shape", ())),
                "transform": _transform_name(dl.dataset) if augment else "none",
                "normalize": _normalize_name(dl),
                "view": view if augment else None,
                "seed": seed if augment else None,
                "batch": dl.bs if augment else None,
                "precision": str(autocast.dtype) if autocast is not None else "float32",
                "dtype": self.dtype,
            }
            arrays.append(self._view(key, backbone, dl, view if augment else None, seed, autocast))
        return Features(arrays, torch.as_tensor(dl.dataset.targets))

    def _view(self, key: dict, backbone, dl, view, seed, autocast) -> np.ndarray:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
        if self.path is not None:
            store = _ViewOnDisk(self.path / name, key)
            array = store.open()
            if array is None:
                self._extract(store, backbone, dl, view, seed, autocast)
                array = store.open(check=False)
            return array
        if key["weights"] != self._memory_weights:
            self._memory, self._memory_weights = {}, key["weights"]
        if name not in self._memory:
            store = _ViewInMemory()
            self._extract(store, backbone, dl, view, seed, autocast)
            self._memory[name] = store.array
        return self._memory[name]

    def _extract(self, store, backbone, dl, view, seed, autocast) -> None:
        # Augmentation depends on (seed, view, position) alone, so an interrupted pass can resume
        # at the batch where it stopped.
        loader = dl.new(shuffle=False, augment=view is not None, seed=mix_seed(seed, 0xFEA7))
        loader.set_epoch(view or 0)
        done = store.resume()
        if done:
            _log.info("feature extraction resumes at image %d of %d", done, dl.n)
            numbers = loader.get_idxs()[done:]
            loader = loader.new(get_idxs=lambda: numbers)
            loader.set_epoch(view or 0)
        line = ProgressLine("computing features", dl.n)
        line.advance(done)
        device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
        context = nullcontext if autocast is None else autocast
        try:
            with evaluating(backbone), torch.inference_mode():
                for i, (x, *_) in enumerate(loader if done < dl.n else ()):
                    with context():
                        out = backbone(x.to(device, non_blocking=True))
                    rows = self._rows(out, done)
                    store.write(rows, done, dl.n)
                    done += len(rows)
                    line.advance(len(rows))
                    if i % _FLUSH_BATCHES == _FLUSH_BATCHES - 1:
                        store.flush(done)
            store.finish(done)
        finally:
            store.flush(done)
            line.close()

    def _rows(self, out: Tensor, start: int) -> np.ndarray:
        if out.ndim != 2:
            raise UserError(
                f"the backbone must return pooled features (N, D), got shape {tuple(out.shape)}."
            )
        rows = out.float().cpu().numpy()
        limit = np.finfo(self.dtype).max
        bad = np.flatnonzero(~(np.abs(rows) <= limit).all(1))
        if len(bad):
            row = rows[bad[0]]
            name = f"the features of image {start + bad[0]}"
            if not np.isfinite(row).all():
                raise UserError(
                    f"{name} are not finite: the backbone's weights are damaged, or its training "
                    "diverged; train again with a lower learning rate."
                )
            raise UserError(
                f"{name} reach {np.abs(row).max():.3g}, above the largest {self.dtype}, "
                f"{limit:.3g}: the training of the backbone may have diverged; lower its learning "
                "rate, or use "
                "FeatureBank(dtype='float32')."
            )
        return rows.astype(self.dtype)


class _ViewInMemory:
    """One view of the features, as an array."""

    array: np.ndarray | None = None

    def resume(self) -> int:
        return 0

    def write(self, rows: np.ndarray, start: int, n: int) -> None:
        if self.array is None:
            self.array = np.empty((n, rows.shape[1]), rows.dtype)
        self.array[start : start + len(rows)] = rows

    def flush(self, done: int) -> None:
        pass

    def finish(self, done: int) -> None:
        pass


class _ViewOnDisk:
    """One view of the features, as a folder.

    `features.npy` is the finished array, and `key.json` has its key and checksum. An unfinished
    array is `partial.npy`, and `partial.json` has its number of finished images.
    """

    def __init__(self, folder: Path, key: dict):
        self.folder, self.key, self.n = folder, key, key["images"]
        self.partial, self.progress = folder / "partial.npy", folder / "partial.json"
        self.array: np.ndarray | None = None
        self.crc = 0

    def open(self, check: bool = True) -> np.ndarray | None:
        """Map the finished array; return None if there is none or it is damaged."""
        file = self.folder / "features.npy"
        if not file.is_file():
            return None
        array = _map_array(file, "r")
        if not check:
            return array
        note = _read_note(self.folder / "key.json")
        good = array is not None and len(array) == self.n and note.get("key") == self.key
        if good and note.get("crc") == _checksum(array):
            return array
        _log.warning("the cached features in %s are damaged; they are computed again", self.folder)
        with self._writing():
            shutil.rmtree(self.folder)
        return None

    def resume(self) -> int:
        """Resume an interrupted pass; return the number of its finished images."""
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
        note = _read_note(self.progress)
        array = _map_array(self.partial, "r+")
        done = note.get("images")
        if array is None or array.ndim != 2 or not isinstance(done, int):
            return 0
        # The checksum rejects a note from another pass, and rows lost in a crash of the machine.
        good = array.dtype == self.key["dtype"] and 0 < done <= self.n == len(array)
        if not good or note.get("crc") != _checksum(array[:done]):
            return 0
        self.array, self.crc = array, note["crc"]
        return done

    def write(self, rows: np.ndarray, start: int, n: int) -> None:
        if self.array is None:
            with self._writing():
                self.progress.unlink(missing_ok=True)
                shape = (n, rows.shape[1])
                self.array = np.lib.format.open_memmap(self.partial, "w+", rows.dtype, shape)
                # Writing to a mapped file on a full disk would kill the process.
                if hasattr(os, "posix_fallocate"):
                    with self.partial.open("r+b") as f:
                        os.posix_fallocate(f.fileno(), 0, self.partial.stat().st_size)
        self.array[start : start + len(rows)] = rows
        self.crc = zlib.crc32(rows.tobytes(), self.crc)

    def flush(self, done: int) -> None:
        """Save the number of finished images."""
        if self.array is not None:
            with self._writing():
                self.array.flush()
                _replace_text(self.progress, json.dumps({"images": done, "crc": self.crc}))

    def finish(self, done: int) -> None:
        """Rename the finished array; its key is written first, so that no array is without one."""
        if done != self.n:
            raise RuntimeError(f"the loader returned {done} images, not {self.n}.")
        self.flush(done)
        with self._writing():
            note = {"key": self.key, "crc": self.crc}
            _replace_text(self.folder / "key.json", json.dumps(note, indent=1))
            self.array = None
            os.replace(self.partial, self.folder / "features.npy")
            self.progress.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            self.array = None
            raise UserError(
                f"the feature cache {self.folder} cannot be written ({e.strerror or e}); free "
                f"space there, or set {spell('cache_path')} to another folder."
            ) from e


def _map_array(file: Path, mode: str) -> np.ndarray | None:
    try:
        return np.load(file, mmap_mode=mode, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None


def _read_note(file: Path) -> dict:
    try:
        note = json.loads(file.read_text())
    except (ValueError, OSError):
        return {}
    return note if isinstance(note, dict) else {}


def _checksum(array: np.ndarray) -> int:
    crc, rows = 0, max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
    for i in range(0, len(array), rows):
        crc = zlib.crc32(array[i : i + rows].tobytes(), crc)
    return crc


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(text)
    os.replace(temporary, path)


def _transform_name(dataset) -> str:
    transform = getattr(dataset, "transform", "")
    if isinstance(transform, str):
        augment = getattr(dataset, "augment", None)
        return f"{transform}, pad {getattr(augment, 'pad', None)}, in memory"
    return f"{transform.name}, pad {transform.pad}"


def _normalize_name(dl) -> str:
    return ";".join(
        f"{t.mean.flatten().tolist()} {t.std.flatten().tolist()}"
        for t in dl.after_batch.fs
        if hasattr(t, "std")
    )
