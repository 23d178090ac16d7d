"""The whole encoder: against plain numpy layer by layer, across instruction sets, batches, threads; and bad input."""

import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine
from tests.engine.plain import Plain
from tests.random_artifact import write_random_artifact

# No size is a multiple of the tile's 32 lanes or of the group's 4 survivors; a head of 9 has a tail too.
ODD = {"layers": 3, "hidden": 36, "heads": 4, "ffn": 75, "positions": 100, "vocabulary": 150}
CASES = {
    "bert-qa": {"family": "bert", "task": "question-answering"},
    "bert-qa-float32-attention": {"family": "bert", "task": "question-answering", "attention": "float32"},
    "bert-sentiment": {"family": "bert", "task": "text-classification", "sparsity": 0.5},
    "distilbert-sentiment": {"family": "distilbert", "task": "text-classification"},
    "distilbert-ner": {
        "family": "distilbert",
        "task": "token-classification",
        "activation": "relu",
        "hidden": 27,
        "heads": 3,
        "attention": "float32",
    },
    "bert-ner-dense": {
        "family": "bert",
        "task": "token-classification",
        "sparsity": 0.0,
        "hidden": 64,
        "heads": 1,
        "ffn": 128,
    },
    # Heads of whole blocks of rows, and as many as threads: a short text is divided by heads.
    "bert-qa-whole-heads": {"family": "bert", "task": "question-answering", "hidden": 96, "heads": 3},
    "bert-sentiment-whole-heads": {"family": "bert", "task": "text-classification", "hidden": 64, "heads": 8},
    "distilbert-ner-whole-heads-float32-attention": {
        "family": "distilbert",
        "task": "token-classification",
        "hidden": 96,
        "heads": 6,
        "attention": "float32",
    },
    "bert-qa-blocks-1x4": {"family": "bert", "task": "question-answering", "block": (1, 4)},
    "distilbert-qa-product-words": {
        "family": "distilbert",
        "task": "question-answering",
        "embeddings": "product-4x256",
    },
    "bert-qa-blocks-4x1": {"family": "bert", "task": "question-answering", "block": (4, 1)},
}
FORMATS = {"bert-ner-dense": "dense", "bert-qa-blocks-1x4": "blocks_1x4", "bert-qa-blocks-4x1": "blocks_4x1"}


@pytest.fixture(scope="session", params=CASES)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / request.param
    write_random_artifact(folder, **ODD | CASES[request.param])
    return folder


@pytest.fixture(scope="session")
def qa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "qa"
    write_random_artifact(folder, **ODD | CASES["bert-qa"])
    return folder


def load(folder: Path, threads: int = 1, isa: str | None = None) -> engine.Model:
    """Load with any number of threads, whatever this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "threads_from_quota", lambda: 8)
        return engine.load(folder, threads=threads, isa=isa)


def batch(seed: int, lengths: list[int], model: engine.Model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng, a = np.random.default_rng(seed), model.manifest.architecture
    total = sum(lengths)
    ids, types = rng.integers(0, a.vocabulary, total), rng.integers(0, max(1, a.types), total)
    return ids.astype(np.int32), np.array(lengths, np.int32), types.astype(np.int32)


def one_by_one(model: engine.Model, ids: np.ndarray, lengths: np.ndarray, types: np.ndarray) -> np.ndarray:
    ends = np.cumsum(lengths)
    parts = [slice(end - n, end) for end, n in zip(ends, lengths, strict=True)]
    return np.concatenate([model.forward(ids[p], lengths[i : i + 1], types[p]) for i, p in enumerate(parts)])


@pytest.mark.parametrize("isa", engine.supported_isas())
def test_layer_by_layer_against_plain_numpy(artifact: Path, isa: str) -> None:
    """Every layer gets the engine's own input, so that errors do not add up over layers.

    A token none of whose values lies near a tie of the quantizer has only float32 rounding: some 300 operations on
    values below 8, 300 * 8 * 2^-24 = 1.4e-4. Near a tie a level may move by one, which is 1/255 of a token's range
    (about 6 deviations, weights about 1): a few such moves stay below 0.3, where a wrong token or feature gives 3.
    """
    model, plain = load(artifact, isa=isa), Plain(artifact)
    lengths = [1, 8, 33, 50]
    ids, sizes, types = batch(1, lengths, model)
    hidden, logits = model.hidden_states(ids, sizes, types), model.forward(ids, sizes, types)
    per_token, clean = logits.shape[0] == len(ids), 0
    for i, end in enumerate(np.cumsum(lengths)):
        part = slice(end - lengths[i], end)
        np.testing.assert_allclose(hidden[0, part], plain.embed(ids[part], types[part]), atol=1e-5, rtol=0)
        for layer in range(ODD["layers"]):
            difference = np.abs(plain.layer(hidden[layer, part], layer) - hidden[layer + 1, part]).max(axis=1)
            assert (difference[~plain.ambiguous] < 1.4e-4).all()
            assert (difference < 0.3).all()
            clean += (~plain.ambiguous).sum()
        ours = logits[part] if per_token else logits[i : i + 1]
        np.testing.assert_allclose(ours, plain.head(hidden[-1, part]), atol=1e-5, rtol=1e-5)
    assert clean > ODD["layers"] * len(ids) / 5  # the sharp bound was really put to use


def test_all_instruction_sets_give_the_same_bits(artifact: Path) -> None:
    reference = load(artifact, isa="reference")
    arguments = batch(2, [5, 64, 17, 100, 1], reference)
    expected = reference.hidden_states(*arguments), reference.forward(*arguments)
    for isa in engine.supported_isas()[1:]:
        model = load(artifact, isa=isa)
        assert model.hidden_states(*arguments).tobytes() == expected[0].tobytes()
        assert model.forward(*arguments).tobytes() == expected[1].tobytes()


@pytest.mark.parametrize("isa", engine.supported_isas())
@pytest.mark.parametrize("case", CASES)
def test_every_matrix_gets_the_format_of_its_pattern(tmp_path: Path, case: str, isa: str) -> None:
    folder = tmp_path / case
    write_random_artifact(folder, **ODD | {"hidden": 64, "ffn": 128} | CASES[case] | {"hidden": 64, "heads": 4})
    formats = load(folder, isa=isa)._native.formats
    if isa == "amx_int8":  # a matrix unit takes every pattern alike
        assert set(formats) <= {FORMATS.get(case, "survivors"), "masked"}
    elif case != "bert-sentiment":  # half of its weights survive: near the crossover, where the CPU decides
        assert set(formats) == {FORMATS.get(case, "survivors")}
    assert len(formats) == 6 * ODD["layers"]


@pytest.mark.parametrize("isa", engine.supported_isas())
def test_alone_and_in_a_batch_with_any_threads_the_bits_are_equal(artifact: Path, isa: str) -> None:
    models = [load(artifact, threads, isa) for threads in (1, 2, 3)]

    @settings(max_examples=12, deadline=None)
    @given(
        st.integers(0, 2**32 - 1),
        st.lists(st.integers(1, 100), min_size=1, max_size=7) | st.lists(st.integers(1, 50), min_size=1, max_size=2),
    )
    def check(seed: int, lengths: list[int]) -> None:
        arguments = batch(seed, lengths, models[0])
        together = models[0].forward(*arguments)
        assert np.isfinite(together).all()
        for model in models[1:]:
            np.testing.assert_array_equal(model.forward(*arguments), together)
        np.testing.assert_array_equal(one_by_one(models[0], *arguments), together)

    check()


def test_more_sequences_than_lanes(artifact: Path) -> None:
    model = load(artifact, threads=2)
    arguments = batch(3, [1 + i % 5 for i in range(70)], model)
    np.testing.assert_array_equal(model.forward(*arguments), one_by_one(model, *arguments))


def test_a_batch_of_more_than_one_part(artifact: Path) -> None:
    """Parts hold 512 tokens: here three, the last sequence of one not fitting any more."""
    model = load(artifact, threads=2)
    arguments = batch(8, [100, 100, 100, 100, 90, 60, 100, 100, 100, 100, 1, 100, 100, 100, 100, 100, 99], model)
    np.testing.assert_array_equal(model.forward(*arguments), one_by_one(model, *arguments))


def test_the_order_of_sequences_is_nothing(qa: Path) -> None:
    model = load(qa)
    ids, lengths, types = batch(4, [30, 7], model)
    turned = model.forward(np.roll(ids, 7), lengths[::-1].copy(), np.roll(types, 7))
    np.testing.assert_array_equal(np.roll(turned, -7, axis=0), model.forward(ids, lengths, types))


def test_four_threads_at_once_get_what_one_gets(qa: Path) -> None:
    models = [load(qa, threads=2), load(qa, threads=2), load(qa, threads=1)]
    cases = [(models[i % 3], batch(i, [1 + i * 7 % 90, 1 + i * 5 % 40], models[0])) for i in range(60)]
    serial = [model.forward(*arguments) for model, arguments in cases]
    with ThreadPoolExecutor(4) as pool:
        for expected, ours in zip(serial, pool.map(lambda case: case[0].forward(*case[1]), cases), strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_between_calls_the_threads_sleep(qa: Path) -> None:
    model = load(qa, threads=3)
    arguments = batch(6, [50], model)
    model.forward(*arguments)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.1  # CPU time; one spinning thread would use 0.4 s
    assert model.forward(*arguments).any()


PLACES = """
import os, sys
from pathlib import Path
import numpy as np
import engine
cpus = os.sched_getaffinity(0)
threads = min(len(cpus), 4)
engine.threads_from_quota = lambda: threads
model = engine.load(sys.argv[1], threads=threads)
tasks = {int(task.name): (task / "comm").read_text() for task in Path("/proc/self/task").iterdir()}
workers = [task for task, name in tasks.items() if name.startswith("sparselane/")]
assert len(workers) == threads - 1, tasks
for cpu in [None, *cpus]:
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})  # of this thread alone
    model.forward(np.ones(40, np.int32), np.array([40], np.int32))
    places = [os.sched_getaffinity(worker) for worker in workers]
    assert all(place <= cpus - {cpu} for place in places), (cpu, places)
    assert sum(map(len, places)) == len(set().union(*places)), places
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs, and Linux"
)
def test_no_thread_is_bound_to_the_callers_cpu_or_anothers(qa: Path) -> None:
    subprocess.run([sys.executable, "-c", PLACES, str(qa)], check=True)


COUNTER = """
#include <atomic>
#include <cstddef>
extern "C" void* __libc_malloc(std::size_t);
extern "C" void* __libc_memalign(std::size_t, std::size_t);
static std::atomic<long> calls;
extern "C" void* malloc(std::size_t size) { ++calls; return __libc_malloc(size); }
extern "C" void* aligned_alloc(std::size_t to, std::size_t size) { ++calls; return __libc_memalign(to, size); }
extern "C" long allocations() { return calls; }
"""
COUNT = """
import ctypes, sys
import numpy as np
import engine
allocations = ctypes.CDLL(None).allocations
allocations.restype = ctypes.c_long
model = engine.load(sys.argv[1])
def count(*lengths):
    arguments = np.ones(sum(lengths), np.int32), np.array(lengths, np.int32)
    model.forward(*arguments)
    before = allocations()
    model.forward(*arguments)
    return allocations() - before
print(count(100, 100, 50, 3), count(1), count(90, 3))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="counts through glibc's own names")
def test_a_warm_model_allocates_only_its_answer(qa: Path, tmp_path: Path) -> None:
    """However large the batch: the same few blocks, for the numpy array that is returned."""
    source, library = tmp_path / "counter.cpp", tmp_path / "counter.so"
    source.write_text(COUNTER)
    compiler = os.environ.get("CXX", "c++").split()
    subprocess.run([*compiler, "-O1", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    run = [sys.executable, "-c", COUNT, str(qa)]
    done = subprocess.run(
        run, env=os.environ | {"LD_PRELOAD": str(library)}, capture_output=True, text=True, check=True
    )
    most, *others = map(int, done.stdout.split())
    assert others == [most, most]
    assert most <= 4


def test_type_ids_left_out_are_zeros(qa: Path) -> None:
    model = load(qa)
    ids, lengths, types = batch(5, [20], model)
    np.testing.assert_array_equal(model.forward(ids, lengths), model.forward(ids, lengths, np.zeros_like(ids)))
    assert (model.forward(ids, lengths) != model.forward(ids, lengths, types)).any()


def int32s(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("ids", "lengths", "types", "message"),
    [
        ([1, 2], int32s(2), None, "input_ids is a list"),
        (np.array([1, 2]), int32s(2), None, "input_ids has dtype int64, must be int32"),
        (int32s(1, 2)[None], int32s(2), None, "input_ids has 2 dimensions"),
        (int32s(1, 2, 3, 4)[::2], int32s(2), None, "input_ids is not contiguous"),
        (int32s(1, 2), np.array([2.0]), None, "lengths has dtype float64"),
        (int32s(1, 2), None, None, "lengths is a NoneType"),
        (int32s(1, 2), int32s(2), [0, 0], "type_ids is a list"),
    ],
)
def test_input_of_the_wrong_type(qa: Path, ids: object, lengths: object, types: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        load(qa).forward(ids, lengths, types)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "lengths", "types", "message"),
    [
        (int32s(), int32s(), None, "the batch is empty"),
        (int32s(1), int32s(0), None, r"lengths\[0\] is 0, must be 1 to 100"),
        (int32s(*[1] * 101), int32s(101), None, r"lengths\[0\] is 101, must be 1 to 100"),
        (int32s(1, 2), int32s(1, -1), None, r"lengths\[1\] is -1"),
        (int32s(1, 2), int32s(1), None, "the sum of lengths is 1, must be 2"),
        (int32s(1, 150), int32s(2), None, r"input_ids\[1\] is 150, must be 0 to 149"),
        (int32s(-1), int32s(1), None, r"input_ids\[0\] is -1"),
        (int32s(1, 2), int32s(2), int32s(0), "the size of type_ids is 1, must be 2"),
        (int32s(1, 2), int32s(2), int32s(), "the size of type_ids is 0, must be 2"),
        (int32s(1, 2), int32s(2), int32s(0, 2), r"type_ids\[1\] is 2, must be 0 to 1"),
    ],
)
def test_input_out_of_its_limits(
    qa: Path, ids: np.ndarray, lengths: np.ndarray, types: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(qa).forward(ids, lengths, types)


def test_a_family_without_types_takes_only_zeros(tmp_path: Path) -> None:
    write_random_artifact(tmp_path / "d", **ODD | CASES["distilbert-ner"])
    with pytest.raises(ValueError, match=r"type_ids\[0\] is 1, must be 0 to 0"):
        load(tmp_path / "d").forward(int32s(1), int32s(1), int32s(1))


@pytest.mark.parametrize("threads", [0, -1, 9])
def test_threads_out_of_their_limits(qa: Path, threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads is {threads}, must be 1 to 8"):
        load(qa, threads)
