import math
import re
from dataclasses import fields
from pathlib import Path

import pytest

from compression.read_recipe import load_recipe, parse_recipe
from compression.recipe import (
    Data,
    Distillation,
    Fisher,
    Golden,
    LanguageRecipe,
    LanguageTask,
    Prune,
    Recipe,
    RecipeError,
    Source,
    Table,
    Task,
    TeacherTraining,
    Text,
    Validation,
)
from tests.compression import tiny

SHIPPED = sorted((Path(__file__).parents[2] / "compression" / "recipes").rglob("*.toml"))

TABLES = (
    Task,
    Data,
    Table,
    Validation,
    Source,
    TeacherTraining,
    Prune,
    Fisher,
    Distillation,
    Text,
    LanguageTask,
    Golden,
)


@pytest.mark.parametrize("table", TABLES)
def test_the_guide_names_every_key(table: type) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "compression.md").read_text()
    named = set(re.findall(r"`(?:\[\[?(?:\w+\.)?)?(\w+)(?:\]\]?)?`", guide))
    assert {key.name for key in fields(table)} - named == set()


def text(tmp_path: Path, task: str = "text-classification") -> str:
    return tiny.recipe(task, Path("base"), tmp_path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_named_after_their_file(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.prune is None or recipe.prune.sparsity >= 0.8
    assert isinstance(recipe, LanguageRecipe) or recipe.golden, "a shipped model proves itself at load"


@pytest.mark.parametrize("path", [p for p in SHIPPED if p.stem.endswith("-lm")], ids=lambda path: path.stem)
def test_shipped_language_models_say_their_sparsity_in_their_name(path: Path) -> None:
    recipe = load_recipe(path)
    assert isinstance(recipe, LanguageRecipe)
    assert f"-{round(100 * recipe.prune.sparsity)}-lm" in recipe.name
    distillation = recipe.prune.distillation
    assert (distillation.task, distillation.teacher, distillation.temperature) == (0.5, 0.5, 2.0)


@pytest.mark.parametrize("stem", ["bert-base-85-lm", "bert-base-90-lm", "bert-large-90-lm"])
def test_the_papers_recipes_are_the_published_steps(stem: str) -> None:
    recipe = load_recipe(SHIPPED[0].parent / f"{stem}.toml")
    assert isinstance(recipe, LanguageRecipe) and recipe.teacher is not None and recipe.task.next_sentence
    training, prune = recipe.prune.training, recipe.prune
    for one in (recipe.teacher, training):
        assert (one.steps, one.batch_size, one.learning_rate, one.warmup) == (100_000, 256, 5e-5, 0.01)
    assert (prune.start, prune.end * training.steps, prune.update_every) == (0.0, 50_000, 1_000)
    assert prune.reselect_until * training.steps == 80_000 and training.schedule == "rewinding"
    assert (recipe.task.window, recipe.text.short, recipe.text.validation, recipe.task.masked) == (512, 0.1, 0.05, 0.15)


@pytest.mark.parametrize("task", ["squad", "squad2", "sst2", "mnli", "qqp", "qnli", "mrpc", "rte", "cola"])
def test_what_follows_intels_scripts_clips_as_little_as_they_do(task: str) -> None:
    recipe = load_recipe(SHIPPED[0].parent / f"bert-base-90-{task}.toml")
    assert isinstance(recipe, Recipe) and recipe.transfer is not None
    assert recipe.transfer.training.max_gradient_norm == recipe.quantize.training.max_gradient_norm == math.inf
    assert recipe.teacher.max_gradient_norm == 1.0, "BERT's own fine-tuning clips"


def test_values_arrive_typed_and_defaults_hold(tmp_path: Path) -> None:
    recipe = parse_recipe(text(tmp_path))
    assert isinstance(recipe, Recipe) and recipe.prune is not None
    assert recipe.teacher.epochs == 3.0 and isinstance(recipe.teacher.epochs, float)
    assert recipe.task.labels == ("negative", "positive")
    assert (recipe.prune.distillation.task, recipe.prune.distillation.temperature) == (0.5, 2.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("learning_rate = 3e-4", "lerning_rate = 3e-4", "did you mean 'quantize.training.learning_rate'"),
        ("[prune]", "[prun]", "unknown key 'prun'; did you mean 'prune'"),
        ("seed = 3", 'seed = "three"', "'seed' must be int, got 'three'"),
        ("seed = 3", "seed = true", "'seed' must be int, got True"),
        ("seed = 3", "seed = -1", "'seed' is -1; it must be in [0, 4294967196)"),
        ("seed = 3", "seed = 4294967196", "'seed' is 4294967196; it must be in"),
        ("epochs = 1\n", "epochs = inf\n", "steps' is (inf, 0); it must be one of the two, > 0 and finite"),
        ("epochs = 1\n", "epochs = 1\nweight_decay = inf\n", "training.weight_decay' is inf; it must be >= 0 and"),
        ("[prune.training]", "distillation = {temperature = inf}\n[prune.training]", "temperature' is inf; it must be"),
        ("[prune.training]", "distillation = {teacher = inf}\n[prune.training]", "teacher' is inf; it must be >= 0"),
        ("sparsity = 0.8", "sparsity = 1.0", "'prune.sparsity' is 1.0; it must be in [0, 1)"),
        ("end = 0.5", "end = 0.0", "0 <= start < end <= 1"),
        ("window = 32", "window = 4", "'task.window' is 4; it must be >= 16 tokens"),
        ("stride = 8", "stride = 32", "'task.stride' is 32; it must be in [0, 24)"),
        ('"text-classification"', '"text-clasification"', "did you mean 'text-classification'"),
        ('["negative", "positive"]', '["positive"]', "at least 2 names"),
        ('["negative", "positive"]', '["a", "a"]', "without repetition"),
        ('["negative", "positive"]', '"negative"', "'task.labels' must be a list"),
        ("window = 32", "no_answer = true", "'task.no_answer' is True; it must be absent: it is for question"),
        ("window = 32", "no_answer_threshold = 1", "'task.no_answer_threshold' is 1.0; it must be absent without"),
        ("window = 32", 'metric = "f2"', "'task.metric' is 'f2'; it must be one of ('accuracy', 'f1', 'matthews')"),
        ("window = 32", 'multi_label = true\nmetric = "f1"', "one of ('micro_f1', 'macro_f1', 'subset_accuracy')"),
        ("window = 32", "pairs = true", "it must be a table of ['text', 'text_pair'] for text-classification"),
        ('dataset = "made up"', 'dataset = "x"\ntable = {text_pair = "b"}', "absent without task.pairs"),
        ('dataset = "made up"', 'dataset = "x"\ntable = {separator = ""}', "'data.table.separator' is ''"),
        ('dataset = "made up"', 'dataset = "x"\nleave_out = ["x"]', "'data.leave_out' is ['x']; it must be absent"),
        ('dataset = "made up"', 'dataset = "x"\ntable = {bad_lines = -1}', "'data.table.bad_lines' is -1"),
        ('dataset = "made up"', 'dataset = "x"\ntable = {lable = "y"}', "did you mean 'data.table.label'"),
        ('dataset = "made up"', 'dataset = "x"\nmore_validation = [{split = "dev", file = "f"}]', "without repetition"),
        ("gradient_accumulation = 2", "gradient_accumulation = 99", "in [1, batch_size]"),
        ("dropout = 0.0", "dropout = 1.0", "'quantize.training.dropout' is 1.0"),
        ('text = "the story was superb"', 'question = "?"', "'golden[0]' is ['question']; it must be"),
        ('dataset = "made up"\n', "", "missing key 'data.dataset'"),
        ('name = "tiny"', "name = ", "not valid TOML"),
        ('name = "tiny"', 'name = "Tiny 90"', "'name' is 'Tiny 90'; it must be at most 64 of a-z 0-9"),
        ('["negative", "positive"]', '["", "positive"]', "it must be without an empty one"),
        ('dataset = "made up"', 'dataset = "x"\nunlabelled = {files = ["a.txt"], sources = ["b"], sentences = 9}',
         "a .json file where there are sources"),
        ("epochs = 1\n", "", "quantize.training.steps' is (0.0, 0); it must be one of the two"),
        ("epochs = 1\n", "epochs = 1\nsteps = 9\n", "is (1.0, 9); it must be one of the two"),
        ("[teacher]\nepochs = 3\n", "[teacher]\n", "it must be with epochs or steps; without them, with a fine-tuned"),
        ("epochs = 1\n", 'epochs = 1\nschedule = "rewinding"\n', "follows the mask updates of 'prune.training'"),
        ("end = 0.5", "end = 0.5\nreselect_until = 0.4", "'prune.reselect_until' is 0.4; it must be 0 or in [0.5, 1]"),
        ("[prune.training]", "distillation = {masked_only = true}\n[prune.training]", "for masked-language-modelling"),
        ("[prune.training]", "distillation = {task = 0, teacher = 0, hidden = 1}\n[prune.training]", "train no head"),
        ("[prune.training]", "[transfer.training]", "missing key 'prune.training'"),
        ("[prune]", "[transfer.training]\nepochs = 1\nlearning_rate = 1e-4\n[prune]", "found both"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_key_value_and_limit(tmp_path: Path, old: str, new: str, message: str) -> None:
    good = text(tmp_path)
    assert old in good
    with pytest.raises(RecipeError) as error:
        parse_recipe(good.replace(old, new, 1), "my.toml")
    assert message in str(error.value)
    assert str(error.value).startswith("my.toml: ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('criterion = "magnitud"', "'prune.criterion' is 'magnitud'; did you mean 'magnitude'? (known: magnitude, mov"),
        ('scope = "layer"', "'prune.scope' is 'layer'; did you mean"),
        ('pattern = "4x2"', "'prune.pattern' is '4x2'; did you mean '4x1'"),
        ('pattern = "4:4"', "'prune.pattern' is '4:4'; it must be N:M with N < M <= 8"),
        ('pattern = "2:4"', "'prune.sparsity' is 0.8; it must be 0.5, the sparsity of pattern 2:4"),
        ("initial = 0.9", "'prune.initial' is 0.9; it must be in [0, 0.8]"),
        ("at_epochs = [2, 1]", "'prune.at_epochs' is [2.0, 1.0]; it must be rising, in [0, 3)"),
        ("at_epochs = [1, 2]", "'prune.start, end, update_every' is (0.0, 0.5, 2); it must be absent beside at_epochs"),
        ("at_epochs = [1, 2]\nreselect_until = 0.9", "is 0.9; it must be 0 beside at_epochs: it goes by update_every"),
        ("keep_layers = [1, 0]", "'prune.keep_layers' is [1, 0]; it must be layer numbers from 0 on, rising"),
        ("fisher = {block = 8}", "it must be absent: criterion 'magnitude' does not use it"),
        ('criterion = "movement"\ninitial = 0.1', "0 where pruning begins at once: nothing has moved yet"),
        ('criterion = "obert"\npattern = "4x1"', "'prune.fisher.block' is 50; it must be a multiple of 4"),
        ('criterion = "obert"\nfisher = {damping = 0}', "'prune.fisher.damping' is 0.0; it must be > 0"),
        ('criterion = "obert"\nfisher = {damping = inf}', "'prune.fisher.damping' is inf; it must be > 0 and finite"),
        ('criterion = "obert"\nfisher = {gradients = 0}', "'prune.fisher.gradients' is 0; it must be >= 1"),
        ('criterion = "obert"\nfisher = {grads = 9}', "did you mean 'prune.fisher.gradients'"),
        ('criterion = "obert"\n[prune.training]\nmixed_precision = "fp16"', "which fp16 would scale"),
        ('[prune.training]\nschedule = "cyclc"', "'prune.training.schedule' is 'cyclc'; did you mean 'cyclic'"),
        ("[prune.training]\nrewind_epochs = [1]", "it must be 'cyclic' where there are rewind_epochs or a lowest_rate"),
        ('[prune.training]\nschedule = "cyclic"\nrewind_epochs = [3]', "'prune.training.rewind_epochs' is [3.0]; it"),
    ],
)  # fmt: skip
def test_a_mistake_in_how_to_prune_is_named(tmp_path: Path, settings: str, message: str) -> None:
    top, _, training = settings.partition("[prune.training]")
    good = text(tmp_path).replace("[prune]", f"[prune]\n{top}", 1)
    good = good.replace("[prune.training]", f"[prune.training]{training}", 1)
    with pytest.raises(RecipeError) as error:
        parse_recipe(good)
    assert message in str(error.value)


def test_a_threshold_is_a_number(tmp_path: Path) -> None:
    good = text(tmp_path, "no-answer")
    with pytest.raises(RecipeError, match=r"'task\.no_answer_threshold' is nan; it must be finite"):
        parse_recipe(good.replace("no_answer = true", "no_answer = true\nno_answer_threshold = nan"))


def test_an_answer_is_no_longer_than_a_window(tmp_path: Path) -> None:
    long = text(tmp_path, "question-answering").replace("max_answer_tokens = 8", "max_answer_tokens = 33")
    with pytest.raises(RecipeError, match=r"'task\.max_answer_tokens' is 33; it must be in \[1, 32\], the window"):
        parse_recipe(long)


def test_question_answering_has_no_labels(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="absent for question answering"):
        parse_recipe(text(tmp_path, "question-answering").replace("window", 'labels = ["x"]\nwindow', 1))


@pytest.mark.parametrize("line", ["pairs = true", "multi_label = true", 'metric = "f1"'])
def test_kinds_of_text_classification_are_of_no_other_task(tmp_path: Path, line: str) -> None:
    with pytest.raises(RecipeError, match="it must be absent: it is for text classification"):
        parse_recipe(text(tmp_path, "token-classification").replace("window", f"{line}\nwindow", 1))
    with pytest.raises(RecipeError, match=r"'data.table' is .* it must be absent for this task"):
        parse_recipe(text(tmp_path, "question-answering").replace("[data]", '[data]\ntable = {label = "x"}', 1))


def test_both_columns_of_a_pair_are_named_or_neither(tmp_path: Path) -> None:
    good = text(tmp_path, "pairs")
    assert parse_recipe(good).data.more_validation[0].split == "mismatched"
    with pytest.raises(RecipeError, match="named both or neither"):
        parse_recipe(good.replace("[data]", '[data]\ntable = {text = "premise"}', 1))


def test_a_missing_recipe_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml: cannot be read: No such file"):
        load_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("masked-language-modelling", "masked-language-modeling", "it must be 'masked-language-modelling'"),
        ("[text]", "[data]", "unknown key 'data'"),
        ('files = ["text.txt"]', "files = []", "'text.files' is []; it must be at least one file"),
        ("validation = 0.2", "validation = 1.0", "'text.validation' is 1.0"),
        ("validation = 0.2", "short = 2", "'text.short' is 2.0"),
        ("window = 32", "window = 8", "'task.window' is 8"),
        ("window = 32", "masked = 0", "'task.masked' is 0.0; it must be in (0, 1)"),
        ("warmup = 0.1", "warmup = 0.6", "'prune.end + prune.training.warmup' is 1.1; it must be < 1"),
        ("end = 0.5", "end = 0.5\nstart = 0.1", "'prune.start' is 0.1; it must be 0 with schedule 'rewinding'"),
        ('"rewinding"', '"rewound"', "'prune.training.schedule' is 'rewound'; did you mean 'rewinding'? (known: l"),
        ('"rewinding"', '"cyclic"', "'prune.training.steps' is 40; it must be 0 with schedule 'cyclic': give epochs"),
        ('"rewinding"', '"rewinding"\nlowest_rate = 1e-5', "'rewinding'; it must be 'cyclic' where there are rewind"),
        ("reselect_until = 0.8", "at_epochs = [1]", "'prune.at_epochs' is [1.0]; it must be absent with schedule"),
        ("reselect_until = 0.8", "pattern = '2:4'", "'prune.sparsity' is 0.8; it must be 0.5, the sparsity of patt"),
        ("reselect_until", "criterion = 'obert'\nreselect_until", "'prune.reselect_until' is 0.8; it must be 0 for"),
        ("reselect_until", "criterion = 'movement'\nreselect_until", "is 0.8; it must be 0 for criterion 'movement'"),
        ("[prune.training]", "[prune.distillation]\nhidden = -1\n[prune.training]", "hidden' is -1.0; it must be >= 0"),
        ("[prune]", "[transfer]\n[prune]", "unknown key 'transfer'"),
        ("steps = 40", 'steps = 40\nmixed_precision = "fp16"', "teacher.mixed_precision' is 'fp16'; it must be"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_language_recipe_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    good = tiny.language_recipe(Path("base"), tmp_path)
    assert isinstance(parse_recipe(good), LanguageRecipe) and old in good
    with pytest.raises(RecipeError) as error:
        parse_recipe(good.replace(old, new, 1))
    assert message in str(error.value)


def test_updates_at_epochs_need_a_length_in_epochs(tmp_path: Path) -> None:
    good = tiny.language_recipe(Path("base"), tmp_path)
    text = good.replace("end = 0.5\nupdate_every = 2\nreselect_until = 0.8", "at_epochs = [1]")
    text = text.replace('schedule = "rewinding"', "")
    with pytest.raises(RecipeError, match=r"'prune\.training\.steps' is 40; it must be 0 beside prune\.at_epochs"):
        parse_recipe(text)
    before, after = text.split("[prune.training]\n")
    recipe = parse_recipe(before + "[prune.training]\n" + after.replace("steps = 40", "epochs = 2"))
    assert recipe.prune is not None and recipe.prune.at_epochs == (1.0,)


def test_a_transfer_needs_a_dense_checkpoint_for_its_teacher(tmp_path: Path) -> None:
    good = tiny.transfer_recipe("text-classification", Path("sparse"), Path("dense"), tmp_path)
    recipe = parse_recipe(good)
    assert isinstance(recipe, Recipe) and recipe.prune is None
    assert [name for name, _ in recipe.stages()] == ["teacher", "transfer", "quantize", "rewind-1"]
    with pytest.raises(RecipeError, match=r"'teacher\.checkpoint' is ''; it must be given"):
        parse_recipe(good.replace('checkpoint = "dense"', ""))
