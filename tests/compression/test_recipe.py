from pathlib import Path

import pytest

from compression.recipe import RecipeError, load_recipe, parse_recipe
from tests.compression import tiny

SHIPPED = sorted((Path(__file__).parents[2] / "compression" / "recipes").glob("*.toml"))


def text(tmp_path: Path, task: str = "text-classification") -> str:
    return tiny.recipe(task, Path("base"), tmp_path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_named_after_their_file(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.prune.sparsity >= 0.8
    assert recipe.golden, "a shipped model proves itself at load"


def test_values_arrive_typed_and_defaults_hold(tmp_path: Path) -> None:
    recipe = parse_recipe(text(tmp_path))
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
        ('dataset = "made up"', 'dataset = "x"\ntable = {bad_lines = -1}', "'data.table.bad_lines' is -1"),
        ('dataset = "made up"', 'dataset = "x"\ntable = {lable = "y"}', "did you mean 'data.table.label'"),
        ('dataset = "made up"', 'dataset = "x"\nmore_validation = [{split = "dev", file = "f"}]', "without repetition"),
        ("gradient_accumulation = 2", "gradient_accumulation = 99", "in [1, batch_size]"),
        ("dropout = 0.0", "dropout = 1.0", "'quantize.training.dropout' is 1.0"),
        ('text = "the story was superb"', 'question = "?"', "'golden[0]' is ['question']; it must be"),
        ('dataset = "made up"\n', "", "missing key 'data.dataset'"),
        ('name = "tiny"', "name = ", "not valid TOML"),
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
        ("keep_layers = [1, 0]", "'prune.keep_layers' is [1, 0]; it must be layer numbers from 0 on, rising"),
        ("fisher = {block = 8}", "it must be absent: criterion 'magnitude' does not use it"),
        ('criterion = "movement"\ninitial = 0.1', "0 where pruning begins at once: nothing has moved yet"),
        ('criterion = "obert"\npattern = "4x1"', "'prune.fisher.block' is 50; it must be a multiple of 4"),
        ('criterion = "obert"\nfisher = {damping = 0}', "'prune.fisher.damping' is 0.0; it must be > 0"),
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
