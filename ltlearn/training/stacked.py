"""Training steps of several heads over the same features, taken together and without events."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ltlearn.data.device import asynchronous
from ltlearn.heads.stacked import Stack, StackedHeads, parts_of, place_of
from ltlearn.losses.stacked import StackedLoss
from ltlearn.training.finite import FiniteLoss
from ltlearn.training.fit_callback import declared
from ltlearn.training.loop import groups_of_sgd, momentum_of
from ltlearn.training.steps import REPORTED, after_step_of

__all__ = ["StackedEpoch", "in_stack_order", "reason_against_stack"]


def reason_against_stack(fit) -> str:
    """Return why the steps of a fit cannot be taken on stacked heads; empty if they can.

    Args:
        fit: A `HeadLearner` in a fit, none of whose callbacks needs the events of a step.
    """
    groups = groups_of_sgd(fit.opt)
    if groups is None or len(groups) != 1:
        return "the optimiser is not one of ltlearn's sgd()"
    if not groups[0]["momentum"] or groups[0]["nesterov"] or groups[0]["dampening"]:
        return "the optimiser has no plain momentum"
    head = fit.model.head
    if place_of(head) is None:
        return f"a {type(head).__name__} with these options has no stacked form"
    form = StackedHeads([head])
    for cb in fit.cbs:
        if cb.run and declared(cb, "uses_weights_alone"):
            if after_step_of(cb, form) is not None:
                return f"{type(cb).__name__} acts after each step"
    return ""


def in_stack_order(fits: Sequence) -> list:
    """Return fits in the order that `StackedHeads` needs.

    Args:
        fits: `HeadLearner`s.
    """
    return sorted(fits, key=lambda fit: place_of(fit.model.head))


class StackedEpoch:
    """The steps of an epoch of several fits, each with its own draws, loss and learning rate.

    A step launches its kernels once for all fits. The weights of each fit are those that it would
    have alone, up to rounding.

    Args:
        fits: `HeadLearner`s in the training half of an epoch, over the same features and with the
            same sizes of batches. `reason_against_stack` is empty for each.
    """

    def __init__(self, fits: Sequence):
        self._fits = in_stack_order(fits)
        heads = [fit.model.head for fit in self._fits]
        self._device = heads[0].weight.device
        self._heads = StackedHeads(heads)
        momenta = [
            [momentum_of(fit.opt, p) if isinstance(p, nn.Parameter) else None for p in parts]
            for fit, parts in zip(self._fits, map(parts_of, heads), strict=True)
        ]
        self._momenta = Stack(momenta, heads[0].weight)
        losses = [fit.loss_func for fit in self._fits]
        self._loss = StackedLoss(losses, self._heads.weight.shape[1], self._device)
        self._set_rates([groups_of_sgd(fit.opt)[0] for fit in self._fits], momenta)

    def _set_rates(self, groups: list[dict], momenta: list[list[Tensor | None]]) -> None:
        """Make tables of the learning rates, with 0 for what a head does not train."""
        trained = torch.tensor([[p is not None for p in parts] for parts in momenta]).float()
        rates = torch.tensor([group["lr"] for group in groups], dtype=torch.float64)
        table = (trained * rates.unsqueeze(1)).float().t().to(self._device)  # (4, M)
        hypers = torch.tensor([[g["momentum"], g["weight_decay"]] for g in groups]).float()
        self._decays = bool(hypers[:, 1].any())
        momentum, decay = hypers.t().to(self._device)
        self._of_weight = [v.view(-1, 1, 1) for v in (momentum, decay, table[0])]
        self._of_vectors = [v.unsqueeze(-1) for v in (momentum, decay, table[1:])]

    @torch.no_grad()
    def run(self) -> None:
        """Take the steps; report losses and counts every few steps.

        Raises:
            UserError: If a loss is not finite.
        """
        loader = self._fits[0].dl
        data = loader.stored()
        draws = [fit.dl.draws(fit.dl.epoch) for fit in self._fits]
        sizes, on_device = draws[0].sizes, data is not loader.dataset
        tables = [torch.stack(t).transpose(0, 1) for t in zip(*map(_tables, draws), strict=True)]
        if on_device:
            tables = [asynchronous(table.contiguous(), self._device) for table in tables]
        losses = torch.zeros(len(sizes), len(self._fits), device=self._device)
        checks = [cb for fit in self._fits for cb in fit.cbs if isinstance(cb, FiniteLoss)]
        every = min([REPORTED, *(cb.look_every for cb in checks)])
        for fit in self._fits:
            fit.n_iter = len(sizes)
        try:
            for step, size in enumerate(sizes):
                index, *views = [table[step, :, :size].reshape(-1) for table in tables]
                x, y = data.take(index, tuple(views))
                if not on_device and self._device.type == "cuda":
                    x, y = asynchronous(x, self._device), asynchronous(y, self._device)
                losses[step] = self._step(x.view(len(draws), size, -1), y.view(len(draws), size))
                if (step + 1) % every == 0 or step + 1 == len(sizes):
                    first = step // every * every
                    self._report(first, losses[first : step + 1], sizes[first : step + 1])
        finally:
            self._heads.write_back()
            self._momenta.write_back()
        for fit in self._fits:
            fit.dl.epoch += 1  # as a pass over the loader does

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        losses, gradient = self._loss(self._heads.logits(x), y)
        of_weight, of_vectors = self._heads.gradients(x, gradient)
        for values, grad, buffer, (momentum, decay, rate) in (
            (self._heads.weight, of_weight, self._momenta.weight, self._of_weight),
            (self._heads.vectors, of_vectors, self._momenta.vectors, self._of_vectors),
        ):
            if self._decays:
                grad.addcmul_(values, decay)
            buffer.mul_(momentum).add_(grad)
            values.addcmul_(buffer, rate, value=-1)
        self._heads.project_()
        return losses

    def _report(self, first: int, losses: Tensor, images: Sequence[int]) -> None:
        """Give each fit its losses, (S, M); this waits for the device."""
        for fit, own in zip(self._fits, losses.t().tolist(), strict=True):
            checks = [cb for cb in fit.cbs if isinstance(cb, FiniteLoss)]
            for step, loss in enumerate(own, first):
                fit.iter = step  # for the message
                for cb in checks:
                    cb.check(loss)
            fit.report_steps(own, list(images))


def _tables(draws) -> list[Tensor]:
    """Return the rows of each step: the indices of the images, and the view of each."""
    return [table[:, 0] for table in (draws.index, *draws.views)]
