"""Log both stages of a training to MLflow: pip install mlflow, then python mlflow_tracker.py.

The runs go to the file mlflow.db in the current folder. `mlflow ui --backend-store-uri
sqlite:///mlflow.db` shows them. The smaller package mlflow-skinny knows servers and folders alone:
`main("file:///tmp/mlruns")` with MLFLOW_ALLOW_FILE_STORE=true in the environment.
"""

import mlflow
from fastai.callback.core import Callback

from ltlearn import SAMN, LTDataLoaders, lt_learner


class MLflowCallback(Callback):
    """Log the figures of each epoch, and the settings of each stage.

    Args:
        stage: Prefix of the names, so that one run of MLflow holds both stages.
    """

    # After fastai's Recorder, which has the figures of the epoch.
    order = 60
    # fastai leaves it out where it only predicts.
    remove_on_fetch = True

    def __init__(self, stage: str):
        self.stage_name = stage

    def before_fit(self):
        """Log the settings of the learner."""
        settings = {f"{self.stage_name}/{k}": str(v) for k, v in self.learn.gather_args().items()}
        mlflow.log_params(settings)

    def after_epoch(self):
        """Log the losses and the accuracies: all, balanced, many, medium and few."""
        names = self.recorder.metric_names[1:-1]  # without the number of the epoch, and the time
        figures = dict(zip(names, self.recorder.log[1:], strict=False))
        # A shot group without a class has no accuracy: not-a-number, which MLflow cannot plot.
        figures = {f"{self.stage_name}/{k}": v for k, v in figures.items() if v == v}
        mlflow.log_metrics(figures, step=self.epoch + 1)


def main(uri: str = "sqlite:///mlflow.db") -> None:
    """Train on digits, and log to a store of MLflow.

    Args:
        uri: The store, such as a file, or the address of a server.
    """
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("digits_lt")
    dls = LTDataLoaders.from_dataset("digits_lt", imbalance_factor=20, bs=32)
    learn = lt_learner(dls, "resnet20_cifar", pretrained=False, width=8)
    with mlflow.start_run():
        learn.fit_stage1(3, cbs=MLflowCallback("stage1"))
        learn.retrain_classifier(5, cbs=[SAMN(), MLflowCallback("stage2")])
        report = learn.shot_report()
        for name in ("all", "balanced", "many", "medium", "few"):
            value = getattr(report, name)
            if value is not None:
                mlflow.log_metric(f"test/{name}", value)


if __name__ == "__main__":
    main()
