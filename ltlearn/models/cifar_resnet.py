"""The ResNets for 32-pixel images of the CIFAR-LT literature, registered with timm.

Importing this module registers `resnet20_cifar`, `resnet32_cifar`, `resnet44_cifar` and
`resnet56_cifar`.
"""

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CifarResNet"]


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A)."""

    def __init__(self, in_chs: int, out_chs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.stride = stride
        self.extra_chs = out_chs - in_chs

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.extra_chs or self.stride != 1:
            # Option A: every second pixel; the new channels are zero, half of them on each side.
            low = self.extra_chs // 2
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, low, self.extra_chs - low)
            )
        return F.relu(out + x, inplace=True)


class CifarResNet(nn.Module):
    """ResNet of He et al. section 4.2: three stages of basic blocks, option-A shortcuts.

    Args:
        depth: Number of layers, 6n + 2 for n blocks per stage: 20, 32, 44, 56.
        width: Channels of the first stage; the others have 2 and 4 times as many. The paper, LDAM,
            MiSLAS and BOT use 16; GLMC and SAMN use 64. Accuracies are not comparable between
            widths.
        num_classes: Number of classes; 0 gives pooled features.
        in_chans: Channels of the input.
        global_pool: "avg", or "" for the feature map.
        drop_rate: Dropout before the classifier, in [0, 1).

    Shape:
        Input (N, in_chans, H, W), H and W at least 4. Output (N, num_classes) logits, or (N, 4 *
        width).

    Raises:
        ValueError: If `depth` is not 6n + 2.

    Source:
        He et al., CVPR 2016, arXiv:1512.03385, section 4.2; Kaiming-normal initialisation as in
        LDAM-DRW.

    Example:
        >>> CifarResNet(depth=32, num_classes=100)(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 100])
    """

    def __init__(
        self,
        depth: int,
        width: int = 16,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        super().__init__()
        if (depth - 2) % 6 or depth < 8:
            raise ValueError(f"depth must be 6n + 2 (20, 32, 44, 56, ...), got {depth}.")
        self.num_classes, self.drop_rate, self.global_pool = num_classes, drop_rate, global_pool
        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        # A module, because timm's `features_only` runs the modules one by one.
        self.act1 = nn.ReLU(inplace=True)
        blocks = (depth - 2) // 6
        chs = width
        for stage in range(3):
            out_chs = width * 2**stage
            layers = []
            for i in range(blocks):
                layers.append(_BasicBlock(chs, out_chs, 2 if stage and i == 0 else 1))
                chs = out_chs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.num_features = self.head_hidden_size = chs
        self.feature_info = [
            {"num_chs": width * 2**s, "reduction": 2**s, "module": f"layer{s + 1}"}
            for s in range(3)
        ]
        self.fc = nn.Linear(chs, num_classes) if num_classes else nn.Identity()
        for m in self.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(m.weight)

    def get_classifier(self) -> nn.Module:
        """Return the classifier (timm's protocol)."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (timm's protocol)."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Name the layer groups for layer-wise learning rates (timm's protocol)."""
        return {
            "stem": r"^conv1|bn1",
            "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)",
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Raise an error: the network is too small to gain from checkpointing."""
        if enable:
            raise ValueError("CifarResNet does not support gradient checkpointing.")

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, (N, 4 * width, H / 4, W / 4)."""
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify; return the pooled features with `pre_logits`."""
        if not self.global_pool:
            return x
        x = x.mean((2, 3))
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch."""
        return self.forward_head(self.forward_features(x))


def _cfg() -> dict:
    return {
        "num_classes": 1000,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2023, 0.1994, 0.2010),
        "first_conv": "conv1",
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs(
    {f"resnet{d}_cifar.untrained": _cfg() for d in (20, 32, 44, 56)}
)


def _create(variant: str, depth: int, pretrained: bool, **kwargs) -> CifarResNet:
    features = {"out_indices": (0, 1, 2)}
    return build_model_with_cfg(
        CifarResNet, variant, pretrained, depth=depth, feature_cfg=features, **kwargs
    )


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs) -> CifarResNet:
    """ResNet-20, 0.27 M parameters at width 16."""
    return _create("resnet20_cifar", 20, pretrained, **kwargs)


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs) -> CifarResNet:
    """ResNet-32, 0.46 M parameters at width 16, 7.4 M at width 64."""
    return _create("resnet32_cifar", 32, pretrained, **kwargs)


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs) -> CifarResNet:
    """ResNet-44, 0.66 M parameters at width 16."""
    return _create("resnet44_cifar", 44, pretrained, **kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs) -> CifarResNet:
    """ResNet-56, 0.85 M parameters at width 16."""
    return _create("resnet56_cifar", 56, pretrained, **kwargs)
