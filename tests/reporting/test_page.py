"""`report.html` as text; test_page_browser.py opens it."""

import base64
import hashlib
import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ltlearn.experiments.report_page as report_page
from ltlearn import UserError
from ltlearn.experiments.report_page import rewrite_pages, write_page_of_run, write_report_page
from ltlearn.plots import plot_class_counts, plot_confusion, plot_per_class_accuracy
from ltlearn.plots.tradeoff import plot_tradeoff
from ltlearn.reporting.page import (
    ClassData,
    Headline,
    MethodClasses,
    Page,
    PageSection,
    figure_to_svg,
    render_page,
    thumbnail,
)
from tests.reporting.helpers import make_run

ROOT = Path(__file__).parents[2]
EVIL = "<script>alert('evil')</script>"
NAMES = ["ant", EVIL, "bee & wasp", 'cow "x"', "</title><img src=x>", "fly", "gnu", "hen"]
PAGE = Page("run report", "title", "lead", [], "CE", [], [], "footer")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    run, dls = make_run(
        tmp_path_factory.mktemp("page") / "run", NAMES, methods=("ce", "lws", "samn")
    )
    return run, dls, write_report_page(run, dls).read_text()


def sections_of(page):
    return re.findall(r'<section id="(\w+)"', page)


def class_json(page):
    text = re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1]
    return json.loads(text)


def pixels_in(content):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def titles_of(svg):
    return [html.unescape(t) for t in re.findall(r"<title>(.*?)</title>", svg)]


def test_a_run_has_all_sections(written):
    _, _, page = written
    assert sections_of(page) == [
        "results", "classes", "mistakes", "errors", "calibration", "weights", "stage2", "data",
        "use", "provenance",
    ]  # fmt: skip
    for word in ("CE + SAMN", "LWS", "Protocol", "ltlearn predict", "own", "torch"):
        assert word.lower() in page.lower()


def test_texts_of_the_data_are_escaped(written):
    _, _, page = written
    assert EVIL not in page and "<img src=x>" not in page and "<up>" not in page
    assert html.escape(EVIL) in page and "Made &lt;up&gt;" in page
    assert page.count("<script") == 2, "its own script, and the numbers of the classes"
    assert class_json(page)["names"] == NAMES


def test_the_policy_allows_its_own_script_alone(written):
    _, _, page = written
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in policy
    assert "default-src &#39;none&#39;; img-src data:" in policy


def test_nothing_is_loaded_from_elsewhere(written):
    _, _, page = written
    # Names of XML vocabularies are no requests.
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", page)) - {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip
    assert not {a for a in addresses if f'"{a}' in page}
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(s.startswith(("data:", "#")) for s in sources), set(sources)


def test_links_within_the_page_have_a_target(written):
    _, _, page = written
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for used in re.findall(r'(?:href="#|url\(#)([^")]+)', page):
        assert used in ids, used


def test_the_classes_have_the_figures_of_each_method(written):
    run, _, page = written
    from ltlearn.metrics.scores import class_scores

    data, arrays = class_json(page), np.load(run.path / "predictions.npz")
    assert [m["label"] for m in data["methods"]] == ["CE", "LWS", "CE + SAMN"]
    assert data["shown"] == 2
    scores = class_scores(arrays["targets"], arrays["seed0/samn"].argmax(1), len(NAMES))
    tenths = [None if np.isnan(v) else round(1000 * v) for v in scores.precision]
    assert data["methods"][2]["precision"] == tenths
    recall = [round(1000 * v) for v in scores.recall]
    assert data["methods"][2]["accuracy"] == recall


def test_errors_are_the_most_confident_of_each_group(written):
    run, dls, page = written
    arrays = np.load(run.path / "predictions.npz")
    logits, targets = arrays["seed0/samn"].astype(float), arrays["targets"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    wrong = p.argmax(1) != targets
    shown = re.findall(r'class="confidence"[^>]*>([\d.]+) %', page)
    assert len(shown) == min(wrong.sum(), 48)
    assert f"{100 * p.max(1)[wrong].max():.1f}" in shown
    images = re.findall(r'<img[^>]* src="(data:[^"]*)"', page)
    assert len(images) == len(shown)
    pixels = pixels_in(images[0].partition(",")[2])
    assert any(np.array_equal(pixels, item.image) for item in dls.test.dataset.items)


def test_a_run_of_several_seeds_has_its_last_seed_in_the_errors(tmp_path):
    run, dls = make_run(tmp_path, NAMES, per_class=10, seeds=2)
    page = write_report_page(run, dls).read_text()
    assert "seed 1: misclassified" in page and " ± " in page
    assert re.search(r"interval [−+]\d", page)


def test_other_images_than_those_of_the_run_are_not_shown(tmp_path, written):
    _, dls, _ = written
    run, _ = make_run(tmp_path, NAMES, side=12)
    page = write_report_page(run, dls).read_text()
    assert "<img" not in page and "not those of the run any more" in page


def test_an_image_that_is_gone_is_named(tmp_path):
    run, dls = make_run(tmp_path, NAMES)

    class Gone:
        def __getitem__(self, i):
            raise UserError("cannot read it.")

    dataset = dls.test.dataset
    dataset.__class__ = type("Gone", (type(dataset),), {"items": Gone()})
    page = write_report_page(run, dls).read_text()
    assert "no longer readable" in page and "<img" not in page


def test_a_run_with_a_manifest_alone_has_what_it_holds(tmp_path):
    run, _ = make_run(tmp_path, NAMES)
    for name in ("predictions.npz", "trajectories.json"):
        (tmp_path / name).unlink()
    page = rewrite_pages(run)[0].read_text()
    assert sections_of(page) == ["results", "classes", "data", "use", "provenance"]
    assert class_json(page)["methods"][1]["precision"] is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive"])
def test_damaged_predictions_are_left_out(tmp_path, content, caplog):
    run, _ = make_run(tmp_path, NAMES)
    (tmp_path / "predictions.npz").write_bytes(content)
    page = rewrite_pages(run, images=False)[0].read_text()
    assert "errors" not in sections_of(page) and "predictions.npz" in caplog.text


def test_predictions_that_could_take_all_memory_or_break_numpy_are_left_out(tmp_path, caplog):
    run, _ = make_run(tmp_path, NAMES)
    content = (tmp_path / "predictions.npz").read_bytes()
    with np.load(tmp_path / "predictions.npz") as arrays:
        np.savez_compressed(tmp_path / "predictions.npz", **arrays)
    assert "errors" not in sections_of(rewrite_pages(run, images=False)[0].read_text())
    assert "compressed" in caplog.text
    caplog.clear()
    # NumPy raises a tokenize.TokenError here.
    damaged = content.replace(b"}", b" ")
    (tmp_path / "predictions.npz").write_bytes(damaged)
    assert "errors" not in sections_of(rewrite_pages(run, images=False)[0].read_text())
    assert "predictions.npz is damaged" in caplog.text


def test_predictions_of_another_kind_are_left_out(tmp_path, caplog):
    run, _ = make_run(tmp_path, NAMES)
    arrays = dict(np.load(tmp_path / "predictions.npz"))
    run.save_npz("predictions.npz", **{**arrays, "targets": arrays["targets"].astype(str)})
    page = rewrite_pages(run, images=False)[0].read_text()
    assert "errors" not in sections_of(page) and "predictions.npz is damaged" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda results: results.update(rows=5),
        lambda results: results.update(seeds=[]),
        lambda results: results["rows"][0].pop("label"),
        lambda results: results["rows"][1]["reports"][0]["per_class"].pop(),
        lambda results: results["rows"][0]["reports"][0].update(per_class_total=None),
    ],
)
def test_damaged_results_are_named(tmp_path, change):
    run, _ = make_run(tmp_path, NAMES)
    manifest = run.read_json("manifest.json")
    change(manifest["results"])
    run.write_json("manifest.json", manifest)
    with pytest.raises(UserError, match=r"manifest\.json is damaged: its results"):
        rewrite_pages(run, images=False)
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_names_the_command(tmp_path):
    run, _ = make_run(tmp_path, NAMES)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report\.html cannot be written .*rewrite_pages"):
        write_report_page(run)


def test_images_that_are_gone_are_reported(tmp_path):
    run, _ = make_run(tmp_path, NAMES)
    lines = []
    rewrite_pages(run, tmp_path / "nothing", notify=lines.append)
    assert lines[-1].startswith("misclassified images are not shown: ")


def test_damaged_trajectories_are_left_out(tmp_path, caplog):
    run, _ = make_run(tmp_path, NAMES)
    run.write_json("trajectories.json", [{"ce": {"epoch": "many"}, "samn": 3}])
    page = write_report_page(run).read_text()
    assert {"weights", "stage2"}.isdisjoint(sections_of(page)) and "is damaged" in caplog.text


def test_an_unfinished_run_has_no_page(tmp_path):
    run, _ = make_run(tmp_path, NAMES)
    run.write_json("manifest.json", {**run.read_json("manifest.json"), "status": "running"})
    with pytest.raises(UserError, match="is not finished"):
        write_report_page(run)


def test_a_page_that_fails_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("LTLEARN_PAGES", "1")
    run, dls = make_run(tmp_path, NAMES)

    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(report_page, "result_table", fail)
    write_page_of_run(run, dls)
    assert "report.html was not written (MemoryError: no room)" in caplog.text
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_is_interrupted_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("LTLEARN_PAGES", "1")
    run, dls = make_run(tmp_path, NAMES)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report_page, "result_table", stop)
    with pytest.raises(KeyboardInterrupt):
        write_page_of_run(run, dls)


def test_thousands_of_classes_stay_small():
    n = 8142
    rng = np.random.default_rng(0)
    method = MethodClasses("CE", rng.random(n), rng.random(n), rng.random(n), [[(0, 0.5)]] * n)
    data = ClassData(
        [f"Genus species number {i}" for i in range(n)], ["few"] * n, [1] * n, [3] * n, "test",
        [method, replace(method, label="SAMN")], 1,
    )  # fmt: skip
    page = render_page(replace(PAGE, sections=[PageSection("classes", "Classes", [data])]))
    assert len(page) < 1_000_000 and page.count("<tr>") < 150
    assert len(class_json(page)["names"]) == n


def test_a_class_without_images_has_dashes():
    unknown = np.array([0.5, np.nan])
    methods = [MethodClasses(m, unknown, unknown, unknown, [[], []]) for m in ("a", "b")]
    data = ClassData(["x", "y"], ["many", "few"], [200, 2], [4, 0], "test", methods, 1)
    page = render_page(replace(PAGE, sections=[PageSection("classes", "Classes", [data])]))
    assert "nan" not in page.lower().replace("navigat", "").replace("isnan", "")
    assert class_json(page)["methods"][0]["f1"] == [500, None]


@pytest.mark.parametrize(
    ("change", "lower", "trend"),
    [(1.0, False, "better"), (-1.0, False, "worse"), (-1.0, True, "better"), (0.01, False, "same")],
)
def test_the_trend_of_a_headline(change, lower, trend):
    assert Headline("ECE", "5 %", "4 %", change, lower).trend == trend


def test_small_images_are_kept_and_large_ones_shrunk():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
    kind, _, content = thumbnail(small).partition(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(pixels_in(content), small)
    kind, _, content = thumbnail(np.full((500, 300, 3), 90, np.uint8)).partition(",")
    assert kind == "data:image/jpeg;base64" and pixels_in(content).shape == (160, 96, 3)


# ---------------------------------------------------------------- plots in the page


def test_a_plot_shows_values_on_hover_and_keeps_its_text():
    svg = figure_to_svg(plot_class_counts([500, 50, 5], ["cat", "dog", EVIL]), "counts")
    assert titles_of(svg) == ["cat: 500 (many)", "dog: 50 (medium)", f"{EVIL}: 5 (few)"]
    assert "<text" in svg and "cat</text>" in svg and "<script" not in svg
    assert "#000000" not in svg and "var(--ink-soft)" in svg and "font-family" not in svg


def test_values_lie_over_their_marks():
    svg = figure_to_svg(plot_class_counts([500, 50, 5], ["a", "b", "c"]), "counts")
    bar = re.search(r'<path d="([^"]*)" clip-path="[^"]*" style="fill: var\(--plot-blue\)', svg)[1]
    corners = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", bar), dtype=float)
    (left, top), (right, low) = corners.min(0), corners.max(0)
    mark = re.search(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)">', svg)
    x, y, width, height = map(float, mark.groups())
    # The axes cut off the part of a bar below their lower end.
    assert (x + width, y, y + height) == pytest.approx((right, top, low), abs=0.3) and left <= x


def test_rows_and_cells_have_names_on_hover():
    figure = plot_per_class_accuracy([0.9, 0.2], [0.8, 0.6], [500, 5], ["cat", "dog"])
    titles = titles_of(figure_to_svg(figure, "accuracy"))
    assert "CE: cat (500): accuracy 90" in titles and "SAMN: dog (5): accuracy 60" in titles
    svg = figure_to_svg(plot_confusion([0, 0, 1], [0, 1, 1], [500, 5], ["cat", "dog"]), "confusion")
    assert "cat (500) → dog: 50.0 %" in titles_of(svg)


def test_a_legend_that_is_wider_than_its_figure_is_whole():
    points = {f"method {i}": [(0.5, 0.1 * i), (0.6, 0.1 * i + 0.05)] for i in range(4)}
    figure = plot_tradeoff(points, highlight="method 1")
    svg = figure_to_svg(figure, "tradeoff")
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    legend = figure.legends[0].get_window_extent()
    assert width >= legend.width / figure.dpi * 72
    assert any(t.startswith("method 2: many-shot accuracy") for t in titles_of(svg))


def test_thousands_of_dots_become_an_image():
    counts = np.geomspace(1000, 1, 3000).astype(int)
    from ltlearn.plots.norms import plot_norms

    svg = figure_to_svg(plot_norms(np.ones(3000), np.ones(3000), counts), "norms")
    assert len(svg) < 400_000 and "data:image/png" in svg


def test_the_wheel_holds_the_templates():
    from hatchling.builders.wheel import WheelBuilder

    files = {f.distribution_path for f in WheelBuilder(str(ROOT)).recurse_included_files()}
    templates = (ROOT / "ltlearn/reporting/page/templates").iterdir()
    assert {f"ltlearn/reporting/page/templates/{t.name}" for t in templates} <= files
