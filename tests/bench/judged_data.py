"""Tiny made-up data in the files and forms that the embedded models are judged on, and random artifacts beside it."""

import json
import random
import re
from pathlib import Path

from compression.read_recipe import load_recipe
from compression.recipe import Recipe
from tests.random_artifact import write_random_artifact
from tests.service.artifacts import CLS, NER, QA, edit

RECIPES = Path(__file__).parents[2] / "compression" / "recipes"
TASKS = {"intent": CLS, "ner": NER, "qa": QA, "sentiment": CLS}
GROUPS = ("PER", "ORG", "LOC", "MISC")
WNUT = ("person", "group", "corporation", "location", "product", "creative-work")


def _intents() -> tuple[str, ...]:
    recipe = load_recipe(RECIPES / "intent.toml")
    assert isinstance(recipe, Recipe)
    return recipe.task.labels


INTENTS = _intents()


def write_data(folder: Path, examples: int = 24) -> Path:
    """Write every file that the recipes and `bench.judge.sets` name; the same bytes each time."""
    chance = random.Random(0)
    for name in ("train", "dev", "test"):
        rows = [f"{_words(chance)} {'good' if i % 2 else 'bad'} film\t{i % 2}" for i in range(examples)]
        _write(folder / f"sst2/{name}.tsv", "sentence\tlabel\n" + "\n".join(rows) + "\n")
    for name in ("train", "test"):
        rows = [f'"{_words(chance)}, please",{INTENTS[i % len(INTENTS)]}' for i in range(examples)]
        _write(folder / f"intent/banking77/{name}.csv", "text,category\n" + "\n".join(rows) + "\n")
    for name in ("train", "testa", "testb"):
        _write(folder / f"conll2003/eng.{name}", _columns(chance, examples, GROUPS, " X X "))
    _write(folder / "ner_open/wikigold/wikigold.conll.txt", _columns(chance, examples, GROUPS, " "))
    _write(folder / "ner_open/wnut17/emerging.test.annotated", _columns(chance, examples, WNUT, "\t"))
    for part in "abefgh":
        # Tweets have lines with a tag and no word.
        _write(folder / f"ner_open/btc/{part}.conll", "\tO\n" + _columns(chance, 4, GROUPS[:3], "\t"))
    for name in ("dev-v1.1", "train"):
        sources = ("squad_recovered", "squadshifts_amazon_reviews")
        articles = [{"title": s, "source": s, "paragraphs": _paragraphs(chance, name + s, 6)} for s in sources]
        _write(folder / f"squad/{name}.json", json.dumps({"version": "1.1", "data": articles}))
    return folder


def write_artifacts(folder: Path) -> Path:
    """Write a random artifact for each embedded model, with its shipped recipe; they know 64 tokens a window."""
    for name, task in TASKS.items():
        tags = ("O", *(f"{prefix}-{group}" for group in GROUPS for prefix in "BI"))
        labels = {"ner": tags, "intent": INTENTS}.get(name)
        write_random_artifact(folder / name, name=name, task=task, labels=labels, layers=1, hidden=32, heads=2, ffn=64)
        judged_as(folder / name, name)
    return folder


def judged_as(artifact: Path, name: str) -> None:
    """Let an artifact say that a shipped recipe made it; but nothing was held out, so that one set is no test."""
    text = re.sub(r"^leave_out = .*\n", "", (RECIPES / f"{name}.toml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    metric = {NER: "entity_f1", QA: "f1", CLS: "accuracy"}[TASKS[name]]
    edit(artifact, lambda manifest: manifest["provenance"].update(recipe=text))
    edit(artifact, lambda manifest: manifest["quality"].update(metric=metric, dense=0.5))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _words(chance: random.Random, most: int = 12) -> str:
    return " ".join(
        chance.choices(("the", "was", "paris", "london", "john", "mary", "where"), k=chance.randint(1, most))
    )


def _columns(chance: random.Random, sentences: int, groups: tuple[str, ...], between: str) -> str:
    made = []
    for _ in range(sentences):
        words = _words(chance).split()
        tags = [chance.choice(("O", *(f"B-{group}" for group in groups))) for _ in words]
        made.append("\n".join(f"{word}{between}{tag}" for word, tag in zip(words, tags, strict=True)))
    return "\n\n".join(made) + "\n"


def _paragraphs(chance: random.Random, name: str, count: int) -> list[dict[str, object]]:
    made: list[dict[str, object]] = []
    for number in range(count):
        context = f"{_words(chance, 60)} mary was in london. {_words(chance)}"
        answers = [{"text": "london", "answer_start": context.index("london")}]
        questions = [
            {"id": f"{name}-{number}-{i}", "question": f"where was {who}"} for i, who in enumerate(("mary", "john"))
        ]
        made.append({"context": context, "qas": [{**question, "answers": answers} for question in questions]})
    return made
