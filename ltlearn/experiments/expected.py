"""Does a finished run reach the published figures of its recipe?"""

import json
from dataclasses import dataclass

from ltlearn.errors import UserError
from ltlearn.experiments.read_recipe import load_recipe, validate_recipe
from ltlearn.experiments.recipe import Expected, Recipe
from ltlearn.methods import METHODS
from ltlearn.utils.run_folder import Run

__all__ = ["Check", "check_run"]


@dataclass(frozen=True)
class Check:
    """A published figure beside a run's.

    Args:
        expected: What was published.
        measured: Mean accuracy of the run over its seeds, in %.
    """

    expected: Expected
    measured: float

    @property
    def difference(self) -> float:
        """Return how far the run is above the published figure, in points."""
        return self.measured - self.expected.accuracy

    @property
    def passed(self) -> bool:
        """Tell whether the run is inside the tolerance, above or below."""
        return abs(self.difference) <= self.expected.tolerance + 1e-9

    def row(self) -> list[str]:
        """Return method, group, published, measured, difference, tolerance, verdict."""
        return [
            METHODS[self.expected.method].label,
            self.expected.group,
            f"{self.expected.accuracy:.2f}",
            f"{self.measured:.2f}",
            f"{self.difference:+.2f}",
            f"{self.expected.tolerance:g}",
            "inside" if self.passed else "outside",
        ]


def check_run(name: str, run: Run) -> tuple[list[Check], list[str]]:
    """Compare a finished run with the published figures of its recipe.

    Args:
        name: The recipe, as for `load_recipe`.
        run: A folder that `ltlearn recipe` wrote.

    Returns:
        The checks, and the values that the run has otherwise than the recipe: "key = run's, not
        recipe's".

    Raises:
        UserError: If the run is not finished, is of another recipe, or has no figure that was
            published under its protocol.
    """
    recipe = load_recipe(name)
    manifest = run.read_json("manifest.json")
    where = run.path / "manifest.json"
    if not isinstance(manifest, dict) or manifest.get("status") != "finished":
        raise UserError(f"{run.path} holds no finished run; finish it with --resume first.")
    if manifest.get("recipe") != recipe.name:
        raise UserError(f"{run.path} is a run of {manifest.get('recipe')}, not of {recipe.name}.")
    values = manifest.get("values")
    if not isinstance(values, dict):
        raise UserError(f"{where} is damaged: it has no values of a recipe.")
    done = validate_recipe(values, str(where))
    # Which figures apply, the run's own values decide: its imbalance factor, its width.
    applying = done.model_copy(update={"expected": recipe.expected})
    try:
        measured = {
            (row["method"], group): 100 * float(figure["mean"])
            for row in manifest["results"]["rows"]
            for group, figure in row["summary"].items()
            if figure is not None
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{where} is damaged: it has no results of its methods.") from None
    checks = [
        Check(e, measured[e.method, e.group])
        for e in applying.published()
        if e.protocol == done.protocol and (e.method, e.group) in measured
    ]
    if not checks:
        raise UserError(f"{run.path} cannot be checked: {_why_not(recipe, done)}.")
    decided = {key: value for check in checks for key, value in check.expected.when.items()}
    given = {"protocol": done.protocol, **decided}
    published = load_recipe(name, [f"{key}={json.dumps(value)}" for key, value in given.items()])
    return checks, _changes(published, done)


def _why_not(recipe: Recipe, done: Recipe) -> str:
    """Say why no published figure applies to a run."""
    if not recipe.expected:
        return f"{recipe.name} has no published figures"
    keys = dict.fromkeys(key for e in recipe.expected for key in e.when)
    asked = {"protocol": [e.protocol for e in recipe.expected]}
    asked |= {key: [e.when[key] for e in recipe.expected if key in e.when] for key in keys}
    for key, allowed in asked.items():
        if done.value(key) not in allowed:
            there = " or ".join(str(v) for v in dict.fromkeys(allowed))
            option = (
                f"--protocol {allowed[0]}" if key == "protocol" else f"--set {key}={allowed[0]}"
            )
            return (
                f"it has {key} = {done.value(key)}, and was published for {there}; run "
                f"`ltlearn recipe {recipe.name} {option}`"
            )
    there = ", ".join(dict.fromkeys(e.what for e in recipe.expected))
    return f"it has figures of {', '.join(done.methods)}, and {there} were published"


def _changes(recipe: Recipe, done: Recipe) -> list[str]:
    published, ran = recipe.settled().flat(), done.settled().flat()
    others = {f"method.{name}." for name in {*recipe.method, *done.method} - {*done.methods}}
    return [
        f"{key} = {ran.get(key)!r}, not {published.get(key)!r}"
        for key in {**published, **ran}
        if key != "methods"
        and ran.get(key) != published.get(key)
        # What a method would have, had it been run.
        and not any(key.startswith(other) for other in others)
    ]
