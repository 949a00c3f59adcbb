"""Whether a kept classifier gives timm's logits, for a small architecture of each family of timm.

    python benchmarks/keep_head.py [--archs NAME NAME ...] [--json]

Each model gets random weights and random statistics of its batch normalisations, so that a layer
that is lost in the cut shows. Its state dict is saved and read by `create_lt_model` with
`keep_head=True`. "right": the logits agree. "refused": a sentence names the reason. "wrong": the
logits differ, or another exception ends the call. No weights are downloaded.
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path

import timm
import torch
from torch import nn

from ltlearn import UserError
from ltlearn.models import create_lt_model

CLASSES = 7
# The smallest of each class of model in timm 1.0.31 below 125 million parameters.
ARCHS = """
    beit_base_patch16_224 caformer_s18 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32
    cpubone_nano crossvit_tiny_240 cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny
    deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 densenet121 dla46x_c dpn48b
    edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvim_m1 efficientvim_m1_dist
    efficientvit_b0 efficientvit_l1 efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8
    focalnet_tiny_srf gcvit_xxtiny ghostnet_050 gmlp_ti16_224 halonet_h1 hardcorenas_b hgnetv2_b0
    hiera_tiny_224 hrnet_w18_small iformer_m_distilled iformer_t inception_next_atto
    inception_resnet_v2 inception_v3 inception_v4 lcnet_035 lcnetv2_small legacy_seresnet18
    legacy_xception levit_128s levit_256d levit_384_s8 lowformer_b0 mobilenetv5_base mobilevit_xxs
    mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small pit_ti_224
    pit_ti_distilled_224 pnasnet5large poolformerv2_s12 pvt_v2_b0 qwen3_vit_88m qwen3_vit_88m_enc
    rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnet50_clip resnetv2_18
    rexnet_100 sam2_hiera_tiny samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1 skresnet18
    starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
    swinv2_tiny_window8_256 test_byobnet test_coatnet test_convnext test_efficientnet test_mambaout
    test_nfnet test_resnet test_vit test_vit_relpos tiny_vit_5m_224 tnt_s_legacy_patch16_224
    tresnet_m twins_svt_small visformer_tiny vit_tiny_patch16_dinov3_qkvb vit_tiny_r_s16_p8_224
    vitamin_small_224 volo_d1_224 xception41p xcit_nano_12_p8_224
""".split()


def randomise(model: nn.Module) -> None:
    """Give parameters and statistics of the norms values that matter."""
    for module in model.modules():
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(module, name, None)
            if isinstance(value, torch.Tensor) and value.ndim == 1:
                is_scale = name in ("weight", "running_var")
                noise = torch.rand_like(value) + 0.5 if is_scale else torch.randn_like(value) / 4
                value.data.copy_(noise)
    for parameter in model.parameters():
        if not parameter.any():  # a classifier that begins with zeros
            nn.init.normal_(parameter, std=0.05)


@torch.no_grad()
def check(arch: str, folder: Path) -> tuple[str, str]:
    """Return "right", "refused" or "wrong", and the reason.

    Args:
        arch: The architecture.
        folder: Where the state dict is saved.
    """
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=CLASSES).eval()
    randomise(model)
    torch.save(model.state_dict(), folder / "weights.pth")
    channels, *size = model.pretrained_cfg["input_size"]
    x = torch.randn(2, channels, *size)
    try:
        cut = create_lt_model(arch, CLASSES, folder / "weights.pth", tuple(size), True).eval()
        expected, found = model(x), cut(x)
    except UserError as e:
        return "refused", str(e)
    except Exception as e:
        return "wrong", f"{type(e).__name__}: {e}"
    difference = float((found - expected).abs().max() / expected.std())
    good = difference < 1e-3
    return "right" if good else "wrong", f"differs by {difference:.1e} standard deviations"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="*", default=ARCHS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for arch in args.archs:
            results[arch] = check(arch, Path(folder))
            if not args.json:
                print(f"{arch:44} {results[arch][0]:8} {results[arch][1]}", flush=True)
    counts = {k: sum(r == k for r, _ in results.values()) for k in ("right", "refused", "wrong")}
    if args.json:
        print(json.dumps({"counts": counts, "results": results}, indent=2))
    else:
        print(counts)
    sys.exit(counts["wrong"] > 0)


if __name__ == "__main__":
    main()
