"""A backend of torch.compile that compiles nothing, and its fixture."""

import copy
from functools import partial

import pytest
import torch


class Compiler:
    """In the place of inductor, which takes a minute: runs what it is given, and counts.

    Weights that a graph holds stay as they are at the compilation, as inductor's constants do.
    """

    def __init__(self):
        self.graphs, self.inputs, self.error, self.after = 0, [], None, 0

    @property
    def sizes(self):
        """Return the rows of each batch that ran, for graphs whose last input is the batch."""
        return [len(x) for x in self.inputs]

    def __call__(self, graph, inputs):
        self.graphs += 1
        if self.error is not None and self.graphs > self.after:
            raise self.error
        kept = copy.deepcopy(graph)

        def run(*args):
            self.inputs.append(args[-1])
            return kept(*args)

        return run


@pytest.fixture
def compiler(monkeypatch):
    """Return the backend that torch.compile has for the length of a test."""
    torch._dynamo.reset()
    made = Compiler()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=made))
    yield made
    torch._dynamo.reset()
