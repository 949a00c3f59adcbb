import math

import pytest
from fastai.callback.core import Callback

from ltlearn import UserError
from ltlearn.callbacks.schedule import EpochCosine, LoaderEpoch
from tests.callbacks.test_samn import OPTIMIZERS, make_learner, two_groups
