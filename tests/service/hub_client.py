"""What huggingface_hub's InferenceClient makes of our answers: for test_hugging_face_clients.py, and a script for 0.36.

Usage: hub_client.py ADDRESS ; prints, as JSON, the version and the result of each call.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import huggingface_hub
from huggingface_hub import InferenceClient

QUESTION = {"question": "who was in london", "context": "john was in paris. mary was in london."}
TEXT = "john and mary was in london"
# Long enough for several windows of the random models.
LONG = "the film of john was good . " * 20


def plain(result: Any) -> Any:
    """Return a client's objects as JSON has them, without what an answer does not have."""
    if isinstance(result, list):
        return [plain(entry) for entry in result]
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return {name: value for name, value in dataclasses.asdict(result).items() if value is not None}
    return result


def refusal(call: Callable[[], Any]) -> str:
    """Return what the client says of a refused call."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("the call was not refused")


def talk(address: str) -> dict[str, Any]:
    """Make the client's calls with all their parameters, and the model's URL in each of the ways there are."""
    qa = InferenceClient(base_url=f"{address}/models/qa", api_key="no key")
    cls, ner = InferenceClient(model=f"{address}/models/sentiment"), InferenceClient(f"{address}/models/ner")
    every = {
        **{"align_to_words": False, "doc_stride": 4, "handle_impossible_answer": True, "max_answer_len": 3},
        **{"max_question_len": 20, "max_seq_len": 48, "top_k": 3},
    }
    results = {
        "answer": qa.question_answering(**QUESTION),
        "answers": qa.question_answering(**QUESTION, **every),
        "labels": cls.text_classification(TEXT),
        "best label": cls.text_classification(TEXT, top_k=1, function_to_apply="sigmoid"),
        "logits": InferenceClient().text_classification(
            LONG, model=f"{address}/models/sentiment", function_to_apply="none"
        ),
        "entities": ner.token_classification(TEXT),
        "long entities": ner.token_classification(
            LONG, aggregation_strategy="average", ignore_labels=["PER"], stride=16
        ),
        "tokens": ner.token_classification(TEXT, aggregation_strategy="none", ignore_labels=[]),
        "unknown model": refusal(lambda: InferenceClient(f"{address}/models/sentimnt").text_classification(TEXT)),
        "wrong stride": refusal(lambda: qa.question_answering(**QUESTION, doc_stride=500)),
        "health": [
            InferenceClient(f"{address}/models/{name}", provider="hf-inference").health_check()
            for name in ("qa", "nothing")
        ],
        "info": InferenceClient(f"{address}/models/ner", provider="hf-inference").get_endpoint_info(),
    }
    return {"version": huggingface_hub.__version__, **{name: plain(result) for name, result in results.items()}}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(talk(sys.argv[1])))
