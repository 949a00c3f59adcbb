import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import typer
from typer.testing import CliRunner

from ltlearn.cli.app import app
from ltlearn.cli.flags import FlagSpelling, SpelledCommand
from ltlearn.errors import UserError, spell, spell_call, spelled_by
from ltlearn.utils.settings import load_settings
from tests.helpers import ltlearn

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize(
    ("command", "name", "value", "expected"),
    [
        ("train", "skip_bad", True, "--skip-bad"),
        ("predict", "skip_bad", True, "--skip-bad of `ltlearn train`"),  # it has no such flag
        ("compare", "follow_links", True, "--follow-links of `ltlearn recipe`"),
        ("compare", "stage1.batch_size", 32, "--batch-size 32 of `ltlearn train`"),
        ("compare", "out", None, "--out"),
        ("train", "on_nan", "skip", "--on-nan skip"),
        ("train", "split_col", False, "--split-col none"),
        ("train", "label_col", "a b", "--label-col 'a b'"),
        ("train", "path", None, "--images"),
        ("train", "images", "x", "--images x"),
        ("recipe", "images", "x", "--set data.images=x"),
        ("recipe", "split_col", False, "--set data.split_col=false"),
        ("compare", "images", "x", "--images x of `ltlearn train`"),
        ("recipe", "views", 0, "--set stage2.views=0"),
        ("recipe", "cache_path", None, "cache_path in settings.ini"),
        ("predict", "precision", "fp32", "precision = fp32 in settings.ini"),
        ("train", "num_workers", 0, "--num-workers 0"),
        ("train", "overrides", None, "--set"),
        ("retrain", "reset", False, "no --reset"),
        ("train", "data.images", "x", "--images x"),
        ("recipe", "data_path", None, "--data"),
        ("data", "data_path", None, "--root"),
        ("train", "source", None, "DATA"),
        ("recipe", "data.source", "x", "--set data.source=x"),
        ("train", "pretrained", False, "--no-pretrained"),
        ("train", "pretrained", True, "--pretrained"),
        ("train", "pretrained", "FILE", "--weights FILE"),
        ("recipe", "pretrained", False, "--set model.pretrained=false"),
        ("retrain", "reset", True, "--reset"),
        ("retrain", "keep_head", False, "--reset"),
        ("recipe", "keep_head", False, "--set model.keep_head=false"),
        ("recipe", "bs", 32, "--set stage1.batch_size=32"),
        ("retrain", "bs", 32, "--set stage1.batch_size=32"),
        ("train", "bs", 32, "--batch-size 32"),
        ("train", "stage1.batch_size", 32, "--batch-size 32"),
        ("train", "stage1.batch_size", None, "--batch-size"),
        ("train", "stage2.batch_size", 32, "--set stage2.batch_size=32"),
        ("recipe", "stage1.lr", 0.1, "--set stage1.lr=0.1"),
        ("train", "stage1.lr", 0.1, "--lr 0.1"),
        ("train", "stage1.method", "glmc", "--stage1 glmc"),
        ("recipe", "stage1.method", "glmc", "--set stage1.method=glmc"),
        ("recipe", "method.samn.lr", 0.5, "--set method.samn.lr=0.5"),
        ("recipe", "data.classes", ["a", "b"], """--set 'data.classes=["a", "b"]'"""),
        ("train", "arch", "resnet18", "--arch resnet18"),
        ("recipe", "arch", "resnet18", "--set model.arch=resnet18"),
        ("train", "width", None, "--set model.width"),
        ("recipe", "out", None, "--out"),
        ("recipe", "resume", True, "--resume"),
        ("recipe", "precision", "bf16", "--precision bf16"),
        ("recipe", "device", "cpu", "--device cpu"),
        ("recipe", "protocol", "paper", "--protocol paper"),
        ("recipe", "compile", True, "--compile"),
        ("compare", "methods", None, "--methods"),
        ("train", "methods", None, "--method"),
        ("recipe", "target_prior", None, "--target-prior"),
    ],
)
def test_a_parameter_is_spelled_as_a_flag_of_the_command(command, name, value, expected):
    assert FlagSpelling(COMMANDS[command], COMMANDS).parameter(name, value) == expected


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("check_benchmark", {"name": "inat2018", "root": "/a b"},
         "`ltlearn data inat2018 --root '/a b'`"),
        ("check_benchmark", {"name": "inat2018", "root": None}, "`ltlearn data inat2018`"),
        ("retrain", {"arch": "NAME", "checkpoint": "x.pth", "data": "DIR"},
         "`ltlearn retrain --arch NAME --checkpoint x.pth --data DIR`"),
        ("run_recipe", {"recipe": "digits_lt", "out": "runs/a", "resume": True},
         "`ltlearn recipe digits_lt --out runs/a --resume`"),
        ("inspect_path", {"path": "DIR", "images": "x"}, "`ltlearn inspect DIR --images x`"),
        ("train", {"source": "DIR", "pretrained": "FILE"}, "`ltlearn train DIR --weights FILE`"),
        ("train", {"data": "DIR", "arch": "resnet18"}, "`ltlearn train DIR --arch resnet18`"),
        ("recipe", {"name": "digits_lt", "data.imbalance_factor": 10},
         "`ltlearn recipe digits_lt --set data.imbalance_factor=10`"),
    ],
)  # fmt: skip
def test_a_call_is_spelled_as_a_command(name, arguments, expected):
    assert FlagSpelling(COMMANDS["predict"], COMMANDS).call(name, **arguments) == expected


def test_settings_are_spelled_where_a_command_has_no_flag():
    keys = [key for key, *_ in load_settings().describe()]
    spelling = FlagSpelling(COMMANDS["methods"], COMMANDS)
    assert [spelling.parameter(key) for key in keys] == [f"{k} in settings.ini" for k in keys]


def test_the_flags_of_each_command_are_spelled():
    for command in COMMANDS.values():
        assert isinstance(command, SpelledCommand)
        spelling = FlagSpelling(command, COMMANDS)
        for param in command.params:
            if param.name not in ("path", "source") and param.opts[0].startswith("-"):
                assert spelling.parameter(param.name) == max(param.opts, key=len)


@pytest.mark.parametrize("way", ["main", "runner"])
def test_a_message_has_flags_on_the_command_line_and_parameters_in_python(
    monkeypatch, tmp_path, way
):
    def fail(*args):
        raise UserError(
            f"give {spell('skip_bad', True)}, or {spell_call('check_benchmark', name='x')}"
        )

    monkeypatch.setattr("ltlearn.experiments.read_recipe.load_recipe", fail)
    if way == "main":
        done = ltlearn("recipe", "digits_lt", cwd=tmp_path)
        assert done.returncode == 2
        text = done.stderr
    else:
        text = str(CliRunner().invoke(app, ["recipe", "digits_lt"]).exception)
    assert "give --skip-bad, or `ltlearn data x`" in text
    with pytest.raises(UserError, match=r"give skip_bad=True, or check_benchmark\(name='x'\)"):
        fail()


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs processes that fork"
)
def test_a_worker_of_a_loader_spells_as_its_parent():
    """Messages about unreadable images arise in the workers of a loader."""
    from torch.utils.data import DataLoader, Dataset

    class Unreadable(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return spell("skip_bad", True)

    with spelled_by(FlagSpelling(COMMANDS["train"], COMMANDS)):
        batches = list(DataLoader(Unreadable(), 2, num_workers=1, multiprocessing_context="fork"))
    assert batches == [["--skip-bad"] * 2]


def test_a_thread_spells_as_the_command():
    with spelled_by(FlagSpelling(COMMANDS["train"], COMMANDS)), ThreadPoolExecutor(1) as pool:
        assert pool.submit(spell, "skip_bad", True).result() == "--skip-bad"
