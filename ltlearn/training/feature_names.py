"""Names of what changes an image before the backbone, for the key of cached features."""

__all__ = ["is_plain", "normalize_name", "transform_name"]


def transform_name(dataset) -> str:
    """Return a name of the transform that training applies to each image.

    Args:
        dataset: The dataset of a loader.
    """
    transform = getattr(dataset, "transform", "")
    if isinstance(transform, str):
        augment = getattr(dataset, "augment", None)
        return f"{transform}, pad {getattr(augment, 'pad', None)}, in memory"
    return f"{transform.name}, pad {transform.pad}"


def is_plain(dataset) -> bool:
    """Return whether training transforms images as evaluation does, so that all views are equal.

    Args:
        dataset: The dataset of a loader.
    """
    transform = getattr(dataset, "transform", "")
    name = transform if isinstance(transform, str) else transform.name
    # A transform of the user's for a batch may draw at random.
    return name == "none" and not getattr(dataset, "tfms_name", "")


def normalize_name(dl) -> str:
    """Return a name of the normalisation of a loader.

    Args:
        dl: An `LTDataLoader`.
    """
    return ";".join(
        f"{t.mean.flatten().tolist()} {t.std.flatten().tolist()}"
        for t in dl.after_batch.fs
        if hasattr(t, "std")
    )
