"""Build the loaders and the learner of a recipe."""

import torch

from ltlearn.data import LTDataLoaders
from ltlearn.data.build import leaks_text
from ltlearn.data.datasets import ImageFiles
from ltlearn.defaults import SMALL_SIDE
from ltlearn.errors import UserError, spell
from ltlearn.experiments.options import RunOptions
from ltlearn.experiments.recipe import Recipe
from ltlearn.learner import LTLearner, lt_learner
from ltlearn.training.given import describe_origin

__all__ = [
    "SEEN_WARNING",
    "describe_inputs",
    "describe_leaks",
    "make_learner",
    "make_loaders",
    "may_have_seen",
    "pick_device",
]


def pick_device(name: str) -> torch.device:
    """Turn a device setting into a device.

    Args:
        name: A torch device. "auto" takes CUDA where there is one, else the CPU.

    Raises:
        UserError: If this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    available = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if not available[device.type]() or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UserError(f"this machine has no device {name}; give {spell('device', 'cpu')}.")
    return device


def make_learner(
    recipe: Recipe, dls: LTDataLoaders, options: RunOptions, check: bool = False
) -> LTLearner:
    """Create the learner of a recipe.

    Args:
        recipe: The recipe.
        dls: Its loaders.
        options: Precision and the folder of cached features.
        check: Whether a given model is tried on a few images first, see `lt_learner`.
    """
    model = recipe.model.model_dump(exclude={"arch"}, exclude_none=True)
    return lt_learner(
        dls,
        recipe.model.arch,
        precision=options.precision,
        cache_path=options.cache_path,
        few=recipe.data.few,
        check=check,
        **model,
    )


def make_loaders(recipe: Recipe, seed: int, options: RunOptions) -> LTDataLoaders:
    """Create the loaders of a recipe.

    Args:
        recipe: The recipe.
        seed: The seed of split, order and augmentation.
        options: Where the images are, and how they are read.
    """
    arguments = recipe.data.model_dump(
        exclude={"dataset", "source", "few", "mean", "std", "flip_average"}, exclude_none=True
    )
    if recipe.data.mean is not None:
        arguments["stats"] = (recipe.data.mean, recipe.data.std)
    arguments |= {
        "protocol": recipe.protocol,
        "bs": recipe.stage1.batch_size,
        "seed": seed,
        "skip_bad": options.skip_bad,
        "device": pick_device(options.device),
    }
    if recipe.data.dataset != "own":
        return LTDataLoaders.from_dataset(
            recipe.data.dataset,
            options.data_path,
            follow_links=options.follow_links,
            **arguments,
        )
    dls = LTDataLoaders.from_path(options.data_path, num_workers=options.num_workers, **arguments)
    if dls.test is None:
        # Results are then measured on the validation images, and every table reports that.
        dls.loaders.append(dls.valid)
    return dls


def describe_inputs(learn: LTLearner) -> list[str]:
    """Describe how images enter the model, the order of its outputs, and how it did as given.

    Args:
        learn: A learner of the recipe.
    """
    is_cropped = isinstance(learn.dls.valid.dataset, ImageFiles) and learn.dls.size[0] > SMALL_SIDE
    lines = describe_origin(learn.origin, learn.dls.size[0] if is_cropped else None)
    if learn.as_given is not None:
        lines += [str(learn.as_given), *learn.as_given.warnings]
    return lines


SEEN_WARNING = (
    "The validation images are carved off images that the given model may have been trained on: "
    "accuracy on them is too high, and choices on them may be bad. Add a folder of validation "
    "images that the model has not seen."
)


def describe_leaks(dls: LTDataLoaders) -> str:
    """Return how many images of validation or test are also in training, or no text.

    Args:
        dls: The loaders.
    """
    parts = [leaks_text(part, n) for part, n in dls.leaks.items()]
    return f"{' and '.join(parts)}, so the results are too high." if parts else ""


def may_have_seen(recipe: Recipe, dls: LTDataLoaders) -> bool:
    """Return whether a given model may have been trained on its validation images.

    Args:
        recipe: The recipe.
        dls: Its loaders.
    """
    return recipe.model.keep_head and dls.split.valid_from == "training images"
