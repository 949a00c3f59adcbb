"""Packages that come with an extra of ltlearn."""

from importlib import import_module
from importlib.util import find_spec

from ltlearn.errors import UserError

__all__ = ["check_packages"]


def check_packages(purpose: str, extra: str, *names: str) -> None:
    """Raise a `UserError` if a package is not installed, or cannot be imported.

    Args:
        purpose: What needs the packages.
        extra: The extra of ltlearn that has them.
        names: The packages.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UserError(
            f"{purpose} needs {' and '.join(missing)}; install with pip install 'ltlearn[{extra}]'."
        )
    for name in names:
        try:
            import_module(name)
        except ImportError as e:  # a library of the system is missing, or a version does not fit
            raise UserError(
                f"{purpose} needs {name}, which is installed but cannot be imported ({e}); "
                "uninstall it, and install it again."
            ) from e
