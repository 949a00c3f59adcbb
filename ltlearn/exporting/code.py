"""Lines of Python that turn an image into the input of an exported model."""

from ltlearn.exporting.source import Preprocessing

__all__ = ["describe_input", "pixel_lines"]


def pixel_lines(steps: Preprocessing) -> list[str]:
    """Return lines that read an image as `pixels`, (1, 3, H, W), float32, in [0, 1].

    They need `from PIL import Image`. Pixels are those of the training, but for rounding.

    Args:
        steps: How an image becomes the input.
    """
    height, width = steps.size
    resize = [f"image = image.resize(({width}, {height}), Image.Resampling.BILINEAR)"]
    if not steps.in_memory:
        # Unlike `resize`, `transform` does not smooth, as OpenCV does not.
        whole = "Image.Transform.EXTENT, (0, 0, *image.size), Image.Resampling.BILINEAR"
        resize = [f"image = image.transform(({width}, {height}), {whole})"]
    if steps.crops:
        resize = [
            f"scale = {steps.enlarged} / min(image.size)",
            "size = [round(side * scale) for side in image.size]",
            f"image = image.transform(size, {whole})",
            f"left, top = (image.width - {width}) // 2, (image.height - {height}) // 2",
            f"image = image.crop((left, top, left + {width}, top + {height}))",
        ]
    return [
        'image = Image.open("photo.jpg").convert("RGB")',
        *resize,
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
