"""`FeatureBank`: what the frozen backbone says of a dataset, computed once."""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ltlearn.data.transforms import mix_seed
from ltlearn.errors import UserError
from ltlearn.progress import ProgressLine

__all__ = ["Features", "FeatureBank", "weights_fingerprint"]

DTYPES = ("float16", "float32")
_FLUSH_BATCHES = 50

_log = logging.getLogger("ltlearn")


def weights_fingerprint(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that name the weights and buffers of a model."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@dataclass
class Features:
    """Pooled features of a dataset, one array a view; a dataset for `LTDataLoader`.

    Each time an image is drawn one of its views is taken at random; without a seed it is the first.
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
            x = self.views[0][index]
        else:
            view = np.random.RandomState(seed).randint(len(self.views), size=len(index))
            x = np.empty((len(index), self.views[0].shape[1]), dtype=self.views[0].dtype)
            for v in np.unique(view):
                x[view == v] = self.views[v][index[view == v]]
        return torch.from_numpy(x).float(), self.targets[torch.from_numpy(index)]

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = self.get_batch([i])
        return x[0], y[0]


class FeatureBank:
    """Runs a frozen backbone over a data loader, once a view, and remembers the result.

    On disk each view is one array, found again by (weights, data, transform, view): a second method costs nothing, and an
    extraction that was cut short goes on where it stopped. Memory stays at one batch whatever the number of images.

    Args:
        path: Folder of the arrays; None keeps them in memory, for this process.
        dtype: "float16" or "float32", as stored. Features above 65,504 need float32.

    Raises:
        UserError: If `dtype` is unknown, or the folder cannot be written.
    """

    def __init__(self, path: str | Path | None = None, dtype: str = "float16"):
        if dtype not in DTYPES:
            raise UserError(f"FeatureBank: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
        self.path = None if path is None else Path(path).expanduser()
        self.dtype = dtype
        self._memory: dict[str, np.ndarray] = {}

    def features(self, backbone: nn.Module, dl, data: str, views: int = 0, seed: int = 0, autocast=None) -> Features:
        """Return the features of every image of a loader, in the order of its dataset.

        Args:
            backbone: Gives (N, D) features; it is put in evaluation mode and left as found.
            dl: An `LTDataLoader`; its sampler does not matter.
            data: Names the images, such as a split's fingerprint.
            views: Augmented passes. 0 makes one pass without augmentation.
            seed: Of the augmentation.
            autocast: Called without arguments, gives the context to run the backbone in; None runs it as it is.

        Shape:
            Arrays (N, D), one a view.

        Raises:
            UserError: If a feature is not finite or does not fit float16, or the disk is full.
        """
        weights = weights_fingerprint(backbone)
        arrays = []
        for view in range(max(views, 1)):
            augment = views > 0
            key = {
                "weights": weights,
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
            name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
            arrays.append(self._one(name, key, backbone, dl, view if augment else None, seed, autocast))
        return Features(arrays, torch.as_tensor(dl.dataset.targets))

    def _one(self, name, key, backbone, dl, view, seed, autocast) -> np.ndarray:
        if self.path is None:
            if name not in self._memory:
                self._memory[name] = self._extract(None, backbone, dl, view, seed, autocast)
            return self._memory[name]
        folder = self.path / name
        try:
            found = self._open(folder, dl.n)
            if found is None:
                folder.mkdir(parents=True, exist_ok=True)
                found = self._extract(folder, backbone, dl, view, seed, autocast)
                (folder / "key.json").write_text(json.dumps(key, indent=1))
            return found
        except OSError as e:
            raise UserError(
                f"the feature cache {folder} cannot be written ({e.strerror or e}); free space there, or set cache_path "
                "to another folder."
            ) from e

    def _open(self, folder: Path, n: int) -> np.ndarray | None:
        """Map a finished array; None where there is none or it is damaged."""
        file = folder / "features.npy"
        if not file.is_file():
            return None
        try:
            found = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError):
            found = None
        if found is None or found.shape[:1] != (n,) or found.dtype != self.dtype:
            _log.warning("the cached features in %s are damaged; they are computed again", folder)
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return found

    def _extract(self, folder: Path | None, backbone, dl, view, seed, autocast) -> np.ndarray:
        # Augmentation depends on (seed, view, position) alone, so a pass that was cut short can go on in the middle.
        loader = dl.new(shuffle=False, augment=view is not None, seed=mix_seed(seed, 0xFEA7))
        loader.set_epoch(view or 0)
        partial, progress = (None, None) if folder is None else (folder / "partial.npy", folder / "partial.json")
        array, done = None, 0
        if partial is not None and partial.is_file() and progress.is_file():
            try:
                done = json.loads(progress.read_text())["images"]
                array = np.load(partial, mmap_mode="r+", allow_pickle=False)
                _log.info("feature extraction goes on at image %d of %d", done, dl.n)
            except (ValueError, KeyError, OSError, EOFError):
                array, done = None, 0
        if done:
            numbers = loader.get_idxs()[done:]
            loader = loader.new(get_idxs=lambda: numbers)
            loader.set_epoch(view or 0)
        line = ProgressLine("computing features", dl.n)
        line.advance(done)
        training = backbone.training
        backbone.eval()
        try:
            with torch.inference_mode():
                for i, (x, *_) in enumerate(loader):
                    x = x.to(next(backbone.parameters()).device, non_blocking=True)
                    if autocast is None:
                        out = backbone(x)
                    else:
                        with autocast():
                            out = backbone(x)
                    rows = self._rows(out, done)
                    if array is None:
                        shape = (dl.n, rows.shape[1])
                        array = (
                            np.empty(shape, self.dtype)
                            if partial is None
                            else np.lib.format.open_memmap(partial, "w+", self.dtype, shape)
                        )
                    array[done : done + len(rows)] = rows
                    done += len(rows)
                    line.advance(len(rows))
                    if partial is not None and i % _FLUSH_BATCHES == _FLUSH_BATCHES - 1:
                        array.flush()
                        _replace_text(progress, json.dumps({"images": done}))
        finally:
            backbone.train(training)
            line.close()
        if partial is None:
            return array
        array.flush()
        del array
        os.replace(partial, folder / "features.npy")
        progress.unlink(missing_ok=True)
        return np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)

    def _rows(self, out: Tensor, start: int) -> np.ndarray:
        if out.ndim != 2:
            raise UserError(f"the backbone must give pooled features (N, D), it gave {tuple(out.shape)}.")
        rows = out.float().cpu().numpy()
        limit = np.finfo(self.dtype).max
        if not np.isfinite(rows).all() or np.abs(rows).max(initial=0) > limit:
            i = start + int(np.flatnonzero(~(np.abs(rows) <= limit).all(1))[0])
            raise UserError(
                f"the features of image {i} are not finite or do not fit {self.dtype}; check the backbone's weights, or use "
                "FeatureBank(dtype='float32')."
            )
        return rows.astype(self.dtype)


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
        f"{t.mean.flatten().tolist()} {t.std.flatten().tolist()}" for t in dl.after_batch.fs if hasattr(t, "std")
    )
