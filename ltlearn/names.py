"""The values that options may have. Each list stands here once. Imports nothing."""

__all__ = [
    "BATCHED",
    "BN_MODES",
    "DEFAULT_STAGE1",
    "DEFAULT_STAGE2",
    "DEFAULT_WITH_RESET",
    "EXPORT_KINDS",
    "FIGURES",
    "FEW_RULES",
    "FOR_BACKBONE",
    "HEAD_STARTS",
    "MIN_VALID_IMAGES",
    "ON_NAN",
    "PARTS",
    "PART_LABELS",
    "PRECISIONS",
    "PRIORS",
    "PROFILES",
    "PROTOCOLS",
    "RESERVED_OPTIONS",
    "SAMPLER_NAMES",
    "SAMN_STARTS",
    "SCHEDULES",
    "SELECTS",
    "SHOTS",
    "SPLITS",
    "STAGE2_SCHEDULES",
    "STARTS",
    "TRAINABLE_PARTS",
    "TRANSFORM_NAMES",
    "tested_images",
]

PARTS = ("train", "valid", "test")
PART_LABELS = {"train": "training", "valid": "validation", "test": "test"}
PROTOCOLS = ("clean", "paper")
PROFILES = ("exponential", "step")
SPLITS = ("first_n", "shuffle_seed0")
FEW_RULES = ("<20", "<=20")
SHOTS = ("many", "medium", "few")
# The accuracies of a report and of a trajectory: all images, the mean over classes, the groups.
FIGURES = ("all", "balanced", *SHOTS)
SAMPLER_NAMES = ("instance", "class_balanced", "square_root", "progressive")
TRANSFORM_NAMES = (
    "crop_flip",
    "crop",
    "resized_crop_flip",
    "resized_crop_flip_jitter",
    "resized_crop_flip_strong",
    "rising_crop",
    "none",
)
SCHEDULES = ("cosine", "constant", "multistep", "lagged_cosine")
STAGE2_SCHEDULES = ("cosine", "constant")
# Whether trainings of a comparison take their steps together.
BATCHED = ("auto", "always", "never")
SELECTS = ("best", "last")
BN_MODES = ("frozen", "train", "last_block")
# The classifier that stage 2 begins from: the one of stage 1, or the last result.
STARTS = ("stage1", "current")
ON_NAN = ("stop", "skip")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# What a trained model can be exported to.
EXPORT_KINDS = ("timm", "onnx", "torchscript", "hub")
PRIORS = ("uniform", "train", "reversed")
# The part of the backbone that stage 1 trains: all, its last block, or a new last block.
TRAINABLE_PARTS = ("all", "last_block", "new_last_block")
# How a cosine classifier on a pre-trained trunk begins; see `HeadStart`.
HEAD_STARTS = ("class_means", "logistic", "text")
# The norms that SAMN begins with; see `SAMNLinear.from_linear`.
SAMN_STARTS = ("published", "stage1")
# What a method of stage 1 trains: backbone and classifier, or the classifier alone.
TRAINED_PARTS = ("all", "head")
# Arguments of stage 1 that concern the backbone, with the values that change nothing. They have no
# meaning for a method that trains the classifier alone.
FOR_BACKBONE = {
    "warmup_epochs": 0, "milestones": None, "decay": 0.1, "flip": False, "compile": False,
    "sync_bn": False, "grad_checkpointing": False,
}  # fmt: skip
# The weights that a linear probe begins with.
PROBE_STARTS = ("none", "class_means", "logistic")
# Fewer validation images than this, or than one per class, are too few to choose on.
MIN_VALID_IMAGES = 30

# Keys of a recipe that stand beside the options of a method, so that no option may have the name.
_VALUES = ("epochs", "lr", "batch_size", "weight_decay")
RESERVED_OPTIONS = {
    "stage 1": (
        *_VALUES, "momentum", "schedule", "select", "method", "warmup_epochs", "milestones",
        "decay", "accumulate", "ema_decay", "sharpness_rho", "sync_bn", "sampler",
        "trains", "head_start", "grad_checkpointing",
    ),
    "stage 2": _VALUES,
}  # fmt: skip

# The methods that are used if none is named. Help prints them without the table of methods.
DEFAULT_STAGE1 = "ce"
DEFAULT_STAGE2 = "samn"
DEFAULT_WITH_RESET = "crt"  # SAMN needs a trained classifier
# The stage 1 that trains the classifier alone. A method that needs a trained one begins with it.
PROBE = "probe"


def tested_images(protocol: str) -> str:
    """Return which images the results of a table are of: "test" or "validation".

    Args:
        protocol: "clean" or "paper"; "untested" without a test set.
    """
    return PART_LABELS["valid" if protocol == "untested" else "test"]
