"""Prints the hardest errors with their texts, for a person to read; the texts may not be published, readings may."""

from pathlib import Path

from bench.judge import records
from bench.judge.measurements import errors
from bench.judge.sets import read_set
from bench.judge.subject import Subject
from compression.examples import Example, QuestionExample, TaggedExample, TextExample


def show_errors(models: Path, data: Path, record: Path) -> None:
    """Print the errors of every artifact in `models`, from the rows where they are there, with what was read in them.

    Raises what `Subject` and `read_set` raise.
    """
    read = records.readings(record)
    for folder in sorted(path.parent for path in models.glob("*/manifest.json")):
        subject = Subject(folder, data)
        name = subject.manifest.name
        known = records.tables(record, name) if name in records.models(record) else {}
        rows = known.get("errors") or list(errors(subject))
        examples, _ = read_set(subject.set(subject.sets[0]), data, subject.recipe)
        for row in rows:
            example = _named(examples, str(row["example"]))
            print(f"\n{name} {row['example']}: expected {row['expected']}, found {row['found']}, {row['confidence']}")
            print(_shown(example, str(row["example"]), str(row["found"])))
            print("reading:", read.get((name, str(row["example"]), str(row["found"])), "none yet"))


def _named(examples: list[Example], name: str) -> Example:
    if isinstance(examples[0], QuestionExample):
        return next(one for one in examples if isinstance(one, QuestionExample) and one.id == name)
    return examples[int(name.partition(":")[0]) - 1]


def _shown(example: Example, name: str, found: str) -> str:
    if isinstance(example, TextExample):
        return example.text if example.pair is None else f"{example.text}\n{example.pair}"
    if isinstance(example, TaggedExample):
        first, last = (int(number) for number in name.partition(":")[2].split("-"))
        words = [word if tag == "O" else f"{word}/{tag}" for word, tag in zip(example.words, example.tags, strict=True)]
        return " ".join([*words[: first - 1], "[", *words[first - 1 : last], "]", *words[last:]])
    start, end = (int(number) for number in found.split("-"))
    answers = " | ".join(dict.fromkeys(text for _, text in example.answers))
    context = f"{example.context[:start]}[{example.context[start:end]}]{example.context[end:]}"
    return f"{example.question}\nright: {answers}\n{context}"
