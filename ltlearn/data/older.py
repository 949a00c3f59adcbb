"""Fingerprints as earlier versions took them, so that their runs are still recognised.

They named images in memory by their pixels after resizing, and files by path and size. Most small
sets have the same name today. They did not record the order of the images.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ltlearn.data.datasets import ImageFiles, ImagesInMemory, SplitInfo
from ltlearn.data.digests import digest_image, hash_file
from ltlearn.data.splits import fingerprint

__all__ = ["keep_older_names"]


def keep_older_names(dls: Any, recorded: Mapping[str, Any] | None) -> None:
    """Give a split the fingerprints that a run recorded, if an earlier version took them.

    Args:
        dls: The loaders. Their split is replaced if it has the same images; the order of the
            images is removed from it if the run recorded none.
        recorded: The split in the manifest of the run; None if there is none.
    """
    names = ("train", "valid", "test")
    split, before = dls.split, {name: (recorded or {}).get(name) for name in names}
    if not before["train"]:
        return
    if recorded.get("order") is None:
        dls.split = split = replace(split, order=None)
    if all(before[name] == getattr(split, name) for name in names):
        return
    older = _older_split(dls)
    if all(before[name] == getattr(older, name) for name in names):
        dls.split = older


def _older_split(dls: Any) -> SplitInfo:
    split = dls.split
    train, valid = ([dl.dataset] for dl in (dls.train, dls.valid))
    whole = train + valid if split.valid_from == "training images" else train
    test = None if split.test is None else _older_name([dls.test.dataset])
    return replace(split, train=_older_name(whole), valid=_older_name(valid), test=test)


def _older_name(datasets: list[ImagesInMemory | ImageFiles]) -> str:
    return fingerprint(digest for data in datasets for digest in _older_digests(data))


def _older_digests(data: ImagesInMemory | ImageFiles) -> Iterator[bytes]:
    for i, target in enumerate(data.targets.tolist()):
        if isinstance(data, ImagesInMemory):
            content = data.get_batch([i])[0][0].permute(1, 2, 0).numpy().tobytes()
        elif not isinstance(data.data.root, Path):
            content = hash_file(data.data.file(i))  # rows of a dataset
        else:
            size = os.stat(data.data.file(i)).st_size
            content = os.fsencode(f"{data.data.paths[i]}\0{size}")
        yield digest_image(content, target)
