"""Loads checkpoints with whatever transformers the interpreter has: a script for test_compatibility.py, without pytest.

Usage: load_checkpoint.py INPUTS FOLDER... ; prints, as JSON, the version, and per folder the logits of the inputs, the
tokens of a text, and the weights that were missing or unexpected.
"""

import json
import sys
from typing import Any

import torch
import transformers


def load(folder: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Load one checkpoint by the class that its own config names, as a user does."""
    name = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    model.train(False)
    with torch.no_grad():
        output = model(torch.tensor(inputs["ids"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return {
        "architecture": name,
        "logits": output[0].tolist(),
        "tokens": tokenizer(inputs["text"])["input_ids"],
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
    }


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    results = {folder: load(folder, given) for folder in sys.argv[2:]}
    sys.stdout.write(json.dumps({"version": transformers.__version__, "results": results}))
