"""Run a model in evaluation mode over a loader."""

from itertools import chain

import torch
from torch import Tensor, nn

from ltlearn.models.backbone import evaluating

__all__ = ["run_model"]


@torch.no_grad()
def run_model(
    model: nn.Module, dl, context, flip: bool = False, read=lambda logits: logits
) -> tuple[Tensor, Tensor]:
    """Run a model in evaluation mode over a loader; it is left in the mode it was found in.

    `read` says what to keep of the logits of a batch.
    """
    # A head without parameters, such as the nearest class mean, has its buffers.
    device = next(chain(model.parameters(), model.buffers())).device
    logits, targets = [], []
    with evaluating(model):
        for x, y in dl:
            x = x.to(device)
            with context():
                out = model(x).float()
                if flip:
                    out = (out + model(x.flip(-1)).float()) / 2
            logits.append(read(out))
            targets.append(y)
    return torch.cat(logits), torch.cat(targets)
