"""A recipe from its first stage to its last: to an artifact, or to a sparse language model."""

from dataclasses import replace
from pathlib import Path

import engine
from compression import pretrain, processes
from compression import run as stages
from compression.plan import check_disk
from compression.publish import publish
from compression.read_recipe import load_recipe
from compression.recipe import LanguageRecipe


def run_line(
    recipe: Path, data: Path, run_folder: Path | None = None, threads: int | None = None, *, record: bool = False
) -> str:
    """Run every stage of a recipe that is not done yet; return a line on the result, empty but in the main process.

    The run folder is runs/NAME where none is given; `threads` are the engine's, which judges the artifact; `record` has
    the steps of a task recorded on a GPU, see `replay`.

    Raises:
        RecipeError, DataError, CheckpointError, TrainingError, ArtifactError: what is wrong and what to do.
    """
    loaded = load_recipe(recipe)
    folder = run_folder or Path("runs") / loaded.name
    text = recipe.read_text(encoding="utf-8")
    if isinstance(loaded, LanguageRecipe):
        result = pretrain.run_recipe(loaded, text, data, folder)
        processes.end()
        return result
    prepared = replace(stages.prepare(loaded, text, data, folder), record=record)
    check_disk(prepared)
    teacher = stages.fit_teacher(prepared)
    pruned = stages.fit_sparse(prepared, teacher)
    stages.fit_quantized(prepared, teacher, pruned)
    artifact = publish(prepared, threads)
    quality = engine.read_manifest(artifact).raw["quality"]
    processes.end()
    if not processes.state().is_main_process:
        return ""
    return (
        f"{artifact}: {quality['metric']} on {quality['dataset']} {quality['split']}: dense {quality['dense']}, "
        f"sparse {quality['sparse']}, artifact {quality['quantized']}"
    )
