"""`python -m bench`: BERT-Base, DistilBERT and BERT-Large go checkpoint -> artifact -> answer, beside PyTorch dense.

Each model has random weights with 90 % of the encoder matrices zero, the shape of the published sparse models. It is
exported with the compression package, loaded in a process of its own, and timed interleaved with the torch model it
came from (float32, eager, the same zeros, which torch cannot use). Prints a table and writes CSV + machine.txt under
bench/record/.
"""

import argparse
import csv
import datetime
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

LENGTHS = (32, 128, 384)
RECORD = Path(__file__).parent / "record"


def main() -> None:
    """Run the bench and write its record."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each engine and length, interleaved")
    parser.add_argument("--worker", nargs=2, metavar=("CHECKPOINT", "ARTIFACT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        rows = measure(Path(options.worker[0]), Path(options.worker[1]), options.threads, options.repeats)
        print(json.dumps(rows))
        return
    rows = [row for name in options.models for row in _run(name, options.threads, options.repeats)]
    folder = RECORD / f"{datetime.date.today().isoformat()}_{_cpu().replace(' ', '-').replace('(R)', '')}"
    _write(folder, rows)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"record: {folder}")


# Model type and settings that differ from transformers' defaults, which are BERT-Base and DistilBERT.
SIZES: dict[str, tuple[str, dict[str, int]]] = {
    "distilbert": ("distilbert", {}),
    "bert-base": ("bert", {}),
    "bert-large": (
        "bert",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
}


def make_checkpoint(name: str, folder: Path) -> None:
    """Save a question-answering checkpoint of a published size: random weights, 90 % zeros, a vocabulary in code."""
    import torch
    from transformers import AutoConfig, AutoModelForQuestionAnswering

    from compression import prune
    from compression.checkpoint import encoder_matrices

    torch.manual_seed(0)
    family, settings = SIZES[name]
    config = AutoConfig.for_model(family, **settings)
    model = AutoModelForQuestionAnswering.from_config(config)  # type: ignore[no-untyped-call]
    matrices = encoder_matrices(model)
    with torch.no_grad():  # random zeros, since random weights have no small ones worth finding
        masks = {key: torch.rand_like(matrix.weight) >= 0.9 for key, matrix in matrices.items()}
    prune.apply_masks(matrices, masks)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(_tokenizer(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")


def _tokenizer() -> str:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    return tokenizer.to_str()


def _run(name: str, threads: int, repeats: int) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, artifact = Path(scratch) / "checkpoint", Path(scratch) / name
        make_checkpoint(name, checkpoint)
        began = perf_counter()
        command = [sys.executable, "-m", "compression", "export", str(checkpoint)]
        subprocess.run([*command, "--out", str(artifact), "--task", "question-answering"], check=True)
        exported = perf_counter() - began
        command = [sys.executable, "-m", "bench", "--threads", str(threads), "--repeats", str(repeats)]
        done = subprocess.run(
            [*command, "--worker", str(checkpoint), str(artifact)], check=True, capture_output=True, text=True
        )
        rows: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return [{"model": name, "export_s": round(exported, 1), **row} for row in rows]


def measure(checkpoint: Path, artifact: Path, threads: int, repeats: int) -> list[dict[str, object]]:
    """Load the artifact and time it beside torch, in this fresh process; a row for each length."""
    before = _resident()
    began = perf_counter()
    import engine

    model = engine.load(artifact, threads=threads)
    loaded, resident = perf_counter() - began, _resident() - before

    import torch
    from transformers import AutoModelForQuestionAnswering

    torch.set_num_threads(threads)
    dense = AutoModelForQuestionAnswering.from_pretrained(checkpoint).train(False)
    rows: list[dict[str, object]] = []
    for length in LENGTHS:
        ids = np.random.default_rng(length).integers(4, 50, length).astype(np.int32)
        lengths, batch = np.array([length], np.int32), torch.from_numpy(ids.astype(np.int64))[None]

        def ours(ids: np.ndarray = ids, lengths: np.ndarray = lengths) -> np.ndarray:
            return model.forward(ids, lengths)

        @torch.no_grad()
        def theirs(batch: torch.Tensor = batch) -> np.ndarray:
            output = dense(batch)
            logits: np.ndarray = torch.stack((output.start_logits, output.end_logits), -1)[0].numpy()
            return logits

        cosine = _cosine(ours(), theirs())
        if cosine < 0.99:
            raise SystemExit(f"answers differ at length {length}: cosine {cosine:.4f}; no time is reported")
        mine, dense_time = _interleaved(ours, theirs, repeats)
        rows.append(
            {
                "threads": threads,
                "length": length,
                "isa": model.isa,
                "load_s": round(loaded, 2),
                "resident_mb": round(resident / 1e6, 1),
                "sparselane_ms": round(1e3 * mine, 2),
                "torch_fp32_ms": round(1e3 * dense_time, 2),
                "ratio": round(dense_time / mine, 2),
                "cosine": round(cosine, 5),
            }
        )
    return rows


def _interleaved(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, kept in zip((ours, theirs), times, strict=True):
            began = perf_counter()
            run()
            kept.append(perf_counter() - began)
    return median(times[0]), median(times[1])


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def _resident() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def _write(folder: Path, rows: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "sizes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    (folder / "machine.txt").write_text(
        f"command: python -m bench {' '.join(sys.argv[1:])}\ndate: {datetime.date.today().isoformat()}\n"
        f"python: {platform.python_version()}\nkernel: {platform.release()}\n\n{cpuinfo}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
