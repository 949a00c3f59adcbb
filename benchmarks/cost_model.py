"""Compute time, memory and disk of both stages from the size of a dataset; measure nothing.

`python benchmarks/scale.py fit` measures the terms of `Terms` on a CPU, and `scale.py model` prints
the tables. A figure of a GPU is an estimate from published peak figures.
"""

from dataclasses import asdict, dataclass

# Published peaks: NVIDIA's data sheet of the H100 SXM (dense bf16, memory, NVLink in one direction)
# and InfiniBand NDR.
PEAK_FLOPS, HBM_BYTES_S, NVLINK_BYTES_S, NETWORK_BYTES_S = 989e12, 3.35e12, 450e9, 50e9
# These are assumed: the shares of the peak that convolutions with batch norm and the products of a
# classifier reach, and the least time of a step.
NETWORK_SHARE, HEAD_SHARE, STEP_FLOOR_S, HEAD_STEP_FLOOR_S = 0.1, 0.35, 2e-3, 1e-4
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Terms:
    """The terms that are measured on one core of a CPU, in CPU seconds and bytes."""

    decode_s: float  # per image: opening and the rest
    decode_pixel_s: float  # per pixel of the JPEG
    train_flop_s: float  # per FLOP of a training step of stage 1
    extract_flop_s: float  # per FLOP of extraction
    head_step_s: float  # a step of stage 2: overhead
    head_flop_s: float  # per FLOP (6 x batch x classes x features)
    head_weight_s: float  # per weight of the head (gradient, momentum, update)
    samn_step_s: float  # what SAMN adds to a step
    samn_class_s: float  # per class (PAVA and the order)
    samn_weight_s: float  # per weight
    pava_class_s: float  # PAVA alone, per class
    table_row_s: float  # a row of a CSV
    table_row_bytes: float  # Python objects that stay
    table_row_peak_bytes: float  # at the peak, while the table is read
    shard_sample_s: float  # a sample of a shard: its headers and label
    shard_sample_bytes: float
    order_s: float  # per image: the order of an epoch, class-balanced
    order_bytes: float
    hash_byte_s: float  # fingerprint, per byte of the files

    def to_dict(self) -> dict:
        return asdict(self)

    def decode(self, pixels: float) -> float:
        """Return the CPU seconds to read, crop and resize a JPEG."""
        return self.decode_s + self.decode_pixel_s * pixels

    def head_step(self, batch: int, classes: int, width: int, samn: bool) -> float:
        """Return the CPU seconds of a step of stage 2."""
        weights = classes * width
        seconds = self.head_step_s + self.head_flop_s * 6 * batch * weights
        seconds += self.head_weight_s * weights
        if samn:
            seconds += self.samn_step_s + self.samn_class_s * classes
            seconds += self.samn_weight_s * weights
        return seconds


@dataclass(frozen=True)
class ImageNetwork:
    name: str
    forward_flops: float  # of an image
    weights: float
    width: int


# Multiply-adds count as two FLOPs.
RESNET32 = ImageNetwork("ResNet-32", 0.139e9, 0.46e6, 64)
RESNET50 = ImageNetwork("ResNet-50", 8.2e9, 23.5e6, 2048)


@dataclass(frozen=True)
class Dataset:
    name: str
    images: float
    classes: int
    network: ImageNetwork
    epochs: int
    batch: int
    pixels: float = 200_000  # of a JPEG; 0 for images in memory
    file_bytes: float = 110_000
    head_epochs: int = 20
    head_batch: int = 512


SETS = (
    Dataset("CIFAR-100-LT, 100", 10_847, 100, RESNET32, 200, 64, 0, 3_072, head_batch=64),
    Dataset("ImageNet-LT", 115_846, 1_000, RESNET50, 90, 256),
    Dataset("iNaturalist 2018", 437_513, 8_142, RESNET50, 90, 512),
    Dataset("10 M images, 10,000 classes", 10e6, 10_000, RESNET50, 30, 1_024),
    Dataset("10 M images, 1 M classes", 10e6, 1_000_000, RESNET50, 30, 1_024),
    Dataset("1 B images, 10,000 classes", 1e9, 10_000, RESNET50, 2, 8_192),
)


def head_flops(data: Dataset) -> float:
    """Return the FLOPs of the classifier for an image, forward and backward."""
    return 6 * data.classes * data.network.width


def stage1_step_s(data: Dataset, gpus: int) -> float:
    """Return the estimated seconds of a step on GPUs: arithmetic, the head's bytes, all-reduce."""
    each = data.batch / gpus
    head_bytes = 4 * data.classes * data.network.width
    network = 3 * data.network.forward_flops / (PEAK_FLOPS * NETWORK_SHARE)
    seconds = each * (network + head_flops(data) / (PEAK_FLOPS * HEAD_SHARE))
    seconds = max(STEP_FLOOR_S, seconds)
    seconds += 6 * head_bytes / HBM_BYTES_S  # read, gradient twice, momentum twice, write
    if gpus > 1:
        gradients = 4 * data.network.weights + head_bytes
        link = NVLINK_BYTES_S if gpus <= GPUS_PER_NODE else NETWORK_BYTES_S
        seconds += 2 * gradients * (gpus - 1) / gpus / link
    return seconds


def stage1_s(data: Dataset, gpus: int) -> float:
    return data.epochs * data.images / data.batch * stage1_step_s(data, gpus)


def extraction_s(data: Dataset, gpus: int) -> float:
    """Return the estimated seconds of one view of all images; each GPU takes its share."""
    return data.images * data.network.forward_flops / (gpus * PEAK_FLOPS * NETWORK_SHARE)


def stage2_s(data: Dataset) -> float:
    """Return the estimated seconds of SAMN on cached features, on one GPU; PAVA not included."""
    weights = data.classes * data.network.width
    flops = 6 * data.head_batch * weights / (PEAK_FLOPS * HEAD_SHARE)
    logits = 4 * 4 * data.head_batch * data.classes / HBM_BYTES_S
    # As in stage 1, and three passes more: norms, scaling, the gradient through the norms.
    step = max(HEAD_STEP_FLOOR_S, flops + logits + 9 * 4 * weights / HBM_BYTES_S)
    return data.head_epochs * data.images / data.head_batch * step


def device_bytes(data: Dataset, gpus: int) -> float:
    """Return the bytes of the head on a GPU: weights, gradient, momentum, logits twice."""
    return 3 * 4 * data.classes * data.network.width + 2 * 4 * data.batch / gpus * data.classes


def cores_to_feed(data: Dataset, gpus: int, terms: Terms) -> float:
    """Return how many CPU cores decode as many images as the GPUs train on."""
    if not data.pixels:
        return 0.0
    return data.batch / stage1_step_s(data, gpus) * terms.decode(data.pixels)


def index_bytes(data: Dataset, terms: Terms) -> tuple[float, float]:
    """Return the bytes of the index of a table and of shards: order, digests, targets included."""
    each = terms.order_bytes + 32 + 8
    return data.images * (terms.table_row_bytes + each), data.images * (
        terms.shard_sample_bytes + each
    )


def feature_bytes(data: Dataset) -> float:
    return 2 * data.images * data.network.width


def show_seconds(seconds: float) -> str:
    units = ((1, "ms", 1e-3), (60, "s", 1), (3_600, "min", 60), (172_800, "h", 3_600))
    for limit, unit, size in units:
        if seconds < limit:
            value = seconds / size
            return f"{max(value, 0.1):.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86_400:,.0f} days"


def show_bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1_000 or unit == "TB":
            return f"{number:.2g} {unit}" if number < 10 else f"{number:,.0f} {unit}"
        number /= 1_000
    return ""


def tables(terms: Terms, gpus: tuple[int, ...] = (1, 8, 64)) -> str:
    """Return the tables of the model in Markdown."""
    lines = ["| set | " + " | ".join(f"stage 1, {g} GPU{'s' * (g > 1)}" for g in gpus) + " | "
             + " | ".join(f"extraction, {g}" for g in gpus) + " | stage 2, 1 GPU |",
             "| --- |" + " ---: |" * (2 * len(gpus) + 1)]  # fmt: skip
    for data in SETS:
        cells = [show_seconds(stage1_s(data, g)) for g in gpus]
        cells += [show_seconds(extraction_s(data, g)) for g in gpus]
        cells.append(show_seconds(stage2_s(data)))
        lines.append(f"| {data.name} | " + " | ".join(cells) + " |")
    lines += ["", "| set | head on each of 8 GPUs | CPU cores to feed 1 / 8 / 64 | index, table | "
              "index, shards | features | images |", "| --- |" + " ---: |" * 6]  # fmt: skip
    for data in SETS:
        cores = " / ".join(f"{cores_to_feed(data, g, terms):,.0f}" for g in gpus)
        table, shards = index_bytes(data, terms)
        cells = [show_bytes(device_bytes(data, 8)), cores if data.pixels else "none"]
        cells += [show_bytes(table), show_bytes(shards), show_bytes(feature_bytes(data)),
                  show_bytes(data.images * data.file_bytes)]  # fmt: skip
        lines.append(f"| {data.name} | " + " | ".join(cells) + " |")
    lines += ["", "| set | once: read a table | once: index shards | once: fingerprint | "
              "each epoch: order | each epoch: decode | a step of SAMN, stage 2 |",
              "| --- |" + " ---: |" * 6]  # fmt: skip
    for data in SETS:
        cells = [terms.table_row_s * data.images, terms.shard_sample_s * data.images,
                 terms.hash_byte_s * data.file_bytes * data.images, terms.order_s * data.images,
                 terms.decode(data.pixels) * data.images if data.pixels else 0.0,
                 terms.head_step(data.head_batch, data.classes, data.network.width, samn=True),
                 ]  # fmt: skip
        shown = [show_seconds(c) if c else "none" for c in cells]
        lines.append(f"| {data.name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)
