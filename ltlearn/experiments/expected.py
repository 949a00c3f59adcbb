"""Compare a finished run with the published figures of its recipe."""

import json
from dataclasses import dataclass
from typing import Any

from ltlearn.errors import UserError, spell, spell_call
from ltlearn.experiments.manifest import (
    MANIFEST_FILE,
    Manifest,
    how_to_finish,
    read_manifest,
    recorded_recipe,
)
from ltlearn.experiments.read_recipe import load_recipe
from ltlearn.experiments.recipe import Recipe
from ltlearn.experiments.sections import Expected
from ltlearn.methods import METHODS
from ltlearn.utils.run_folder import Run

__all__ = ["Check", "changed_values", "check_run"]


@dataclass(frozen=True)
class Check:
    """A published figure beside the figure of a run.

    Args:
        expected: The published figure.
        measured: Mean accuracy of the run over its seeds, in %.
    """

    expected: Expected
    measured: float

    @property
    def difference(self) -> float:
        """Return how many points the run is above the published figures; negative below them."""
        return self.expected.difference(self.measured)

    @property
    def passed(self) -> bool:
        """Return whether the difference is within the tolerance."""
        return self.expected.passes(self.measured)

    def row(self) -> list[str]:
        """Return method, group, published, measured, difference, tolerance, verdict."""
        return [
            METHODS[self.expected.method].label,
            self.expected.group,
            " to ".join(f"{end:.2f}" for end in self.expected.ends),
            f"{self.measured:.2f}",
            f"{self.difference:+.2f}",
            f"{self.expected.tolerance:g}",
            "inside" if self.passed else "outside",
        ]


def check_run(name: str, run: Run) -> tuple[list[Check], list[str]]:
    """Compare a finished run with the published figures of its recipe.

    Args:
        name: The recipe, as for `load_recipe`.
        run: A folder that `run_recipe` wrote.

    Returns:
        The checks, and the values that differ between run and recipe: "key = value of the run, not
        value of the recipe".

    Raises:
        UserError: If the run is not finished, ran another recipe, or no figure was published under
            its protocol.
    """
    recipe, manifest = load_recipe(name), read_manifest(run)
    if manifest.recipe != recipe.name:
        raise UserError(f"{run.path} is a run of {manifest.recipe}, not of {recipe.name}.")
    if not manifest.is_finished:
        raise UserError(
            f"{run.path} holds no finished run; finish it with {how_to_finish(recipe, run)}."
        )
    # Values that an earlier version did not record get their defaults.
    ran, measured = recorded_recipe(run).settled(), _measured(manifest, run)
    # The values of the run decide which figures apply, such as its imbalance factor and width.
    applying = ran.model_copy(update={"expected": recipe.expected})
    checks = [
        Check(e, measured[e.method, e.group])
        for e in applying.published()
        if e.protocol == ran.protocol and (e.method, e.group) in measured
    ]
    if not checks:
        raise UserError(f"{run.path} cannot be checked: {_why_not(recipe, ran)}.")
    conditions = {key: value for check in checks for key, value in check.expected.when.items()}
    conditions = {"protocol": ran.protocol, **conditions}
    overrides = [f"{key}={json.dumps(value)}" for key, value in conditions.items()]
    return checks, changed_values(load_recipe(name, overrides), ran)


def _measured(manifest: Manifest, run: Run) -> dict[tuple[str, str], float]:
    """Return the accuracies of a run in %, by method and group."""
    try:
        return {
            (row["method"], group): 100 * float(figure["mean"])
            for row in manifest.results["rows"]
            for group, figure in row["summary"].items()
            if figure is not None
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise UserError(
            f"{run.path / MANIFEST_FILE} is damaged: it has no results of its methods."
        ) from None


def _why_not(recipe: Recipe, ran: Recipe) -> str:
    """Return why no published figure applies to a run."""
    if not recipe.expected:
        return f"{recipe.name} has no published figures"
    allowed: dict[str, list[Any]] = {"protocol": [e.protocol for e in recipe.expected]}
    for e in recipe.expected:
        for key, value in e.when.items():
            allowed.setdefault(key, []).append(value)
    for key, values in allowed.items():
        if ran.value(key) not in values:
            choices = " or ".join(str(v) for v in dict.fromkeys(values))
            return (
                f"it has {key} = {ran.value(key)}, and figures were published for {choices}; run "
                f"{spell_call('run_recipe', recipe=recipe.name)} with {spell(key, values[0])}"
            )
    published = ", ".join(dict.fromkeys(e.what for e in recipe.expected))
    return f"it has figures of {', '.join(ran.methods)}, and figures were published of {published}"


def changed_values(recipe: Recipe, ran: Recipe) -> list[str]:
    """Return the values that differ: "key = value of the run, not value of the recipe".

    Args:
        recipe: The recipe.
        ran: The recipe as it ran.
    """
    published, values = recipe.settled().flat(), ran.settled().flat()
    # The values of methods that did not run have no effect.
    unused = tuple(f"method.{name}." for name in {*recipe.method, *ran.method} - {*ran.methods})
    return [
        f"{key} = {values.get(key)!r}, not {published.get(key)!r}"
        for key in {**published, **values}
        if key != "methods" and values.get(key) != published.get(key) and not key.startswith(unused)
    ]
