"""Build the loaders and the learner of a recipe."""

import torch

from ltlearn.data import LTDataLoaders
from ltlearn.errors import UserError
from ltlearn.experiments.own_data import read_images
from ltlearn.experiments.recipe import Recipe
from ltlearn.learner import LTLearner, lt_learner

__all__ = [
    "pick_device",
    "make_learner",
    "make_loaders",
    "is_untested",
    "SEEN_WARNING",
    "may_have_seen",
]


def pick_device(name: str) -> torch.device:
    """Turn a device setting into a device; "auto" takes CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    there = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if not there[device.type]() or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UserError(f"there is no device {name} here; use --device cpu or auto.")
    return device


def make_learner(recipe: Recipe, dls: LTDataLoaders, precision: str, cache_path) -> LTLearner:
    """Create the learner of a recipe."""
    model = recipe.model.model_dump(exclude={"arch"}, exclude_none=True)
    return lt_learner(
        dls,
        recipe.model.arch,
        precision=precision,
        cache_path=cache_path,
        few=recipe.data.few,
        **model,
    )


def make_loaders(
    recipe: Recipe,
    data_path,
    seed: int,
    skip_bad: bool,
    device,
    num_workers: int | None = None,
    follow_links: bool = False,
) -> LTDataLoaders:
    """Create the loaders of a recipe."""
    how = {
        **recipe.data.model_dump(exclude={"dataset", "source", "few"}, exclude_none=True),
        "protocol": recipe.protocol,
        "bs": recipe.stage1.batch_size,
        "seed": seed,
        "skip_bad": skip_bad,
        "device": device,
    }
    if recipe.data.dataset != "own":
        name = recipe.data.dataset
        return LTDataLoaders.from_dataset(name, data_path, follow_links=follow_links, **how)
    dls = read_images(data_path, num_workers=num_workers, **how)
    if dls.test is None:
        # Whatever is measured is measured on these; every table says so, see `_is_untested`.
        dls.loaders.append(dls.valid)
    return dls


def is_untested(dls: LTDataLoaders) -> bool:
    """Tell whether the test loader is the validation loader, for want of a test set."""
    return dls.split.test is None


SEEN_WARNING = (
    "The validation images are carved off images that the given model may have been trained on: "
    "accuracy on them is too high, and what is chosen on them may be chosen badly. Add a folder of "
    "validation images that it has not seen."
)


def may_have_seen(recipe: Recipe, dls: LTDataLoaders) -> bool:
    """Tell whether a model that came trained may know its validation images."""
    return recipe.model.keep_head and dls.split.valid_from == "training images"
