"""`ltlearn report`, and the pages that runs and comparisons write."""

import re
import shutil
import webbrowser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ltlearn

OLD = Path(__file__).parents[1] / "fixtures" / "run_db4ea7a"
PAGES = {"LTLEARN_PAGES": "1"}  # which the other tests do without
CLASSES = {"ant": 24, "<b>bee": 10, "cow": 5}
FAST = (
    "--arch", "resnet20_cifar", "--set", "model.width=4", "--epochs", "1", "--batch-size", "16",
    "--set", "stage2.epochs=1", "--precision", "fp32", "--device", "cpu",
    # It reads the images from their files, so that they have names.
    "--set", "data.transform=resized_crop_flip",
)  # fmt: skip


def make_images(folder, per_class, seed):
    rng = np.random.default_rng(seed)
    for name, n in per_class.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on images that no model can learn, so that there are errors."""
    folder = tmp_path_factory.mktemp("report")
    make_images(folder / "photos/train", CLASSES, 0)
    make_images(folder / "photos/test", dict.fromkeys(CLASSES, 6), 1)
    words = ("train", folder / "photos", *FAST, "--out", folder / "run")
    done = ltlearn(*words, cwd=folder, env=PAGES)
    assert done.returncode == 0, done.stderr
    return folder / "run", done


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def test_a_run_writes_its_page(trained):
    run, done = trained
    page = (run / "report.html").read_text()
    assert f"report: {run / 'report.html'}" in done.stderr
    assert f"report: {run / 'report.md'}" in done.stderr
    assert "<b>bee" not in page and "&lt;b&gt;bee" in page
    assert len(re.findall(r"<img[^>]* src=\"data:image/png", page)) >= 6
    assert 'title="test/cow/' in page, "the paths of the images, below the folder of the data"
    assert re.search(r"ltlearn export \S+ --to onnx", page)


def test_report_writes_the_page_again(trained, run):
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    done = ltlearn("report", run)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{run / 'report.html'}\n"
    # The copy of the run is in another folder.
    after = (run / "report.html").read_text().replace(str(run), str(trained[0]))
    assert after == before


@pytest.mark.parametrize(
    ("words", "reason"),
    [(("--no-images",), "written without reading images"), (("--data", "nowhere"), "nowhere")],
)
def test_images_that_are_not_there_are_a_sentence(run, words, reason):
    done = ltlearn("report", run, *words)
    assert done.returncode == 0, done.stderr
    page = (run / "report.html").read_text()
    assert "<img" not in page and re.search(rf"cannot be shown: [^<]*{reason}", page)


def test_open_shows_the_page(run, monkeypatch):
    from ltlearn.experiments import report_page

    shown = []
    monkeypatch.setattr(report_page, "rewrite_pages", lambda *_: [run / "report.html"])
    monkeypatch.setattr(webbrowser, "open", lambda url: shown.append(url) or True)
    assert ltlearn("report", run, "--open").returncode == 0
    assert shown == [(run / "report.html").as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    done = ltlearn("report", run, "--open")
    assert done.returncode == 2 and "no browser could be started" in done.stderr


def test_a_comparison_has_a_page_of_its_own(run):
    words = ("--methods", "ce,crt,tau_norm", "--priors", "reversed", "--device", "cpu")
    done = ltlearn("compare", run, *words, env=PAGES)
    assert done.returncode == 0, done.stderr
    assert f"report: {run / 'compare.html'}" in done.stderr
    page = (run / "compare.html").read_text()
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections[:5] == ["results", "tradeoff", "groups", "priors", "classes"][: len(sections)]
    assert {"weights", "sources", "use", "provenance"} <= set(sections)
    assert "Kang et al." in page and "--method best" in page and 'href="report.html"' in page
    assert "<b>bee" not in page
    done = ltlearn("report", run, "--no-images")
    assert done.stdout.split() == [str(run / "report.html"), str(run / "compare.html")]
    assert 'href="compare.html"' in (run / "report.html").read_text()
    (run / "compare.json").write_text('{"rows": [{"method": 3}]}')
    (run / "report.html").unlink()
    done = ltlearn("report", run, "--no-images")
    assert done.returncode == 2 and "compare.json is damaged" in done.stderr
    assert (run / "report.html").is_file()  # it does not depend on the comparison


def test_a_run_of_an_earlier_version_has_a_page(tmp_path):
    run = shutil.copytree(OLD / "finished", tmp_path / "old")
    done = ltlearn("report", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (run / "report.html").read_text()
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == ["results", "classes", "weights", "stage2", "data", "use", "provenance"]


def test_without_a_finished_run_there_is_nothing_to_report(tmp_path):
    done = ltlearn("report", tmp_path / "nothing")
    assert done.returncode == 2 and "there is no run" in done.stderr
    run = shutil.copytree(OLD / "stopped_in_stage1", tmp_path / "stopped")
    done = ltlearn("report", run)
    assert done.returncode == 2 and "is not finished" in done.stderr
    assert not (run / "report.html").exists()
