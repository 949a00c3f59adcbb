"""Index a WebDataset shard by one pass over the headers of its tar file; the index is kept.

With the offset of each image, a sampler can draw any image, and a run resumes exactly, as with
files. Python's `tarfile` finds the offsets. The `webdataset` library splits names into keys and
extensions.
"""

import io
import json
import logging
import os
import re
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from ltlearn.data.images import EXTENSIONS
from ltlearn.data.readers.columns import LABEL_COLUMNS, guess_column, name_columns
from ltlearn.errors import UserError, spell
from ltlearn.utils.atomic import replaced_file
from ltlearn.utils.settings import load_settings
from ltlearn.utils.system_errors import reason_of
from ltlearn.utils.text import short_repr

__all__ = ["SampleFields", "ShardIndex", "index_shard"]

_log = logging.getLogger("ltlearn")
_VERSION = 1  # of the index file
_SETTLED_NS = 2_000_000_000  # a file may change again within a tick of the file system's clock
_META = re.compile(r"__[^/]*__($|/)")  # files that the library skips
_LABEL_FIELDS = ("cls", "json")  # extensions that may hold the label; the first one counts


@dataclass(frozen=True)
class SampleFields:
    """Which files of a sample are read.

    Args:
        image: Extension of the image, such as "jpg"; None takes the only one of an image.
        label: Extension of the label, or a key in the sample's .json; None takes .cls, or else a
            key of a usual name in .json.
    """

    image: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class ShardIndex:
    """The samples of a shard, in their order.

    Args:
        offsets: First byte of each image in the shard.
        sizes: Bytes of each image.
        codes: Index into `labels` of each sample.
        labels: The distinct labels, as text.

    Shape:
        offsets, sizes and codes are (N,), int64.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    codes: np.ndarray
    labels: list[str]

    def __len__(self) -> int:
        return len(self.offsets)


def index_shard(file: Path, fields: SampleFields, skip_bad: bool = False) -> ShardIndex:
    """Return the samples of a shard, from its index file if the shard has not changed since.

    Args:
        file: The tar file. Its index is written beside it, or under `cache_path` if that folder is
            read-only.
        fields: Which files of a sample are read.
        skip_bad: Leave out a sample without an image, and what follows the damaged part of a tar
            file, with a warning each, instead of raising.

    Raises:
        UserError: If the file is missing, compressed or damaged, a key occurs twice, or a sample
            has no image or no label.
    """
    try:
        stat = os.stat(file)
    except OSError as e:
        raise UserError(f"cannot read the shard {file} ({reason_of(e)}); fetch it again.") from None
    state = [_VERSION, stat.st_size, stat.st_mtime_ns, fields.image, fields.label]
    places = _index_files(file)
    found = next(filter(None, (_read_index(place, state, file) for place in places)), None)
    if found is not None:
        return found
    scan = _Scan(file, fields, skip_bad)
    index = scan.index()
    # An index of a damaged shard would hide the damage from the next call.
    if not scan.left_out and stat.st_mtime_ns < time.time_ns() - _SETTLED_NS:
        _write_index(places, state, index, file)
    return index


class _Scan:
    """One pass over a shard."""

    def __init__(self, file: Path, fields: SampleFields, skip_bad: bool):
        self.file, self.fields, self.skip_bad = file, fields, skip_bad
        self.left_out = self.is_damaged = False

    def index(self) -> ShardIndex:
        offsets, sizes, codes = [], [], []
        number: dict[str, int] = {}
        with open(self.file, "rb") as stream:
            for key, members in self._samples(stream):
                if self.is_damaged and not (self._images_in(members) and self._label_in(members)):
                    continue  # the last sample before the damage
                image = self._image_of(key, members)
                if image is None:
                    continue
                label = self._label_of(key, members, stream)
                offsets.append(image.offset_data)
                sizes.append(image.size)
                codes.append(number.setdefault(label, len(number)))
        starts, lengths, of_label = (np.array(v, np.int64) for v in (offsets, sizes, codes))
        return ShardIndex(starts, lengths, of_label, list(number))

    def _samples(self, stream) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
        """Yield the key and the members by extension of each sample; they follow one another."""
        from webdataset.tariterators import base_plus_ext

        seen: set[str] = set()
        key, members = None, {}
        for member in self._members(stream):
            base, extension = base_plus_ext(member.name)
            if base is None or not member.isreg() or _META.match(member.name):
                continue
            extension = extension.lower()
            if base != key:
                if members:
                    yield key, members
                if base in seen:
                    raise UserError(
                        f"{self.file}: the key {base!r} occurs twice; give each sample a key of "
                        "its own, with its files one after another."
                    )
                seen.add(base)
                key, members = base, {}
            elif extension in members:
                raise UserError(f"{self.file} has two files {member.name!r}; remove one of them.")
            members[extension] = member
        if members:
            yield key, members

    def _members(self, stream) -> Iterator[tarfile.TarInfo]:
        """Yield the members of the tar file, and check that it ends as a tar file does."""
        at, length = 0, os.fstat(stream.fileno()).st_size
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    if member.offset_data + member.size > length:
                        raise tarfile.ReadError("it is cut off")
                    yield member
                    archive.members = []  # the archive would keep all of them
                at = archive.offset
            stream.seek(at)
            end = stream.read(tarfile.BLOCKSIZE)
            if len(end) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it is cut off")
            if any(end):
                raise tarfile.ReadError(f"no header at byte {at:,}")
        except (tarfile.TarError, OSError, ValueError) as e:
            reason = str(e) or type(e).__name__
            if at == 0 and _is_compressed(stream):
                raise UserError(
                    f"{self.file} is compressed, so no image can be found in it by its offset; "
                    "decompress it (JPEGs gain nothing from compression)."
                ) from None
            fault = f"the shard {self.file} is damaged ({reason})"
            if not self.skip_bad:
                raise UserError(
                    f"{fault}; fetch it again, or leave out what follows the damage with "
                    f"{spell('skip_bad', True)}."
                ) from None
            self.left_out = self.is_damaged = True
            _log.warning("%s: left out what follows the damage.", fault)

    def _images_in(self, members: Mapping) -> list[str]:
        """Return those extensions of a sample that belong to images."""
        if self.fields.image is None:
            return [e for e in members if f".{e}" in EXTENSIONS]
        return [e for e in members if e == self.fields.image.lower().lstrip(".")]

    def _label_in(self, members: Mapping) -> str | None:
        """Return the extension of a sample that has the label."""
        wanted = self.fields.label
        if wanted is None:
            return next((e for e in _LABEL_FIELDS if e in members), None)
        return next((e for e in (wanted.lower().lstrip("."), "json") if e in members), None)

    def _image_of(self, key: str, members: Mapping) -> tarfile.TarInfo | None:
        found = self._images_in(members)
        if len(found) == 1:
            return members[found[0]]
        names = name_columns([f".{e}" for e in members])
        if found:
            raise UserError(
                f"{self.file}: the sample {key!r} has several images ({names}); name the extension "
                f"of one with {spell('image_col')}."
            )
        fault = f"{self.file}: the sample {key!r} has no image, only {names}"
        if not self.skip_bad:
            raise UserError(
                f"{fault}; name the extension of the images with {spell('image_col')}, or leave "
                f"out such samples with {spell('skip_bad', True)}."
            )
        self.left_out = True
        _log.warning("left out: %s", fault)
        return None

    def _label_of(self, key: str, members: Mapping, stream) -> str:
        """Return the label of a sample as text."""
        wanted, extension, label = self.fields.label, self._label_in(members), None
        if extension is not None:
            content = _read_member(stream, members[extension])
            try:
                text = content.decode("utf-8").strip()
                label = text if extension != "json" else _value_in(json.loads(text), wanted)
            except (ValueError, RecursionError) as e:
                raise UserError(
                    f"{self.file}: cannot read {members[extension].name!r} ({e}); correct it."
                ) from None
        if isinstance(label, bool | str | int) and str(label).strip():
            return str(label).strip()
        if label is not None and not isinstance(label, str):
            raise UserError(
                f"{self.file}: the label of the sample {key!r} is {short_repr(label)}, and must be "
                f"text or a whole number; correct {members[extension].name!r}, or name another key "
                f"with {spell('label_col')}."
            )
        fields = name_columns([f".{e}" for e in members])
        place = spell("label_col", wanted) if wanted else ".cls, or a key 'label' in .json"
        raise UserError(
            f"{self.file}: the sample {key!r} has no label ({place}), only {fields}; name the "
            f"extension of the labels, or their key in .json, with {spell('label_col')}."
        )


def _is_compressed(stream) -> bool:
    """Return whether an open file begins as those of gzip, bzip2, xz or zstandard do."""
    stream.seek(0)
    return stream.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))


def _read_member(stream, member: tarfile.TarInfo) -> bytes:
    position = stream.tell()
    stream.seek(member.offset_data)
    content = stream.read(member.size)
    stream.seek(position)
    return content


def _value_in(content: object, wanted: str | None) -> object:
    """Return the label in the .json of a sample; None if there is none."""
    if not isinstance(content, Mapping):
        return None
    if wanted is None:
        names = list(content)
        position = guess_column(names, LABEL_COLUMNS)
        wanted = None if position is None else names[position]
    return content.get(wanted)


# ---------------------------------------------------------------- the index file


def _index_files(file: Path) -> list[Path]:
    """Return where the index of a shard may be: beside it, or else under `cache_path`."""
    name = sha256(os.fsencode(os.path.realpath(file))).hexdigest()[:32]
    cache = load_settings().cache_path / "shards" / f"{name}.npz"
    return [file.with_name(f"{file.name}.index.npz"), cache]


def _hash_headers(file: Path, offsets: np.ndarray) -> str:
    """Return a hash of some headers, because another shard may have the same size and time."""
    digest = sha256()
    with open(file, "rb") as stream:
        for i in (0, len(offsets) // 2, len(offsets) - 1) if len(offsets) else ():
            stream.seek(int(offsets[i]) - tarfile.BLOCKSIZE)
            digest.update(stream.read(tarfile.BLOCKSIZE))
    return digest.hexdigest()


def _read_index(place: Path, state: list, file: Path) -> ShardIndex | None:
    """Return the index in a file; None if it is missing, damaged or of another shard."""
    try:
        with np.load(place, allow_pickle=False) as content:
            facts = json.loads(content["facts"].tobytes())
            if facts["state"] != state:
                return None
            offsets, sizes, codes = (content[name] for name in ("offsets", "sizes", "codes"))
        index = ShardIndex(offsets, sizes, codes, facts["labels"])
        if not _fits(index, state[1]) or facts["headers"] != _hash_headers(file, index.offsets):
            return None
    except Exception:  # zipfile, zlib and NumPy raise many kinds for a damaged file
        return None
    return index


def _fits(index: ShardIndex, size: int) -> bool:
    """Return whether an index of unknown origin names images inside the shard, and labels.

    Args:
        index: The index.
        size: Bytes of the shard.
    """
    arrays = (index.offsets, index.sizes, index.codes)
    if any(a.dtype != np.int64 or a.shape != (len(index),) for a in arrays):
        return False
    labels = np.array([isinstance(label, str) for label in index.labels], dtype=bool)
    inside = (index.offsets >= tarfile.BLOCKSIZE) & (index.sizes >= 0)
    inside &= index.sizes <= size - index.offsets
    return bool(
        labels.all() and inside.all() and np.isin(index.codes, np.arange(len(labels))).all()
    )


def _write_index(places: list[Path], state: list, index: ShardIndex, file: Path) -> None:
    headers = _hash_headers(file, index.offsets)
    facts = json.dumps({"state": state, "labels": index.labels, "headers": headers}).encode()
    buffer = io.BytesIO()
    np.savez(
        buffer, offsets=index.offsets, sizes=index.sizes, codes=index.codes,
        facts=np.frombuffer(facts, dtype=np.uint8),
    )  # fmt: skip
    for place in places:
        try:
            with replaced_file(place) as stream:
                stream.write(buffer.getvalue())
            return
        except (OSError, UserError) as e:
            _log.debug("the index %s is not kept: %s", place, e)
