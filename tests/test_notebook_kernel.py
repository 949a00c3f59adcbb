"""What a notebook shows, from cells that a real Jupyter kernel runs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]

CELLS = {
    "data": """
        import os
        os.environ |= {"HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
        import numpy as np
        from PIL import Image
        from ltlearn import LTDataLoaders, lt_learner

        def images(counts, seed):
            draw = np.random.default_rng(seed)
            y = np.repeat(np.arange(len(counts)), counts)
            x = draw.integers(0, 120, (len(y), 8, 8, 3)) + (y * 60)[:, None, None, None]
            return x.astype("uint8"), y

        classes = ["cat", "dog", "<b>lynx</b>"]
        dls = LTDataLoaders.from_arrays(
            *images([120, 30, 5], 0), valid=images([12] * 3, 1), test=images([8] * 3, 2),
            classes=classes, bs=16, device="cpu",
        )
    """,
    "learner": """
        learn = lt_learner(dls, "resnet20_cifar", pretrained=False, width=4, precision="fp32")
    """,
    "stage 1": "learn.fit_stage1(3, 0.05)",
    "comparison": "learn.compare_classifiers(['ce', 'crt', 'tau_norm'])",
    "stage 2": "learn.retrain_classifier(2, method='crt')",
    "correction": "learn.correct_classifier('temperature')",
    "fit": "learn.fit_one_cycle(2, 1e-3)",
    "interrupted": """
        from fastai.callback.core import Callback

        class Interrupt(Callback):
            def before_epoch(self):
                if self.learn.epoch == 1:
                    raise KeyboardInterrupt

        try:
            learn.fit(3, 1e-3, cbs=Interrupt())
        except KeyboardInterrupt:
            pass
    """,
    "report": "learn.shot_report()",
    "stages": "learn.stages",
    "silent": """
        with learn.no_bar():
            learn.fit(1, 1e-3)
            learn.retrain_classifier(1)
    """,
    "used": """
        learn.compare_classifiers(['crt', 'tau_norm'])
        learn.use('crt').stages[-1]
    """,
    "compared": "learn.compared",
    "inspection": """
        from pathlib import Path
        import tempfile
        from ltlearn.inspection import inspect_path

        folder = Path(tempfile.mkdtemp())
        for c, name in enumerate(["cat", "dog & co"]):
            (folder / name).mkdir()
            for i in range(4 - 2 * c):
                Image.new("RGB", (8, 8), (60 * c, 9 * i, 0)).save(folder / name / f"{i}.png")
        inspect_path(folder)
    """,
}


def source(text):
    lines = text.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] for line in lines).strip()


@pytest.fixture(scope="module")
def shown():
    """The outputs of each cell, by its name."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source(text)) for text in CELLS.values()]
    # The kernel imports the package from its working directory.
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    return {name: cell.outputs for name, cell in zip(CELLS, notebook.cells, strict=True)}


def displayed(outputs):
    return [o.data.get("text/html", "") for o in outputs if o.output_type == "display_data"]


def results(outputs):
    return [o.data for o in outputs if o.output_type == "execute_result"]


def rows(html):
    """The text of each cell of the table, row by row."""
    found = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in html.split("<tr")[1:]]
    return [row for row in found if row]


def test_nothing_is_printed_as_text(shown):
    for name, outputs in shown.items():
        text = [o.text for o in outputs if o.output_type == "stream"]
        # Other libraries warn when they are imported.
        assert text == [] or name == "data", name


@pytest.mark.parametrize(
    ("cell", "caption", "epochs"),
    [("stage 1", "stage 1: 3 epochs in", [1, 2, 3]), ("stage 2", "stage 2: 2 epochs in", [0, 1, 2]),
     ("fit", "training: 2 epochs in", [0, 1])],
)  # fmt: skip
def test_a_fit_leaves_one_table_of_its_epochs(shown, cell, caption, epochs):
    (html,) = displayed(shown[cell])
    assert caption in html and "<progress" not in html
    head, *body = rows(html)
    assert [row[0] for row in body] == [str(epoch) for epoch in epochs]
    assert all(len(row) == len(head) for row in body)
    if cell == "fit":
        assert head[:3] == ["epoch", "train_loss", "valid_loss"]
    else:
        assert all(re.fullmatch(r"\d+\.\d", row[head.index("validation balanced %")])
                   for row in body)  # fmt: skip


def test_a_fit_that_was_interrupted_keeps_its_epochs(shown):
    (html,) = displayed(shown["interrupted"])
    assert "stopped after 1 of 3 epochs" in html and len(rows(html)) == 2


@pytest.mark.parametrize("cell", ["stage 1", "stage 2"])
def test_a_fit_returns_a_short_value(shown, cell):
    (data,) = results(shown[cell])
    assert len(data["text/plain"]) < 250 and data["text/plain"].startswith("TrajectoryRecord: ")
    body = rows(data["text/html"])[1:]
    assert 2 <= len(body) <= 3
    assert sum("kept" in row[0] for row in body) == 1


def test_a_correction_names_its_strength(shown):
    (data,) = results(shown["correction"])
    assert re.search(r"temperature [\d.]+, chosen on validation", data["text/plain"])
    assert "temperature" in data["text/html"]


def test_a_report_is_a_table_with_the_classes(shown):
    (data,) = results(shown["report"])
    assert len(data["text/plain"]) < 250 and data["text/plain"].startswith("ShotReport: ")
    html = data["text/html"]
    assert "&lt;b&gt;lynx" in html and "<b>lynx" not in html
    assert "medium" in str(rows(html)) and ["cat", "many", "120", "8"] in [
        row[:4] for row in rows(html)
    ]


def test_records_of_the_stages_are_short(shown):
    (data,) = results(shown["stages"])
    assert "StageRecord(" in data["text/plain"] and len(data["text/plain"]) < 3000


def test_no_bar_hides_the_progress_of_fits(shown):
    assert shown["silent"] == []


def test_a_classifier_of_a_comparison_has_its_records(shown):
    (data,) = results(shown["used"])
    assert data["text/plain"].startswith("StageRecord(") and "crt" in data["text/html"]
    (data,) = results(shown["compared"])
    assert data["text/plain"] == "ComparedClassifiers: crt, tau_norm; best on validation: crt" or (
        data["text/plain"].endswith("best on validation: tau_norm")
    )


def test_a_comparison_is_one_table_and_its_bars_are_gone(shown):
    assert all(html == "" for html in displayed(shown["comparison"]))
    (data,) = results(shown["comparison"])
    assert len(data["text/plain"]) < 300 and data["text/plain"].startswith("Comparison of 3")
    labels = [row[0] for row in rows(data["text/html"])]
    # The two corrections are nearly equal on this data: either may come first.
    assert labels[:2] == ["method", "CE"] and sorted(labels[2:]) == ["cRT", "tau-norm"]


def test_an_inspection_is_a_table(shown):
    (data,) = results(shown["inspection"])
    assert len(data["text/plain"]) < 300 and data["text/plain"].startswith("Inspection of ")
    assert "dog &amp; co" in data["text/html"]
