"""Which cases the model level measures: quick, default and full."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.engines import ENGINES, OURS

ALL = tuple(ENGINES)
# The strongest of each kind: where every engine would take too long.
FEW = (OURS, "torch-fp32", "onnxruntime-fp32", "onnxruntime-int8", "deepsparse-int8")
FASTEST = (OURS, "onnxruntime-int8", "ctranslate2-int8", "deepsparse-int8")
RIVAL = (OURS, "deepsparse-int8")

PURPOSES = ("headline", "mixed", "length", "batch", "sparsity", "model")

HEADLINE_MODEL, HEADLINE_SPARSITY, HEADLINE_LENGTHS = "bert-base", 0.9, (32, 128, 384)
# Sixteen texts of 8 to 384 tokens, more short ones than long ones, as questions and paragraphs come.
MIXED_LENGTHS = (8, 11, 14, 19, 25, 33, 44, 58, 77, 101, 133, 175, 201, 263, 316, 384)
FULL_SPARSITIES = (0.0, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97)
FULL_LENGTHS = (8, 16, 32, 64, 128, 256, 384, 512)
FULL_BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Case:
    """One thing that several engines do and that is timed."""

    model: str
    sparsity: float
    lengths: tuple[int, ...]
    threads: int
    engines: tuple[str, ...]
    # Why it is measured, one of PURPOSES; the report groups by it.
    purpose: str
    # False: the sequences one by one, each in a call of its own.
    together: bool = True

    @property
    def shape(self) -> str:
        """Name the batch: 1x128, or mixed."""
        same = len(set(self.lengths)) == 1
        name = f"{len(self.lengths)}x{self.lengths[0]}" if same else f"{len(self.lengths)} mixed"
        return name if self.together else f"{name}, one by one"


def headline(threads: int) -> Iterator[Case]:
    """BERT-Base at 90 %, batch 1, all engines, one thread and two."""
    for count in sorted({1, min(2, threads)}):
        for length in HEADLINE_LENGTHS:
            yield Case(HEADLINE_MODEL, HEADLINE_SPARSITY, (length,), count, ALL, "headline")


def mixed(count: int, engines: tuple[str, ...]) -> Iterator[Case]:
    """Sixteen texts of different lengths in one call, and one by one."""
    base = (HEADLINE_MODEL, HEADLINE_SPARSITY, MIXED_LENGTHS, count)
    yield Case(*base, engines, "mixed")
    yield Case(*base, engines, "mixed", together=False)  # nobody has to pad: the peers may be faster so


def quick_plan(threads: int) -> list[Case]:
    """A minute or two: the smallest model, to see that everything runs."""
    cases = [Case("minilm", 0.9, (length,), 1, ALL, "headline") for length in (32, 128)]
    cases += [
        Case("minilm", 0.9, (8, 20, 50), min(2, threads), (OURS,), "mixed", together) for together in (True, False)
    ]
    return cases


def default_plan(threads: int) -> list[Case]:
    """About a quarter of an hour on two cores: the headline with all engines, everything else sampled."""
    cases = list(headline(threads))
    cases += mixed(1, (OURS,))
    cases += mixed(min(2, threads), (OURS, "onnxruntime-int8", "ctranslate2-int8"))
    for length in (8, 512):
        cases.append(Case(HEADLINE_MODEL, HEADLINE_SPARSITY, (length,), 1, FASTEST, "length"))
    cases.append(Case(HEADLINE_MODEL, HEADLINE_SPARSITY, (128,) * 16, min(2, threads), FASTEST, "batch"))
    cases.append(Case(HEADLINE_MODEL, 0.0, (128,), 1, (OURS, "onnxruntime-int8", "onnxruntime-fp32"), "sparsity"))
    for sparsity in (0.7, 0.97):
        cases.append(Case(HEADLINE_MODEL, sparsity, (128,), 1, RIVAL, "sparsity"))
    for model in ("distilbert", "bert-large", "minilm"):
        cases.append(Case(model, 0.9, (128,), 1, FEW, "model"))
    return grouped(cases)


def full_plan(threads: int) -> list[Case]:
    """The whole grid, one dimension at a time around the headline, for all models; many hours."""
    counts = sorted({1, min(2, threads), threads})
    cases = [*headline(threads)]
    for count in counts:
        cases += mixed(count, ALL)
        for model in ("bert-base", "bert-large", "distilbert", "minilm"):
            cases += [Case(model, 0.9, (length,), count, ALL, "length") for length in FULL_LENGTHS]
            cases += [Case(model, 0.9, (128,) * batch, count, ALL, "batch") for batch in FULL_BATCHES]
            cases += [Case(model, sparsity, (128,), count, ALL, "sparsity") for sparsity in FULL_SPARSITIES]
    return grouped(cases)


def grouped(cases: list[Case]) -> list[Case]:
    """Put cases of one loaded model side by side, in order of first appearance: loading costs more than timing."""
    order: dict[tuple[str, float, int], list[Case]] = {}
    for case in cases:
        order.setdefault((case.model, case.sparsity, case.threads), []).append(case)
    return [case for group in order.values() for case in dict.fromkeys(group)]
