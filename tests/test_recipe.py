import pytest
from PIL import Image

from ltlearn.errors import UserError
from ltlearn.recipe import load_recipe, recipe_names

SECTIONS = ("data", "model", "stage1", "stage2")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_named_like_its_file(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.settled().stage2.select == "best"


def test_the_recipes_of_the_first_release_are_there():
    assert {"digits_lt", "cifar10_lt", "cifar100_lt", "tiny_imagenet_lt"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_value_says_where_it_is_from(name):
    recipe = load_recipe(name)
    for section in SECTIONS:
        for key in getattr(recipe, section).model_fields_set:
            assert recipe.provenance[f"{section}.{key}"]


def test_cifar_recipe_holds_the_published_values():
    recipe = load_recipe("cifar10_lt")
    assert (recipe.stage1.epochs, recipe.stage1.lr, recipe.stage1.weight_decay) == (200, 0.01, 5e-3)
    assert (recipe.stage2.epochs, recipe.stage2.lr, recipe.stage2.weight_decay) == (20, 5e-4, 0)
    assert recipe.model.width == 64
    assert recipe.stage1.batch_size == recipe.stage2.batch_size == 64


def test_tiny_imagenet_recipe_is_our_own():
    recipe = load_recipe("tiny_imagenet_lt")
    assert (recipe.data.imbalance_factor, recipe.data.size) == (100, 32)
    assert recipe.expected == []
    assert "validation part is the test set" in recipe.provenance["data.dataset"]
    assert load_recipe("tiny_imagenet_lt", ["data.size=64"]).data.size == 64
    assert load_recipe("cifar10_lt").data.size is None


def test_tiny_imagenet_recipe_runs(tmp_path):
    from ltlearn.run import Run
    from ltlearn.runner import run_recipe

    for c in range(200):
        for part, n in (("train", 2), ("val", 1)):
            folder = tmp_path / "data" / part / f"n{c:08d}"
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (8, 8), (c, 99 * i, 50)).save(folder / f"{i}.JPEG")
    small = [
        "data.n_max=2", "data.imbalance_factor=1", "model.width=2", "model.arch=resnet20_cifar",
        "stage1.epochs=1", "stage2.epochs=1",
    ]  # fmt: skip
    run = Run(tmp_path / "run")
    recipe = load_recipe("tiny_imagenet_lt", small)
    run_recipe(recipe, run, data_path=tmp_path / "data", device="cpu")
    manifest = run.read_json("manifest.json")
    assert manifest["values"]["data"]["size"] == 32
    assert manifest["class_counts"] == [2] * 200 and manifest["test_images"] == 200


def test_protocols_settle_what_the_recipe_leaves_open():
    clean = load_recipe("cifar10_lt").settled()
    paper = load_recipe("cifar10_lt", ["protocol=paper"]).settled()
    assert (clean.stage1.select, clean.stage2.select, clean.stage2.bn) == ("last", "best", "frozen")
    assert clean.stage2.views >= 1
    assert (paper.stage1.select, paper.stage2.select, paper.stage2.bn) == ("best", "best", "train")
    assert paper.stage2.views == 0


def test_values_that_do_not_go_together_are_refused():
    for overrides in (
        ["protocol=paper", "stage2.views=1"],
        ["stage2.bn=train", "stage2.views=2"],
        ["protocol=paper", "stage1.select=last"],
    ):
        with pytest.raises(UserError, match="stage2.views=0|leave stage1.select"):
            load_recipe("digits_lt", overrides)


def test_overrides_change_values_and_their_provenance():
    recipe = load_recipe(
        "digits_lt", ["stage1.epochs=2", "model.arch=resnet32_cifar", "seeds=1", "stage2.lr=1e-3"]
    )
    assert recipe.stage1.epochs == 2
    assert recipe.model.arch == "resnet32_cifar"
    assert recipe.seeds == 1
    assert recipe.stage2.lr == 1e-3
    assert recipe.provenance["stage1.epochs"] == "command line"


def test_smoke_shrinks_every_recipe():
    for name in recipe_names():
        small = load_recipe(name).smoke()
        assert small.seeds == 1
        assert small.stage1.epochs <= 2
        assert small.stage2.epochs <= 2
        assert small.data.dataset == "digits_lt" or small.data.n_max <= 100


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage1.epoch=2", ["stage1.epoch", "did you mean epochs", "batch_size"]),
        ("stage3.epochs=2", ["stage3"]),
        ("stage1.epochs=-1", ["stage1.epochs", "-1", "greater than or equal to 0"]),
        ("stage1.epochs=many", ["stage1.epochs", "many", "integer"]),
        ("stage1.lr=nan", ["stage1.lr"]),
        (
            "data.imbalance_factor=0.5",
            ["data.imbalance_factor", "0.5", "greater than or equal to 1"],
        ),
        ("data.split=last_n", ["data.split", "last_n", "first_n", "shuffle_seed0"]),
        ("data.dataset=mnist", ["data.dataset", "mnist", "digits_lt"]),
        ("protocol=dirty", ["protocol", "dirty", "clean", "paper"]),
        ("seeds=0", ["seeds", "0"]),
        ("methods=['sam']", ["sam", "samn"]),
        ("methods=[]", ["methods"]),
        ("seeds", ["--set", "seeds"]),
        ("a.b.c=1", ["--set", "a.b.c=1"]),
        ("name.x=1", ["name", "not a section"]),
        ("provenance=5", ["provenance"]),
        ("name='.'", ["name"]),
        ("methods=['samn','samn']", ["methods", "twice"]),
        ("stage2.views=-1", ["stage2.views"]),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_it(override, words):
    with pytest.raises(UserError) as caught:
        load_recipe("digits_lt", [override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_unknown_recipe_suggests_close_names():
    with pytest.raises(UserError, match="did you mean digits_lt"):
        load_recipe("digit_lt")
    with pytest.raises(UserError, match="there is no recipe file"):
        load_recipe("nowhere/mine.toml")


def test_a_file_of_ones_own(tmp_path):
    from ltlearn.recipe import _folder

    text = (_folder() / "digits_lt.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("epochs = 30", "epochs = 3"))
    assert load_recipe(str(path)).stage1.epochs == 3
    path.write_text(text.replace('"stage1.epochs" = "own"\n', ""))
    with pytest.raises(UserError, match=r"stage1\.epochs does not say where it is from"):
        load_recipe(str(path))
    path.write_text(text.replace("[stage1]", "[stage1"))
    with pytest.raises(UserError, match="is not a TOML file"):
        load_recipe(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not a TOML file"):
        load_recipe(str(path))
    path.write_text(text.replace("epochs = 30\n", ""))
    with pytest.raises(UserError, match=r"the key stage1\.epochs is missing"):
        load_recipe(str(path))
