"""The sets: other groups by our names, one source alone, draws that repeat, and what training had seen."""

from pathlib import Path

import pytest

from bench.judge.sets import OTHERS, JudgingSet, drawn, main_set, read_set, share_seen
from compression.encode import IGNORED
from compression.examples import DataError, QuestionExample, TaggedExample, TextExample
from compression.read_recipe import load_recipe
from compression.recipe import Recipe
from tests.bench.judged_data import RECIPES, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def recipe(name: str) -> Recipe:
    loaded = load_recipe(RECIPES / f"{name}.toml")
    assert isinstance(loaded, Recipe)
    return loaded


@pytest.mark.parametrize("name", ["ner", "qa", "sentiment"])
def test_every_set_of_the_shipped_recipes_is_read(data: Path, name: str) -> None:
    ours = recipe(name)
    assert OTHERS[ours.data.dataset], "judged on nothing else"
    for one in (main_set(ours), *OTHERS[ours.data.dataset]):
        examples, total = read_set(one, data, ours)
        assert len(examples) == total > 0


def test_other_groups_get_our_names_and_some_do_not_count(data: Path) -> None:
    wnut = next(one for one in OTHERS["conll-2003"] if one.name.startswith("WNUT"))
    examples, _ = read_set(wnut, data, recipe("ner"))
    tags = {tag for example in examples if isinstance(example, TaggedExample) for tag in example.tags}
    assert tags == {"O", "B-PER", "B-ORG", "B-LOC"}


def test_one_source_of_a_file(data: Path) -> None:
    (amazon,) = OTHERS["squad-v1.1"]
    examples, _ = read_set(amazon, data, recipe("qa"))
    assert len(examples) == 12
    assert all(isinstance(one, QuestionExample) and "amazon" in one.id for one in examples)
    with pytest.raises(DataError, match="no articles with"):
        read_set(JudgingSet("x", amazon.files, "", source="elsewhere"), data, recipe("qa"))


def test_a_limit_draws_the_same_examples_each_time(data: Path) -> None:
    few = JudgingSet("x", ("sst2/dev.tsv",), "", limit=10)
    examples, total = read_set(few, data, recipe("sentiment"))
    assert (len(examples), total) == (10, 24)
    assert examples == read_set(few, data, recipe("sentiment"))[0]
    assert drawn(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert sorted(set(drawn(1000, 100).tolist())) == drawn(1000, 100).tolist()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("ner", "qa", "sentiment", "intent"):
        for one in (main_set(recipe(name)), *OTHERS.get(recipe(name).data.dataset, ())):
            with pytest.raises(DataError, match="no such file; give the folder"):
                read_set(one, tmp_path, recipe(name))


def test_what_training_had_seen_counts_whatever_its_label() -> None:
    judged = [TextExample("A  good film", 1), TextExample("a bad film", 0), TextExample("unseen", 0)]
    assert share_seen(judged, [TextExample("a good film", 0), TextExample("A BAD FILM", 0)]) == pytest.approx(2 / 3)
    question = QuestionExample("1", "who?", "mary was here", ((0, "mary"),))
    other = QuestionExample("2", "where?", "mary was here", ((9, "here"),))
    assert share_seen([question, other], [question]) == 0.5
    assert share_seen([TaggedExample(("a", "b"), ("O", "O"))], [TaggedExample(("A", "b"), ("O", "B-PER"))]) == 1
    assert share_seen([TaggedExample(("A", "b", "."), ("O",) * 3)], [TextExample("a  B.", IGNORED)]) == 1
