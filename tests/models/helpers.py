"""Small variants of timm models."""

SMALL = {
    "resnet20_cifar": {"width": 4},
    "resnet10t": {},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 24)},
    "vit_tiny_patch16_224": {"depth": 1, "embed_dim": 24, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 12},
    "mobilenetv3_small_050": {},
}
