"""An artifact under judgement: loaded with one thread, with its recipe, and each set read and answered once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from tokenizers import Tokenizer

import engine
from bench.judge.outcomes import Outcomes, judge
from bench.judge.sets import (
    OTHERS,
    JudgingSet,
    kept_groups,
    main_set,
    read_set,
    share_seen,
    training_examples,
)
from compression.encode import Encoder, prepare_tokenizer
from compression.evaluate import Predict
from compression.examples import DataError, Example
from compression.export import engine_predictor, task_of
from compression.metrics import headline
from compression.read_recipe import parse_recipe
from compression.recipe import Recipe, Task
from compression.verify import predict_all

# Which scores of which task have intervals here: sums of what examples gain.
METRICS = {"text-classification": "accuracy", "token-classification": "entity_f1", "question-answering": "f1"}
BATCH = 16


class JudgingError(ValueError):
    """An artifact that cannot be judged; the message says what it lacks."""


@dataclass(frozen=True)
class Answered:
    """A set as read, `total` examples before its limit, and what a model made of it."""

    examples: Sequence[Example]
    total: int
    outcomes: Outcomes


class Subject:
    """One artifact, and the data folder it is judged with."""

    def __init__(self, folder: Path, data: Path) -> None:
        """Load it. Raises engine.ArtifactError, JudgingError, and RecipeError for a recipe of another version."""
        self.folder, self.data = folder, data
        model = engine.load(folder, threads=1)
        self.manifest = model.manifest
        self.recipe = _recipe(self.manifest)
        self.task: Task = replace(task_of(self.manifest), metric=self.recipe.task.metric)
        if headline(self.task) != METRICS[self.task.name]:
            raise JudgingError(f"{folder}: is judged by {headline(self.task)}; known are {', '.join(METRICS.values())}")
        self.predict: Predict = engine_predictor(model)
        # Sets are answered once: calibration, lengths and errors look at the same answers.
        self.answered = cache(self._answered)

    @cached_property
    def encoder(self) -> Encoder:
        """What cuts examples into the model's windows."""
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        prepared = prepare_tokenizer(tokenizer, self.manifest.architecture.vocabulary)
        return Encoder(prepared, self.task, uses_types=self.manifest.architecture.types > 0)

    @property
    def weights(self) -> str:
        """The first digits of the weights' sha256: which artifact a row is about."""
        return str(self.manifest.files["model.safetensors"]["sha256"])[:12]

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets, the one with the headline first."""
        return tuple(self._sets)

    @cached_property
    def _sets(self) -> dict[str, JudgingSet]:
        main = main_set(self.recipe)
        others = (one for one in OTHERS.get(self.recipe.data.dataset, ()) if one.files != main.files)
        return {one.name: one for one in (main, *others)}

    def set(self, name: str) -> JudgingSet:
        """Return a set by its name."""
        return self._sets[name]

    def _answered(self, name: str) -> Answered:
        examples, total = read_set(self._sets[name], self.data, self.recipe)
        return Answered(examples, total, self.judge(self.predict, examples, name))

    def seen(self, name: str) -> float | None:
        """Return the share of a set that training had seen; None where the training file is not at hand."""
        return None if self._training is None else share_seen(self.answered(name).examples, self._training)

    @cached_property
    def _training(self) -> Sequence[Example] | None:
        try:
            return training_examples(self.recipe, self.data)
        except DataError:
            return None

    def judge(self, predict: Predict, examples: Sequence[Example], name: str) -> Outcomes:
        """Let any model of this task answer examples of the set `name`."""
        windows = self.encoder.windows(examples)
        groups = kept_groups(self._sets[name], self.task)
        return judge(windows, predict_all(predict, windows, BATCH), examples, self.task, groups)


def _recipe(manifest: engine.Manifest) -> Recipe:
    text = manifest.provenance.get("recipe")
    recipe = parse_recipe(text, f"recipe of {manifest.name}") if text else None
    if not isinstance(recipe, Recipe):
        raise JudgingError(f"{manifest.name}: has no recipe in its manifest, so nothing says what it was trained on")
    return recipe
