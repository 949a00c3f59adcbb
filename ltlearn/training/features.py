"""`FeatureBank`: the features of a dataset from a frozen backbone, computed once."""

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import weakref
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ltlearn.data.feature_rows import Features
from ltlearn.data.transforms import mix_seed
from ltlearn.errors import UserError, check_choice, spell
from ltlearn.models.backbone import device_of, evaluating
from ltlearn.training.collectives import gather_rows
from ltlearn.training.compiled import FrozenCall
from ltlearn.training.feature_names import is_plain, normalize_name, transform_name
from ltlearn.utils import ranks
from ltlearn.utils.locks import locked
from ltlearn.utils.marks import tensor_mark
from ltlearn.utils.progress import ProgressLine
from ltlearn.utils.system_errors import reason_of

__all__ = ["weights_fingerprint", "Features", "FeatureBank"]

_log = logging.getLogger("ltlearn")
DTYPES = ("float16", "float32")
_FLUSH_BATCHES = 50
_CHUNK_BYTES = 1 << 24
_ARRAY, _NOTE = "features.npy", "key.json"
# The fingerprint of each model that is alive, with the marks of its tensors.
_KNOWN: weakref.WeakKeyDictionary[nn.Module, tuple[tuple, str]] = weakref.WeakKeyDictionary()


def weights_fingerprint(model: nn.Module, names: Collection[str] | None = None) -> str:
    """Return 16 hexadecimal digits that identify the weights and buffers of a model.

    Each stage asks several times, so the result is kept until a tensor changes.

    Args:
        model: The model.
        names: The tensors that count. None: all.
    """
    state = {k: v for k, v in model.state_dict().items() if names is None or k in names}
    marks = tuple((name, *tensor_mark(value)) for name, value in state.items())
    known = _KNOWN.get(model)
    if known is not None and known[0] == marks:
        return known[1]
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    fingerprint = digest.hexdigest()[:16]
    _KNOWN[model] = marks, fingerprint
    return fingerprint


class FeatureBank:
    """Run a frozen backbone over a data loader, once per view, and keep the result.

    On disk each view is one array with a key of (weights, data, transform, view). So a second
    method reads the features of the first, and an interrupted extraction resumes. Several processes
    can share the folder: one extracts a view, and others that need it wait. Memory use stays at one
    batch for any number of images. Without a folder, the features of the last weights stay in
    memory.

    Args:
        path: Folder of the arrays; None keeps them in the memory of this process.
        dtype: Type of the stored features, "float16" or "float32". Features above 65,504 need
            float32.
        compile: Whether `torch.compile` runs the backbone, with batch normalisation folded into
            convolutions. Each call of `features` that computes some first compiles for 6 to 30 s.
            Networks with batch normalisation then run 1.2 to 1.6 times as fast, others 1.0 to 1.15
            times. So it pays from 500 to 7,000 images of 224 pixels, or from 30,000 of 32
            (`python benchmarks/extraction.py`, one thread). Features differ by rounding from those
            without compilation, so they have a key of their own. If torch cannot compile the
            backbone, a warning is logged, and the backbone runs without compilation.

    Raises:
        UserError: If `dtype` is unknown, or the folder cannot be written.

    Example:
        >>> learn = lt_learner(dls, "resnet50")
        >>> learn.bank = FeatureBank("cache", learn.bank.dtype, compile=True)
        >>> features = learn.features("train")
    """

    # Learners that earlier versions exported lack it.
    compile = False

    def __init__(
        self, path: str | Path | None = None, dtype: str = "float16", compile: bool = False
    ):
        check_choice("dtype", dtype, DTYPES)
        self.path = None if path is None else Path(path).expanduser()
        self.dtype, self.compile = dtype, compile
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
        call = FrozenCall(backbone, _rows_here(dl.bs)) if self.compile else backbone
        context = nullcontext if autocast is None else autocast

        def run(x: Tensor) -> Tensor:
            with context():
                return call(x)

        arrays = []
        augment = views > 0 and not is_plain(dl.dataset)
        for view in range(max(views, 1)):
            key = {
                "weights": weights,
                # Networks with equal weights can differ in layers without any, such as pooling.
                "network": hashlib.sha256(repr(backbone).encode()).hexdigest()[:16],
                "data": data,
                "images": dl.n,
                "shape": list(getattr(dl.dataset, "shape", ())),
                "transform": transform_name(dl.dataset) if augment else "none",
                "normalize": normalize_name(dl),
                "view": view if augment else None,
                "seed": seed if augment else None,
                "batch": dl.bs if augment else None,
                "precision": str(autocast.dtype) if autocast is not None else "float32",
                "dtype": self.dtype,
                # Older keys lack it.
                **({"compiled": True} if self.compile else {}),
            }
            arrays.append(self._view(key, backbone, dl, view if augment else None, seed, run))
        return Features(arrays, torch.as_tensor(dl.dataset.targets))

    def _view(self, key: dict, backbone, dl, view, seed, run) -> np.ndarray:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
        if self.path is not None:
            store = _ViewOnDisk(self.path / name, key)
            # All ranks compute features. The first rank alone reads and writes the folder.
            is_first = ranks.is_first()
            array = store.open() if is_first else None
            if ranks.share(array is None):
                with store.lock() if is_first else nullcontext():
                    # Another process may have finished it meanwhile.
                    array = store.open() if is_first else None
                    if ranks.share(array is None):
                        writer = store if is_first else _ViewElsewhere()
                        self._extract(writer, backbone, dl, view, seed, run)
                        array = store.array
                        ranks.wait()
            return store.open_anew() if array is None else array
        if key["weights"] != self._memory_weights:
            self._memory, self._memory_weights = {}, key["weights"]
        if name not in self._memory:
            store = _ViewInMemory()
            self._extract(store, backbone, dl, view, seed, run)
            self._memory[name] = store.array
        return self._memory[name]

    def _extract(self, store, backbone, dl, view, seed, run) -> None:
        # Augmentation depends on (seed, view, position) alone, so an interrupted pass can resume
        # at the batch where it stopped.
        loader = dl.new(shuffle=False, augment=view is not None, seed=mix_seed(seed, 0xFEA7))
        loader.set_epoch(view or 0)
        done = ranks.share(store.resume())
        if done:
            _log.info("feature extraction resumes at image %d of %d", done, dl.n)
            numbers = loader.get_idxs()[done:]
            loader = loader.new(get_idxs=lambda: numbers)
            loader.set_epoch(view or 0)
        line = ProgressLine("computing features", dl.n)
        line.advance(done)
        device = device_of(backbone)
        try:
            with evaluating(backbone), torch.inference_mode(), loader.cut_by_rank():
                for i, (x, *_) in enumerate(loader if done < dl.n else ()):
                    out = run(x.to(device, non_blocking=True))
                    _check_pooled(out)
                    rows = self._rows(gather_rows(out, min(dl.bs, dl.n - done)), done)
                    store.write(rows, done, dl.n)
                    done += len(rows)
                    line.advance(len(rows))
                    if i % _FLUSH_BATCHES == _FLUSH_BATCHES - 1:
                        store.flush(done)
            store.finish(done)
        finally:
            store.flush(done)
            store.close()
            line.close()

    def _rows(self, out: Tensor, start: int) -> np.ndarray:
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

    def close(self) -> None:
        pass


class _ViewElsewhere(_ViewInMemory):
    """One view of the features, which another rank writes."""

    def write(self, rows: np.ndarray, start: int, n: int) -> None:
        pass


class _ViewOnDisk:
    """One view of the features, as a folder.

    `features.npy` is the array, and `key.json` has its key and checksum. A pass writes to a folder
    of its own, whose note also has the number of finished images. At the end the checksum of the
    array in the file is compared, and the folder is renamed; the first one stays. So all that
    stands under the final name is whole, with locks or without.
    """

    def __init__(self, folder: Path, key: dict):
        self.folder, self.key, self.n = folder, key, key["images"]
        self.work = self._own_folder()
        self.array: np.ndarray | None = None  # the finished one
        self._rows: np.ndarray | None = None  # the unfinished one
        self.crc = 0
        self._is_locked = False

    def _own_folder(self) -> Path:
        return self.folder.with_name(
            f"{self.folder.name}.part-{os.getpid()}-{secrets.token_hex(4)}"
        )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let one process at a time extract this view."""
        with self._writing():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        file = self.folder.absolute().with_name(f"{self.folder.name}.lock")
        with locked(file, _report_wait) as self._is_locked:
            yield

    def open(self) -> np.ndarray | None:
        """Map the finished array; return None if there is none or it is damaged."""
        array = _map_array(self.folder / _ARRAY, "r")
        note = _read_note(self.folder / _NOTE)
        if self._fits(array) and note.get("key") == self.key:
            # The checksum is of the pages that are mapped, whatever happens to the name.
            return array if note.get("crc") == _checksum(array) else None
        return None

    def open_anew(self) -> np.ndarray:
        """Map the array that the first rank has finished."""
        array = self.open()
        if array is None:
            raise UserError(
                f"rank {ranks.rank()} does not see the features that the first rank wrote to "
                f"{self.folder}; set {spell('cache_path')} to a folder on a disk that all machines "
                "share."
            )
        return array

    def resume(self) -> int:
        """Resume an interrupted pass; return the number of its finished images."""
        with self._writing():
            if self.folder.exists():
                _log.warning(
                    "the cached features in %s are damaged; they are computed again", self.folder
                )
                self._remove(self.folder)
            done = 0
            # Without a lock, their processes may be alive.
            unfinished = self.folder.parent.glob(f"{self.folder.name}.part-*")
            for folder in sorted(unfinished) if self._is_locked else ():
                if done:
                    shutil.rmtree(folder)
                    continue
                os.rename(folder, self.work)
                done = self._take_up()
                if not done:
                    shutil.rmtree(self.work)
            self.work.mkdir(exist_ok=True)
        return done

    def _take_up(self) -> int:
        note, array = _read_note(self.work / _NOTE), _map_array(self.work / _ARRAY, "r+")
        done = note.get("images")
        # The checksum rejects a note from another pass, and rows lost in a crash of the machine.
        good = self._fits(array) and isinstance(done, int) and 0 < done <= self.n
        if not good or note.get("crc") != _checksum(array[:done]):
            return 0
        self._rows, self.crc = array, note["crc"]
        return done

    def _fits(self, array: np.ndarray | None) -> bool:
        is_table = array is not None and array.ndim == 2 and len(array) == self.n
        return is_table and array.dtype == self.key["dtype"]

    def write(self, rows: np.ndarray, start: int, n: int) -> None:
        if self._rows is None:
            with self._writing():
                file, shape = self.work / _ARRAY, (n, rows.shape[1])
                self._rows = np.lib.format.open_memmap(file, "w+", rows.dtype, shape)
                # Writing to a mapped file on a full disk would kill the process.
                if hasattr(os, "posix_fallocate"):
                    with file.open("r+b") as f:
                        os.posix_fallocate(f.fileno(), 0, file.stat().st_size)
        self._rows[start : start + len(rows)] = rows
        self.crc = zlib.crc32(rows.tobytes(), self.crc)

    def flush(self, done: int) -> None:
        """Save the number of finished images."""
        if self._rows is not None:
            with self._writing():
                self._rows.flush()
                self._write_note(images=done)

    def finish(self, done: int) -> None:
        """Check the array in the file, and give its folder the final name."""
        if done != self.n:
            raise RuntimeError(f"the loader returned {done} images, not {self.n}.")
        self.flush(done)
        with self._writing():
            self._rows = None
            self._write_note()
            array = _map_array(self.work / _ARRAY, "r")
            if array is None or _checksum(array) != self.crc:
                self._remove(self.work)
                raise OSError(None, "its files change while they are written")
            self.array = self._publish(array)

    def _publish(self, array: np.ndarray) -> np.ndarray:
        """Rename the finished folder; return its array, or the array of a process that was first.

        Without locks, two processes may have extracted the same view.
        """
        try:
            os.rename(self.work, self.folder)
        except OSError:
            first = self.open()
            if first is not None:
                self._remove(self.work)
                return first
            self._remove(self.folder)
            os.rename(self.work, self.folder)
        return array

    def close(self) -> None:
        """Remove the folder of a pass that wrote nothing."""
        try:
            self.work.rmdir()
        except OSError:
            pass  # it holds rows, or has its final name

    def _write_note(self, **progress: int) -> None:
        text = json.dumps({"key": self.key, **progress, "crc": self.crc}, indent=1)
        temporary = self.work / f".{_NOTE}"
        temporary.write_text(text)
        os.replace(temporary, self.work / _NOTE)

    def _remove(self, folder: Path) -> None:
        """Remove a folder. Its name is free at once, also where its files are slow to remove."""
        aside = self._own_folder()
        os.rename(folder, aside)
        shutil.rmtree(aside)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            self._rows = None
            space = "free space there, or " if e.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise UserError(
                f"the feature cache {self.folder} cannot be written ({reason_of(e)}); {space}"
                f"set {spell('cache_path')} to another folder."
            ) from e


def _rows_here(n: int) -> int:
    """Return how many rows of a batch this rank computes."""
    part = ranks.part_of(n)
    return part.stop - part.start


def _check_pooled(out) -> None:
    is_tensor = isinstance(out, Tensor)
    if not (is_tensor and out.ndim == 2):
        got = f"shape {tuple(out.shape)}" if is_tensor else f"type {type(out).__name__}"
        raise UserError(f"the backbone must return pooled features (N, D), got {got}.")


def _report_wait(holder: str) -> None:
    _log.warning("the same features are computed by %s: waiting for them", holder)


def _map_array(path: Path, mode: str) -> np.ndarray | None:
    """Map the array in a file; return None if there is none, or the file is damaged."""
    try:
        file = open(path, "rb" if mode == "r" else "r+b", buffering=0)
    except OSError:
        return None
    try:
        np.lib.format.read_magic(file)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject or is_fortran:
            raise ValueError("not a table of numbers")
        array = np.memmap(file, dtype, mode, file.tell(), shape)
    except Exception:  # NumPy's parser of a damaged header raises errors of many kinds
        file.close()
        return None
    # The file stays open as long as the array lives, so that rows can be read from it.
    array.file = file
    weakref.finalize(array, file.close)
    return array


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
