"""What tests of several ranks run, on one rank and on two: each part returns JSON values."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation
from torch import nn

from ltlearn import LTDataLoaders, LTLearner, set_seed_everywhere if False else LTLearner
