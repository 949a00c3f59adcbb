"""How many augmented views of cached features stage 2 needs: SAMN from one finished stage 1.

    ltlearn recipe cifar10_lt --data DIR --set model.width=16 --set stage1.epochs=60 --out RUN
    python benchmarks/views.py RUN --data DIR [--views 1 2 4 8] [--seeds 3]

Prints class-balanced accuracy on the validation images (the test set is not read): of the best
epoch, and the mean of the last five.
"""

import argparse
import statistics

from ltlearn import SAMN, LTDataLoaders, lt_learner
from ltlearn.utils.run_folder import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--data")
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    run = Run(args.run)
    values = run.read_json("manifest.json")["values"]
    data, model, stage2 = values["data"], values["model"], values["stage2"]
    keys = ("imbalance_factor", "profile", "split", "valid_pct", "n_max", "test_per_class")
    dls = LTDataLoaders.from_dataset(data["dataset"], args.data, **{k: data[k] for k in keys})
    model = {k: v for k, v in model.items() if v is not None}
    learn = lt_learner(dls, model.pop("arch"), few=data["few"], **model)
    weights = run.load_tensors("checkpoints/seed0-stage1.safetensors")
    print("views  best epoch  last five  (balanced accuracy in % on validation, per seed)")
    for views in args.views:
        best, last = [], []
        for seed in range(args.seeds):
            learn.model.load_state_dict(weights)
            trajectory = learn.retrain_classifier(
                stage2["epochs"], stage2["lr"], views=views, seed=seed, cbs=SAMN()
            )
            best.append(100 * max(trajectory["balanced"]))
            last.append(100 * statistics.mean(trajectory["balanced"][-5:]))
        print(f"{views:5} {statistics.mean(best):11.1f} {statistics.mean(last):10.1f}   ", end="")
        print(" ".join(f"{b:.1f}/{x:.1f}" for b, x in zip(best, last, strict=True)), flush=True)


if __name__ == "__main__":
    main()
