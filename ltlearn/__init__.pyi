"""The types of the names that `ltlearn/__init__.py` loads on first use."""

from ltlearn.callbacks import GLMC as GLMC
from ltlearn.callbacks import SAMN as SAMN
from ltlearn.callbacks import AdaptFormer as AdaptFormer
from ltlearn.callbacks import BatchCutMix as BatchCutMix
from ltlearn.callbacks import BatchMixUp as BatchMixUp
from ltlearn.callbacks import BitFit as BitFit
from ltlearn.callbacks import CosineHead as CosineHead
from ltlearn.callbacks import DeferredReweighting as DeferredReweighting
from ltlearn.callbacks import Experts as Experts
from ltlearn.callbacks import HeadStart as HeadStart
from ltlearn.callbacks import LastBlock as LastBlock
from ltlearn.callbacks import LayerDecay as LayerDecay
from ltlearn.callbacks import LearnableWeightScaling as LearnableWeightScaling
from ltlearn.callbacks import LoRA as LoRA
from ltlearn.callbacks import MaxNorm as MaxNorm
from ltlearn.callbacks import SharpnessAware as SharpnessAware
from ltlearn.callbacks import WeightAverage as WeightAverage
from ltlearn.data import ClassBalancedSampler as ClassBalancedSampler
from ltlearn.data import InstanceSampler as InstanceSampler
from ltlearn.data import ProgressiveSampler as ProgressiveSampler
from ltlearn.data import SquareRootSampler as SquareRootSampler
from ltlearn.data.loaders import LTDataLoaders as LTDataLoaders
from ltlearn.errors import UserError as UserError
from ltlearn.heads import register_head as register_head
from ltlearn.heads.cosine import CosineLinear as CosineLinear
from ltlearn.heads.samn import SAMNLinear as SAMNLinear
from ltlearn.heads.scaled import ScaledLinear as ScaledLinear
from ltlearn.interpretation import LTInterpretation as LTInterpretation
from ltlearn.isotonic import pava as pava
from ltlearn.learner import LTLearner as LTLearner
from ltlearn.learner import lt_learner as lt_learner
from ltlearn.methods import Method as Method
from ltlearn.methods import Sweep as Sweep
from ltlearn.methods import register_method as register_method
from ltlearn.metrics.report import ShotReport as ShotReport
from ltlearn.metrics.report import shot_report as shot_report
from ltlearn.training.checkpoint import Checkpoint as Checkpoint
from ltlearn.training.features import FeatureBank as FeatureBank
from ltlearn.training.finite import FiniteLoss as FiniteLoss

__version__: str
