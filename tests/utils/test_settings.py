import logging
from pathlib import Path

import pytest

from ltlearn.errors import UserError
from ltlearn.utils.settings import Settings, load_settings

KEYS = (
    "data_path",
    "runs_path",
    "cache_path",
    "num_workers",
    "precision",
    "device",
    "max_megapixels",
    "device_megabytes",
)


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """An empty working directory two folders deep, a home of its own, and no variables set."""
    for key in KEYS:
        monkeypatch.delenv(f"LTLEARN_{key.upper()}", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    work = tmp_path / "project" / "sub"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    return work.parent


def write(folder: Path, text: str) -> Path:
    file = folder / "settings.ini"
    file.write_text("[DEFAULT]\n" + text, encoding="utf-8")
    return file


def test_built_in_values(tmp_path):
    assert load_settings() == Settings(
        data_path=Path("data"),
        runs_path=Path("runs"),
        cache_path=tmp_path / "home/.cache/ltlearn",
        num_workers=0,
        precision="auto",
        device="auto",
    )


@pytest.mark.parametrize(
    ("variable", "expected"), [("/var/x", "/var/x/ltlearn"), ("relative", "{home}/.cache/ltlearn")]
)
def test_cache_follows_xdg_where_it_is_absolute(monkeypatch, tmp_path, variable, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", variable)
    assert load_settings().cache_path == Path(expected.format(home=tmp_path / "home"))


def test_precedence_and_sources(project, monkeypatch):
    file = write(project, "num_workers = 1\nprecision = bf16\ndevice = cuda:1\n")
    monkeypatch.setenv("LTLEARN_NUM_WORKERS", "2")
    monkeypatch.setenv("LTLEARN_PRECISION", "fp16")
    monkeypatch.setenv("LTLEARN_DEVICE", "")  # an empty variable counts as not set
    settings = load_settings(num_workers=3, precision=None)
    assert (settings.num_workers, settings.precision, settings.device) == (3, "fp16", "cuda:1")
    rows = {key: (value, source) for key, value, source in settings.describe()}
    assert tuple(rows) == KEYS
    assert rows["num_workers"] == ("3", "argument num_workers")
    assert rows["precision"] == ("fp16", "environment variable LTLEARN_PRECISION")
    assert rows["device"] == ("cuda:1", str(file))
    assert rows["data_path"] == ("data", "built-in")


def test_an_argument_of_zero_counts_as_given(project):
    write(project, "num_workers = 4\n")
    assert load_settings(num_workers=0).num_workers == 0


def test_a_bad_value_that_an_argument_overrides_is_no_error(project):
    write(project, "precision = fp8\n")
    assert load_settings(precision="fp32").precision == "fp32"


def test_paths_of_a_file_are_relative_to_its_folder(project, tmp_path, monkeypatch):
    write(project, "data_path = sets\nruns_path = ~/runs\ncache_path = /c/100%\n")
    settings = load_settings()
    assert settings.data_path == project / "sets"
    assert settings.runs_path == tmp_path / "home/runs"
    assert settings.cache_path == Path("/c/100%")
    monkeypatch.setenv("LTLEARN_DATA_PATH", "sets")
    assert load_settings().data_path == Path("sets")


def test_the_nearest_file_wins(project):
    write(project, "num_workers = 1\n")
    write(project / "sub", "num_workers = 2\n")
    assert load_settings().num_workers == 2


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("num_workers", "-1", "whole number of at least 0"),
        ("num_workers", "two", "whole number of at least 0"),
        ("num_workers", "1.5", "whole number of at least 0"),
        ("device_megabytes", "-5", "auto or a whole number of at least 0"),
        ("precision", "fp8", "auto, fp32, bf16, fp16"),
        ("device", "gpu", "auto, cpu, cuda, cuda:<index>, mps"),
        ("device", "cuda:x", "auto, cpu, cuda, cuda:<index>, mps"),
        ("data_path", "~nobody-of-this-name/x", "`~` has a home folder"),
        ("runs_path", " ", "path of a folder"),
    ],
)
def test_an_error_names_key_value_source_and_allowed_values(
    project, monkeypatch, key, value, allowed
):
    variable = f"LTLEARN_{key.upper()}"

    def check(source, **flags):
        with pytest.raises(UserError) as caught:
            load_settings(**flags)
        for part in (key, repr(value.strip()) if "file" in source else value, allowed):
            assert part in str(caught.value)
        assert source.removeprefix("file ") in str(caught.value)

    file = write(project, f"{key} = {value}\n")
    check(f"file {file}")
    monkeypatch.setenv(variable, value)
    check(f"environment variable {variable}")
    check(f"argument {key})", **{key: value})


def test_true_is_no_number_of_workers():
    with pytest.raises(UserError, match="num_workers = 'True'"):
        load_settings(num_workers=True)


def test_megabytes_on_a_device():
    assert load_settings().device_megabytes == "auto"
    assert load_settings(device_megabytes="Auto").device_megabytes == "auto"
    assert load_settings(device_megabytes="300").device_megabytes == 300


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps", "CPU"])
def test_devices(device):
    assert load_settings(device=device).device == device.lower()


def test_an_unknown_argument():
    with pytest.raises(TypeError, match="'workers'.* data_path"):
        load_settings(workers=1)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("num_worker", "num_workers"), ("precison", "precision"), ("data-path", "data_path")],
)
def test_a_misspelt_key_is_warned_about(project, caplog, wrong, right):
    file = write(project, f"{wrong} = 1\n")
    with caplog.at_level(logging.WARNING, "ltlearn"):
        load_settings()
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: {wrong!r} is not a setting; is {right!r} meant?"
    ]


def test_keys_of_another_project_are_ignored(project, caplog):
    write(
        project,
        "repo = x\nlib_name = x\nversion = 0.0.1\nmin_python = 3.7\nlicense = apache2\n"
        "doc_path = _docs\nlib_path = x\nnbs_path = nbs\nrecursive = True\ntst_flags = slow\n"
        "put_version_in_init = True\nbranch = main\ncustom_sidebar = False\ndoc_host = https://x\n"
        "dev_requirements = a\n",
    )
    with caplog.at_level(logging.WARNING, "ltlearn"):
        settings = load_settings()
    assert settings.runs_path == Path("runs")
    assert not caplog.records


@pytest.mark.parametrize(
    "text",
    [b"num_workers = 1\n", b"[DEFAULT\n", b"[DEFAULT]\nnonsense\n", b"[DEFAULT]\na=1\na=2\n"],
)
def test_a_malformed_file(project, text):
    (project / "settings.ini").write_bytes(text)
    with pytest.raises(UserError, match="INI file") as caught:
        load_settings()
    assert str(project / "settings.ini") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text(project):
    (project / "settings.ini").write_bytes(b"[DEFAULT]\ndata_path = \xff\n")
    with pytest.raises(UserError, match="settings.ini .*utf-8"):
        load_settings()


def test_a_file_that_cannot_be_opened(project):
    (project / "settings.ini").mkdir()  # like a missing permission, which does not stop root
    with pytest.raises(UserError, match="settings.ini .*Is a directory"):
        load_settings()


def test_the_template_of_the_repository_changes_nothing(project):
    template = Path(__file__).parents[2] / "settings.ini"
    built_in = load_settings()
    (project / "settings.ini").write_bytes(template.read_bytes())
    assert load_settings() == built_in
    lines = [line.removeprefix("# ") for line in template.read_text().splitlines() if " = " in line]
    write(project, "\n".join(lines))
    filled = load_settings()
    assert filled.data_path == project / "data"
    assert filled.cache_path == built_in.cache_path
    assert all(source.endswith("settings.ini") for _, _, source in filled.describe())
