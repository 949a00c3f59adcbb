"""Find images to look at in the data of a finished run."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ltlearn.cleaning.actions import carry_out
from ltlearn.cleaning.find import check_extra, check_kinds, find_issues
from ltlearn.cleaning.images import LoadedImages
from ltlearn.cleaning.issues import Issues
from ltlearn.errors import UserError, spell
from ltlearn.experiments.manifest import finished_seeds, recorded_recipe
from ltlearn.experiments.stages import load_stage1
from ltlearn.learner import LTLearner
from ltlearn.utils.atomic import replaced_file
from ltlearn.utils.run_folder import Run, waits_for_run

__all__ = [
    "CLEANED_CSV",
    "CLEAN_CSV",
    "CLEAN_HTML",
    "apply_actions",
    "clean_run",
    "load_for_cleaning",
]

CLEAN_CSV, CLEAN_HTML, CLEANED_CSV = "clean.csv", "clean.html", "cleaned.csv"


@waits_for_run
def clean_run(
    run: Run,
    kinds: Sequence[str] | str | None = None,
    *,
    notify: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Issues:
    """Find images to look at in the data of a run; write `clean.csv` and `clean.html` into it.

    Args:
        run: A run whose stage 1 is finished.
        kinds: The kinds to search, of `ltlearn.cleaning.KINDS`; None searches all.
        notify: Called with a line of text at each step.
        **options: As for `load_for_cleaning`.

    Raises:
        UserError: If the extra `clean` is not installed, or as for `load_for_cleaning`.

    Example:
        >>> print(clean_run(Run("runs/digits")))  # doctest: +SKIP
    """
    check_extra()
    check_kinds(kinds)
    seed, learn = load_for_cleaning(run, **options)
    notify(f"images are judged by the stage 1 of seed {seed}")
    issues = find_issues(learn, kinds, seed)
    issues.to_csv(run.inside(CLEAN_CSV))
    issues.to_html(run.inside(CLEAN_HTML), f"Images to look at in {run.path.resolve().name}")
    return issues


@waits_for_run
def apply_actions(run: Run, actions: str | Path, **options: Any) -> int:
    """Write `cleaned.csv` into a run: the list of its images after actions on findings.

    Args:
        run: A run whose stage 1 is finished.
        actions: A `clean.csv` with "drop" or "relabel" in the column `action`.
        **options: As for `load_for_cleaning`.

    Returns:
        The number of images in the list.

    Raises:
        UserError: If an action cannot be carried out, the images are not in files, or as for
            `load_for_cleaning`.
    """
    images = LoadedImages(load_for_cleaning(run, **options)[1].dls)
    table = carry_out(images, actions)
    if not all(map(os.path.isfile, table["image"])):
        raise UserError(
            f"the images of {run.path} are not in files, so no list can name them; use "
            "learn.find_issues().cleaned() in Python."
        )
    with replaced_file(run.inside(CLEANED_CSV)) as file:
        file.write(table.to_csv(index=False).encode("utf-8", "surrogateescape"))
    return len(table)


def load_for_cleaning(
    run: Run,
    *,
    seed: int | None = None,
    data_path: str | Path | None = None,
    cache_path: str | Path | None = None,
    device: str = "auto",
    allow_hub: bool = False,
) -> tuple[int, LTLearner]:
    """Return a seed of a run, and the learner with its stage 1.

    Args:
        run: A run whose stage 1 is finished.
        seed: The seed whose stage 1 and split are used; None takes the first.
        data_path: Where the images are; None takes the path in the run's manifest.
        cache_path: Folder of cached features; None keeps them in memory.
        device: "auto" or a torch device.
        allow_hub: Whether the architecture may be one of the Hugging Face hub or of a local folder.

    Raises:
        UserError: If the folder holds no run with a finished stage 1 of that seed, or the images
            have changed.
    """
    recipe = recorded_recipe(run)
    seeds = finished_seeds(run, recipe)
    if seed is not None and seed not in seeds:
        raise UserError(
            f"{run.path} has no finished stage 1 of {spell('seed', seed)}; it has "
            f"{', '.join(map(str, seeds))}."
        )
    seed = seeds[0] if seed is None else seed
    learn = load_stage1(
        recipe, run, seed, data_path=data_path, cache_path=cache_path, device=device,
        allow_hub=allow_hub,
    )  # fmt: skip
    return seed, learn
