"""Asks the question-answering pipeline of transformers 4.57: a script for test_hugging_face_answers.py.

Reads {"checkpoint", "window", "cases": [{"inputs", "parameters"}]} and prints, as JSON, the version and each answer, or
{"error": its kind} where the pipeline fails.
"""

import json
import sys
from typing import Any

import transformers


def ask(pipeline: Any, case: dict[str, Any]) -> Any:
    """Answer one case; a panic of the tokenizer, which is no Exception, is an error too."""
    try:
        return pipeline(**case["inputs"], **case["parameters"])
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Answer what standard input asks."""
    given = json.load(sys.stdin)
    model = transformers.BertForQuestionAnswering.from_pretrained(given["checkpoint"])
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=f"{given['checkpoint']}/tokenizer.json", model_max_length=given["window"], **names
    )
    pipeline = transformers.QuestionAnsweringPipeline(model=model, tokenizer=tokenizer, device="cpu")
    answers = [ask(pipeline, case) for case in given["cases"]]
    sys.stdout.write(json.dumps({"version": transformers.__version__, "answers": answers}))


if __name__ == "__main__":
    main()
