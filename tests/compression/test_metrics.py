import pytest

from compression import metrics


@pytest.mark.parametrize(
    ("guess", "truths", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 100, 100),  # case, article, punctuation
        ("in Paris", ["Paris", "the city of Paris"], 0, 200 / 3),  # best of the truths: P 1/2, R 1
        ("a b c d", ["x"], 0, 0),
        ("", ["x"], 0, 0),
        ("red red dog", ["red dog dog"], 0, 200 / 3),  # words count as often as they occur
    ],
)
def test_squad_scores_by_hand(guess: str, truths: list[str], exact: float, f1: float) -> None:
    assert metrics.squad_scores([guess], [truths]) == (exact, pytest.approx(f1))


def test_squad_scores_are_means() -> None:
    assert metrics.squad_scores(["a cat", "dog"], [["cat"], ["bird"]]) == (50, 50)


def test_entity_f1_counts_exact_entities() -> None:
    truth = [["B-PER", "I-PER", "O", "B-LOC"]]
    assert metrics.entity_f1(truth, truth) == 1
    assert metrics.entity_f1([["B-PER", "O", "O", "B-LOC"]], truth) == pytest.approx(0.5)
    assert metrics.entity_f1([["O"] * 4], truth) == 0


def test_accuracy() -> None:
    assert metrics.accuracy([1, 0, 1, 1], [1, 1, 1, 1]) == 0.75
