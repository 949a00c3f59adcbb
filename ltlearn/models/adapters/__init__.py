"""Small modules that adapt a frozen trunk: AdaptFormer's branches and LoRA."""

from ltlearn.models.adapters.adaptformer import AdapterBranch
from ltlearn.models.adapters.kinds import ADAPTFORMER, LORA, AdapterKind, fit_adapters, has_branches
from ltlearn.models.adapters.lora import LoRALinear, merge_lora

__all__ = [
    "ADAPTFORMER",
    "LORA",
    "AdapterBranch",
    "AdapterKind",
    "LoRALinear",
    "fit_adapters",
    "has_branches",
    "merge_lora",
]
