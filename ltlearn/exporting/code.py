"""Lines of Python that turn an image into the input of an exported model."""

from ltlearn.exporting.source import Preprocessing

__all__ = ["describe_input", "image_imports", "pixel_lines"]

# Share of a side that is cut off at each edge, so that 224 of 256 pixels remain.
_EDGE = 0.0625


def image_imports(steps: Preprocessing) -> str:
    """Return the import that `pixel_lines` needs.

    Args:
        steps: How an image becomes the input.
    """
    return "from PIL import Image, ImageOps" if steps.crops else "from PIL import Image"


def pixel_lines(steps: Preprocessing) -> list[str]:
    """Return lines that read an image as `pixels`, (1, 3, H, W), float32, in [0, 1].

    Args:
        steps: How an image becomes the input.
    """
    height, width = steps.size
    fit = f"image = image.resize(({width}, {height}), Image.Resampling.BILINEAR)"
    if steps.crops:
        fit = (
            f"image = ImageOps.fit(image, ({width}, {height}), Image.Resampling.BILINEAR, {_EDGE})"
        )
    return [
        'image = Image.open("photo.jpg").convert("RGB")',
        fit,
        "pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255",
    ]


def describe_input(name: str, steps: Preprocessing, normalize: bool, where: str) -> str:
    """Describe the input of a model in a sentence.

    Args:
        name: The name of the input, or "Input".
        steps: How an image becomes the input.
        normalize: Whether the model normalises.
        where: What holds mean and std.
    """
    height, width = steps.size
    pixels = "pixels from 0 to 1" if normalize else f"normalised with the mean and std in {where}"
    return f"{name}: (N, 3, {height}, {width}), float32, RGB, {pixels}."
