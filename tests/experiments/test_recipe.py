import pytest
from PIL import Image

from ltlearn.errors import UserError
from ltlearn.experiments.read_recipe import (
    load_recipe,
    recipe_folder,
    recipe_names,
    validate_recipe,
)
from ltlearn.experiments.results import published_note
from ltlearn.experiments.runner import run_recipe
from ltlearn.experiments.stages import stage1_arguments, stage1_callbacks
from ltlearn.methods import METHODS
from ltlearn.utils.run_folder import Run

SECTIONS = ("data", "model", "stage1", "stage2")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_named_like_its_file(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.settled().stage2.select == "best"
    # Those that go with other values hold, too.
    for e in recipe.expected:
        other = load_recipe(name, [f"{key}={value}" for key, value in e.when.items()])
        assert e.method in [p.method for p in other.settled().published()]


def test_the_recipes_of_the_first_release_are_there():
    kinds = ("", "_glmc", "_mislas", "_w16", "_glmc_w16")
    cifar = {f"cifar{n}_lt{what}" for n in (10, 100) for what in kinds}
    assert {"digits_lt", "tiny_imagenet_lt", *cifar} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_value_has_a_source(name):
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


GLMC = {  # k, rho, gamma by imbalance factor
    "cifar10_lt_glmc": {100: (0, 1.2, 1), 50: (0, 1.2, 1), 10: (0.2, 1.0, 2)},
    "cifar100_lt_glmc": {100: (0, 1.2, 4), 50: (0.2, 1.2, 6), 10: (0.2, 1.2, 4)},
}


@pytest.mark.parametrize("name", GLMC)
def test_glmc_has_its_values_for_each_imbalance_factor(name):
    for factor, values in GLMC[name].items():
        s1 = load_recipe(name, [f"data.imbalance_factor={factor}"]).settled().stage1
        assert tuple(s1.options().values()) == values
    recipe = load_recipe(name, ["data.imbalance_factor=10", "stage1.resample=0.5"])
    assert recipe.stage1.resample == 0.5, "the command line comes first"
    assert (recipe.stage2.lr, recipe.methods) == (5e-5, ["glmc", "glmc_samn"])


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_records_whether_it_was_run(name):
    status = load_recipe(name).status
    assert status.startswith(("run here", "not run here")) and not status.endswith(".")


@pytest.mark.parametrize("name", ["cifar10_lt_w16", "cifar100_lt_w16"])
def test_width_16_is_trained_as_ldam_drw_trains_it(name):
    recipe = load_recipe(name).settled()
    s1 = recipe.stage1
    assert (s1.epochs, s1.batch_size, s1.lr, s1.weight_decay) == (200, 128, 0.1, 2e-4)
    assert (s1.schedule, s1.milestones, s1.decay, s1.warmup_epochs) == (
        "multistep", [160, 180], 0.01, 5
    )  # fmt: skip
    assert (recipe.model.width, recipe.data.split) == (16, "shuffle_seed0")
    assert recipe.arguments_of("crt")["epochs"] == 30 and recipe.arguments_of("crt")["bs"] == 128
    smoothing = {10: [(0.3, 0), (0.2, 0), (0.1, 0)], 100: [(0.4, 0.1), (0.3, 0), (0.2, 0)]}
    for factor, values in zip(
        (100, 50, 10), smoothing[10 if name.startswith("cifar10_") else 100], strict=True
    ):
        recipe_of_factor = load_recipe(name, [f"data.imbalance_factor={factor}"])
        options = recipe_of_factor.options_of("label_aware_smoothing")
        assert (options["head_smoothing"], options["tail_smoothing"]) == values
    assert {e.protocol for e in recipe.published()} == {"paper"}
    # Another draw of the images has the same figures; a check lists it as a change.
    assert load_recipe(name, ["data.split=first_n"]).published() == recipe.published()
    glmc = load_recipe(name.replace("_w16", "_glmc_w16"), ["data.imbalance_factor=10"])
    wide = load_recipe(name.replace("_w16", "_glmc"), ["data.imbalance_factor=10"])
    assert glmc.stage1 == wide.stage1 and glmc.model.width == 16 and glmc.expected == []


LOSSES = ("balanced_softmax", "logit_adjusted", "class_balanced", "class_balanced_focal", "focal")


@pytest.mark.parametrize("name", ["cifar10_lt_losses_w16", "cifar100_lt_losses_w16"])
def test_losses_of_one_stage_train_as_ldam_drw_does(name):
    recipe = load_recipe(name).settled()
    plain = load_recipe(name.replace("_losses", "")).settled()
    assert recipe.methods == ["ldam_drw_stage1"] and recipe.model == plain.model
    assert recipe.data == plain.data
    plain.stage1.method = recipe.stage1.method
    for key, value in recipe.stage1.options().items():
        plain.stage1.set_option(key, value)
    assert recipe.stage1 == plain.stage1 and recipe.stage1.start_pct == 0.8
    for loss in LOSSES:
        for factor in (100, 50):
            method = f"{loss}_stage1"
            overrides = [f"stage1.method={method}", f"data.imbalance_factor={factor}"]
            other = load_recipe(name, overrides).settled()
            assert other.methods == [method]
            is_published = factor == 100 or loss != "focal"
            assert [e.method for e in other.published()] == [method] * is_published
    focal = load_recipe(name, ["stage1.method=class_balanced_focal_stage1"]).settled().stage1
    beta = 0.9999 if name.startswith("cifar10_") else 0.9
    assert focal.options() == {"beta": beta, "gamma": 1.0}
    assert load_recipe(name, ["methods=['ldam_drw_stage1','samn']"]).methods[1] == "samn"


def test_published_figures_are_those_of_the_values():
    published = load_recipe("cifar100_lt_glmc", ["data.imbalance_factor=50"]).published()
    assert [e.accuracy for e in published] == [62.99, 63.37]
    assert load_recipe("cifar100_lt_glmc", ["data.imbalance_factor=20"]).published() == []
    assert load_recipe("cifar100_lt_glmc", ["model.width=16"]).published() == []


def test_the_note_names_what_was_published_and_what_was_changed():
    note = published_note(load_recipe("cifar10_lt", ["model.width=16"]))
    assert note.startswith(
        "Published, without the changes to model.width: CE 80.02, CE + SAMN 83.8"
    )
    note = published_note(load_recipe("cifar10_lt_glmc", ["data.imbalance_factor=50"]))
    assert note.startswith("Published: GLMC 90.89, GLMC + SAMN 91.25 (paper protocol; ")
    assert published_note(load_recipe("cifar10_lt", ["data.imbalance_factor=20"])) == ""
    paper = ["protocol=paper", "methods=['ce']"]
    note = published_note(load_recipe("cifar100_lt_w16", paper).settled())
    assert note.startswith("Published: CE 37.73 to 38.32 (paper protocol; 37.73 BagofTricks-LT")
    assert "38.32 the reference that BagofTricks-LT quotes" in note
    averaged = load_recipe("cifar100_lt_w16", [*paper, "data.flip_average=true"]).settled()
    assert published_note(averaged).startswith(
        "Published, without the changes to data.flip_average: CE 37.73 to 38.32 (paper protocol; "
    )
    assert published_note(load_recipe("digits_lt")) == ""


@pytest.mark.parametrize(
    "name, factors, bn",
    [("cifar10_lt", (0.5, 0.2), "frozen"), ("cifar100_lt", (0.2, 0.1), "train")],
)
def test_mislas_is_mixup_and_smoothing_with_scales(name, factors, bn):
    recipe = load_recipe(name + "_mislas")
    assert (recipe.stage1.method, recipe.stage1.alpha, recipe.stage2.bn) == ("mixup", 1, bn)
    assert recipe.options_of("mislas")["head_lr_factor"] == factors[0]
    other = load_recipe(name + "_mislas", ["data.imbalance_factor=10"])
    assert other.options_of("mislas")["head_lr_factor"] == factors[1]


def test_a_method_has_values_of_its_own(tmp_path):
    recipe = load_recipe("digits_lt", ["method.samn.lr=0.25"])
    assert recipe.method["samn"].lr == 0.25
    for override, words in (
        ("method.samn.speed=1", r"method\.samn\.speed.*epochs, lr"),
        ("method.samn.lr=0", r"method\.samn\.lr=0"),
        ("method.zzz.lr=1", "no method 'zzz'"),
        ("method.tau_norm.lr=1", r"unknown key method\.tau_norm\.lr; allowed are tau"),
        ("method.tau_norm.tau=-1", r"method\.tau_norm\.tau.*at least 0.*-1"),
        ("method.tau_norm.tau=high", r"method\.tau_norm\.tau.*'high'"),
        ("method.ncm.tau=1", r"ncm takes no values from \[method\.ncm\]"),
        ("method.ce.lr=1", r"ce takes no values from \[method\.ce\]"),
        ("method.samn.head_smoothing=0.1", r"method\.samn\.head_smoothing.*epochs, lr"),
        ("method.mislas.head_smoothing=high", r"method\.mislas\.head_smoothing.*'high'"),
        ("method.samn=1", r"method\.samn=1"),
    ):
        with pytest.raises(UserError, match=words):
            load_recipe("digits_lt", [override])


def test_options_of_another_stage_1_are_refused():
    for override, words in (
        ("stage1.contrast=2", r"stage1\.contrast.*glmc.*stage1\.method.*'ce'"),
        ("stage1.alpha=1", r"stage1\.alpha.*mixup, cutmix"),
        ("stage1.method=glmc", "ce is a method of stage 1.*glmc"),
        ("stage1.method=samn", "stage1.method=.samn.*one of ce, .*samn is of a later stage"),
        ("methods=['glmc_samn']", "glmc_samn.*GLMC"),
    ):
        with pytest.raises(UserError, match=words):
            load_recipe("digits_lt", [override])


def test_a_schedule_has_what_it_needs_and_no_more():
    steps = ["stage1.schedule=multistep", "stage1.milestones=[3,5]"]
    s1 = load_recipe("digits_lt", steps).settled().stage1
    assert (s1.milestones, s1.decay) == ([3, 5], 0.1)
    assert load_recipe("digits_lt", steps).smoke().stage1.milestones == [1]
    for overrides, words in (
        (steps[:1], "'multistep'.*milestones"),
        ([*steps[:1], "stage1.milestones=[5,3]"], r"milestones.*\[5, 3\]"),
        ([*steps[:1], "stage1.milestones=[0]"], r"stage1\.milestones\.0 = 0"),
        (steps[1:], r"stage1\.milestones.*'multistep'.*'cosine'"),
        (["stage1.decay=0.5"], r"stage1\.decay.*'multistep'"),
        (["stage1.sharpness_rho=0.1", "stage1.accumulate=2"], "sharpness_rho.*accumulate"),
        (["stage1.ema_decay=1"], r"stage1\.ema_decay=1"),
    ):
        with pytest.raises(UserError, match=words):
            load_recipe("digits_lt", overrides)


def test_every_option_of_stage_1_reaches_the_training():
    def made(*overrides):
        found = stage1_callbacks(load_recipe("digits_lt", overrides).settled().stage1)
        return {type(cb).__name__: cb for cb in found}

    assert made() == {}
    found = made("stage1.accumulate=2", "stage1.ema_decay=0.9")
    assert found["GradientAccumulation"].n_acc == 64 and found["WeightAverage"].decay == 0.9
    assert made("stage1.sharpness_rho=0.25")["SharpnessAware"].rho == 0.25
    overrides = ["stage1.method=glmc", "methods=['glmc']", "stage1.contrast=5"]
    arguments = stage1_arguments(load_recipe("digits_lt", overrides).settled())
    assert arguments["method"] == "glmc"
    assert arguments["options"] == {"contrast": 5, "resample": 0, "reweight": 1.2}


def test_a_method_s_values_and_who_wins():
    def values(*overrides, name="cifar10_lt_glmc"):
        return load_recipe(name, overrides).arguments_of(
            "glmc_samn" if "glmc" in name else "mislas"
        )

    assert values()["lr"] == 5e-5 and values()["bs"] == 64
    assert values("stage2.lr=0.5")["lr"] == 0.5, "the command line beats the table of methods"
    both = values("stage2.lr=0.5", "method.glmc_samn.lr=0.25")
    assert both["lr"] == 0.25, "a method's own value beats the value of stage 2"
    large = values(name="inat2018_mislas")
    assert (large["wd"], large["bs"], large["options"]["head_lr_factor"]) == (1e-4, 256, 0.05)
    small = values(name="cifar100_lt_mislas")
    assert (small["epochs"], small["lr"], small["wd"], small["bs"]) == (10, 0.1, 2e-4, 128)


def test_an_impossible_option_is_refused_before_training(tmp_path):
    for override, words in (
        ("method.mislas.head_smoothing=1.5", r"1\.5"),
        ("stage1.alpha=-1", "alpha.*-1"),
    ):
        recipe = load_recipe("cifar10_lt_mislas", [override]).smoke()
        with pytest.raises(UserError, match=words):
            run_recipe(recipe, Run(tmp_path), data_path=tmp_path / "missing", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_manifests_of_earlier_versions_stay_valid():
    """They list the options of all methods, with null for those of other methods."""
    values = load_recipe("digits_lt").settled().model_dump(mode="json")
    values["stage1"] |= {"alpha": None, "resample": None, "reweight": None, "contrast": None}
    values["method"] = {"samn": {"lr": 0.5, "head_smoothing": None, "head_lr_factor": None}}
    recipe = validate_recipe(values, "manifest.json")
    assert recipe.stage1.options() == {} and recipe.method["samn"].lr == 0.5
    assert recipe.options_of("samn") == {}


def test_every_option_of_a_method_may_stand_in_a_recipe():
    for name, row in METHODS.items():
        for key, default in row.options.items():
            first = name if row.kind == "stage 1" else row.after or "ce"
            section = "stage1" if row.kind == "stage 1" else f"method.{name}"
            value = row.choices[key][-1] if key in row.choices else 1
            given = [f"stage1.method={first}", f"methods=['{name}']", f"{section}.{key}={value}"]
            recipe = load_recipe("digits_lt", given)
            assert recipe.value(f"{section}.{key}") == value
            assert type(recipe.value(f"{section}.{key}")) is type(default)


def test_a_recipe_sets_the_strength_of_a_post_hoc_method(tmp_path):
    sets = ["methods=['ce','tau_norm','logit_adjustment']", "method.tau_norm.tau=1"]
    recipe = load_recipe("digits_lt", sets)
    assert recipe.arguments_of("tau_norm") == {"value": 1.0}
    assert recipe.arguments_of("logit_adjustment") == {}
    stages = run_recipe(recipe.smoke(), Run(tmp_path), device="cpu").manifest.stages
    corrections = {stage["method"]: stage for stage in stages}
    assert (corrections["tau_norm"]["value"], corrections["tau_norm"]["chosen_on"]) == (
        1.0,
        "not chosen",
    )
    assert corrections["logit_adjustment"]["chosen_on"] == "validation"


@pytest.mark.parametrize("name", ["cifar10_lt_w16", "cifar100_lt_w16"])
def test_tau_norm_with_tau_1_has_a_published_figure(name):
    def published(*sets):
        recipe = load_recipe(name, ["protocol=paper", *sets])
        return [figure for figure in recipe.published() if figure.method == "tau_norm"]

    assert published() == []
    assert len(published("method.tau_norm.tau=1")) == 1
    assert len(published("method.tau_norm.tau=1", "data.imbalance_factor=50")) == 1


def test_variants_depend_on_the_meaning_of_a_value():
    recipe = load_recipe("cifar100_lt_glmc", ['data.imbalance_factor="50"'])
    assert (recipe.data.imbalance_factor, recipe.stage1.contrast) == (50, 6)


def test_a_bad_variant_is_refused(tmp_path):
    text = (recipe_folder() / "digits_lt.toml").read_text()
    path = tmp_path / "mine.toml"
    for variant, words in (
        ("[[variant]]\nwhen = { seeds = 3 }", r"\[\[variant\]\].*`when` and `set`"),
        ("[variant]\nwhen = 3", r"\[\[variant\]\].*`when` and `set`"),
        ('[[variant]]\nwhen = { seeds = 3 }\nset = { "stage1.x" = 1 }', "unknown key stage1.x"),
        ('[[variant]]\nwhen = { seeds = 3 }\nset = { "name.x" = 1 }', "name"),
        (
            '[[variant]]\nwhen = { "data.imb" = 3 }\nset = { seeds = 1 }',
            r"`when`.*data\.imb,",
        ),
        ("[[variant]]\nwhen = { data = 3 }\nset = { seeds = 1 }", "`when`.*data,"),
    ):
        path.write_text(f"{text}\n{variant}\n")
        with pytest.raises(UserError, match=words):
            load_recipe(str(path))


def test_recipes_know_every_transform():
    from ltlearn.names import TRANSFORM_NAMES

    for name in TRANSFORM_NAMES:
        override = [f"data.transform={name}"]
        assert load_recipe("inat2018", override).data.transform == name
    with pytest.raises(UserError, match=", ".join(f"'{t}'" for t in TRANSFORM_NAMES[:-1])):
        load_recipe("inat2018", ["data.transform=x"])


def test_tiny_imagenet_recipe_is_our_own():
    recipe = load_recipe("tiny_imagenet_lt")
    assert (recipe.data.imbalance_factor, recipe.data.size) == (100, 32)
    assert recipe.expected == []
    assert "validation part is the test set" in recipe.provenance["data.dataset"]
    assert load_recipe("tiny_imagenet_lt", ["data.size=64"]).data.size == 64
    assert load_recipe("cifar10_lt").data.size is None


def test_tiny_imagenet_recipe_runs(tmp_path):
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
    assert paper.averages_flips and not clean.averages_flips


def test_a_recipe_of_authors_who_test_each_image_once_averages_no_mirror_images():
    paper = load_recipe("cifar100_lt_w16", ["protocol=paper"])
    assert not paper.averages_flips and not paper.settled().averages_flips
    assert "ce" in {e.method for e in paper.published()}
    # The published figures are without mirror images, so a run with them is held to none.
    assert not load_recipe(
        "cifar100_lt_w16", ["protocol=paper", "data.flip_average=true"]
    ).published()
    with pytest.raises(UserError, match=r"data\.flip_average.*protocol"):
        load_recipe("cifar100_lt_w16", ["data.flip_average=true"]).settled()


def test_values_that_do_not_go_together_are_refused():
    for overrides in (
        ["protocol=paper", "stage2.views=1"],
        ["stage2.bn=train", "stage2.views=2"],
        ["protocol=paper", "stage1.select=last"],
    ):
        with pytest.raises(UserError, match=r"stage2\.views=0|stage1\.select"):
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
        ("stage1.epoch=2", ["stage1.epoch", "epochs", "batch_size"]),
        ("stage3.epochs=2", ["stage3"]),
        ("stage1.epochs=-1", ["stage1.epochs", "-1", "0"]),
        ("stage1.epochs=many", ["stage1.epochs", "many", "integer"]),
        ("stage1.lr=nan", ["stage1.lr"]),
        ("data.imbalance_factor=0.5", ["data.imbalance_factor", "0.5", "1"]),
        ("data.split=last_n", ["data.split", "last_n", "first_n", "shuffle_seed0"]),
        ("data.dataset=mnist", ["data.dataset", "mnist", "digits_lt"]),
        ("protocol=dirty", ["protocol", "dirty", "clean", "paper"]),
        ("seeds=0", ["seeds", "0"]),
        ("methods=['sam']", ["sam", "samn"]),
        ("methods=[]", ["methods"]),
        ("seeds", ["overrides", "seeds"]),
        ("a.b.c=1", ["overrides", "a.b.c=1"]),
        ("name.x=1", ["name", "data, model, stage1, stage2"]),
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
    with pytest.raises(UserError, match="digit_lt.*digits_lt"):
        load_recipe("digit_lt")
    with pytest.raises(UserError, match=r"nowhere/mine\.toml"):
        load_recipe("nowhere/mine.toml")


def test_a_file_of_ones_own(tmp_path):
    text = (recipe_folder() / "digits_lt.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("epochs = 30", "epochs = 3"))
    assert load_recipe(str(path)).stage1.epochs == 3
    path.write_text(text.replace('"stage1.epochs" = "own"\n', ""))
    with pytest.raises(UserError, match=r"stage1\.epochs.*\[provenance\]"):
        load_recipe(str(path))
    path.write_text(text.replace("[stage1]", "[stage1"))
    with pytest.raises(UserError, match="TOML"):
        load_recipe(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="TOML"):
        load_recipe(str(path))
    path.write_text(text.replace("epochs = 30\n", ""))
    with pytest.raises(UserError, match=r"stage1\.epochs is missing"):
        load_recipe(str(path))
