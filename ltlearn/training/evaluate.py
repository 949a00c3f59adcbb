"""Run a model in evaluation mode over a loader."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ltlearn.data.loader import LTDataLoader
from ltlearn.errors import UserError
from ltlearn.models.backbone import device_of, evaluating
from ltlearn.training.collectives import gather_rows

__all__ = ["run_model"]


@torch.no_grad()
def run_model(
    model: nn.Module,
    dl,
    context,
    flip: bool = False,
    read=lambda logits: logits,
    together: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Run a model in evaluation mode over a loader, then restore its mode.

    Args:
        model: The model.
        dl: The loader.
        context: Makes the context that the model runs in, such as autocast.
        flip: Whether to average the logits of each image and its mirror image.
        read: Reduces the logits of a batch to the values to keep.
        together: Whether all ranks call this, so that each runs the model on its rows.

    Returns:
        The kept values and the targets of all images; None for the targets of images without one.

    Raises:
        UserError: If the loader is empty.
    """
    device, logits, targets = device_of(model), [], []
    together = together and isinstance(dl, LTDataLoader)
    with evaluating(model), dl.cut_by_rank() if together else nullcontext():
        for x, *rest in dl:
            x = x.to(device)
            with context():
                out = model(x).float()
                if flip:
                    out = (out + model(x.flip(-1)).float()) / 2
            if together:
                out = gather_rows(out, len(rest[0]))
            logits.append(read(out))
            targets += rest
    if not logits:
        raise UserError("there is no data to evaluate; an exported learner has none: set its dls.")
    return torch.cat(logits), torch.cat(targets) if targets else None
