"""Copies of small datasets on a CUDA device, so that a training step waits for no batch."""

import gc
import logging
import math
import weakref

import numpy as np
import torch
from torch import Tensor

from ltlearn.utils.settings import load_settings

__all__ = ["DeviceCopy", "OnDevice", "asynchronous", "copies_on"]

_log = logging.getLogger("ltlearn")
_PART_OF_FREE = 4  # a quarter of the free memory, unless the setting names a number
_CHUNK_BYTES = 1 << 26


class DeviceCopy:
    """A copy of an array on a device.

    Args:
        source: The array. The copy holds a reference, so that no other array takes its address.
        device: The device.
    """

    def __init__(self, source: Tensor | np.ndarray, device: torch.device):
        self.source, self.device = source, device
        like = source[:0] if isinstance(source, Tensor) else torch.from_numpy(np.array(source[:0]))
        self.tensor = torch.empty(source.shape, dtype=like.dtype, device=device)
        # An array of a file is read part by part.
        rows = max(1, _CHUNK_BYTES // max(1, source[:1].nbytes))
        for first in range(0, len(source), rows):
            part = source[first : first + rows]
            part = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
            self.tensor[first : first + rows] = part.to(device)


_Key = tuple[int, tuple[int, ...], str, torch.device]
_LIVE: weakref.WeakValueDictionary[_Key, DeviceCopy] = weakref.WeakValueDictionary()


def copies_on(
    device: torch.device, sources: list[Tensor] | list[np.ndarray], name: str
) -> list[DeviceCopy] | None:
    """Return copies of arrays on a CUDA device; None if its memory for data is not enough.

    Arrays that share memory share a copy. A copy is freed with the last dataset that holds it.

    Args:
        device: The device.
        sources: The arrays.
        name: What the arrays hold, for the log.
    """
    keys = [_key(source, device) for source in sources]
    found = [_LIVE.get(key) for key in keys]
    new = sum(s.nbytes for s, copy in zip(sources, found, strict=True) if copy is None)
    if new > (most := _budget(device)):
        # Learners in reference cycles may still hold copies.
        gc.collect()
        most = _budget(device)
    if new > most:
        _log.info(
            "%s take %d MB, and the setting device_megabytes leaves %d MB of %s for data: each "
            "batch is copied to it.", name, math.ceil(new / 1e6), most // 10**6, device,
        )  # fmt: skip
        return None
    try:
        for i, (source, key) in enumerate(zip(sources, keys, strict=True)):
            copy = found[i] or _LIVE.get(key) or DeviceCopy(source, device)
            found[i] = _LIVE[key] = copy
    except torch.OutOfMemoryError:
        _log.info("%s do not fit on %s: each batch is copied to it.", name, device)
        return None
    return [copy for copy in found if copy is not None]


def _key(source: Tensor | np.ndarray, device: torch.device) -> _Key:
    is_tensor = isinstance(source, Tensor)
    address = source.data_ptr() if is_tensor else source.__array_interface__["data"][0]
    return address, tuple(source.shape), str(source.dtype), device


def _budget(device: torch.device) -> int:
    """Return the bytes that further copies may take."""
    most = load_settings().device_megabytes
    if most == "auto":
        return torch.cuda.mem_get_info(device)[0] // _PART_OF_FREE
    return int(most) * 10**6 - sum(
        copy.source.nbytes for copy in _LIVE.values() if copy.device == device
    )


class OnDevice:
    """A dataset that can have a copy of itself on a CUDA device.

    A subclass defines `make_copy`. Copies are not pickled with the dataset.
    """

    _copies: "dict[torch.device, OnDevice | None] | None" = None

    def on(self, device: torch.device) -> "OnDevice":
        """Return a copy of the dataset on a CUDA device; the dataset itself if it does not fit.

        Args:
            device: The device.
        """
        if self._copies is None:
            self._copies = {}
        if device.index is None:  # "cuda" is the current device
            device = torch.empty(0, device=device).device
        if device not in self._copies:
            # Training must be able to use what a prediction has copied.
            with torch.inference_mode(False):
                self._copies[device] = self.make_copy(device) if len(self) else None
        return self._copies[device] or self

    def make_copy(self, device: torch.device) -> "OnDevice | None":
        """Return a copy of the dataset on a device; None if it does not fit.

        Args:
            device: The device.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define make_copy.")

    def __getstate__(self) -> dict:
        return {key: value for key, value in vars(self).items() if key != "_copies"}


def asynchronous(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the memory of the machine to a CUDA device; do not wait for the copy.

    Args:
        values: The tensor.
        device: The device.
    """
    if values.device.type != "cpu":
        return values.to(device)
    if not values.is_pinned():
        # A copy that also changes the order in memory would make the host wait.
        order = torch.channels_last if values.dim() == 4 else torch.contiguous_format
        values = values if values.is_contiguous() else values.contiguous(memory_format=order)
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
