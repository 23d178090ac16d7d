import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

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


def test_two_classes_by_hand() -> None:
    # Three true positives, one false positive, two false negatives, four true negatives.
    predicted = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    expected = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    scores = metrics.class_scores(predicted, expected, 2)
    assert scores == {
        "accuracy": pytest.approx(0.7),
        "f1": pytest.approx(2 * 3 / (2 * 3 + 1 + 2)),
        "matthews": pytest.approx((3 * 4 - 1 * 2) / (4 * 5 * 5 * 6) ** 0.5),
    }
    assert scores["f1"] == pytest.approx(sklearn.metrics.f1_score(expected, predicted))


def test_more_classes_have_accuracy_alone_and_one_sided_answers_no_warning() -> None:
    assert metrics.class_scores([2, 1, 0, 0], [2, 1, 1, 0], 3) == {"accuracy": 0.75}
    assert metrics.class_scores([0, 0], [0, 0], 2) == {"accuracy": 1.0, "f1": 0.0, "matthews": 0.0}
    assert metrics.class_scores([0, 0], [1, 1], 2) == {"accuracy": 0.0, "f1": 0.0, "matthews": 0.0}


def test_label_sets_by_hand() -> None:
    predicted = [(0, 1), (2,), (), (1,)]
    expected = [(0,), (2,), (), (0, 1)]
    # Label 0: 1 right, 1 missed; label 1: 1 right, 1 too many; label 2: right.
    assert metrics.label_set_scores(predicted, expected, 3) == {
        "micro_f1": pytest.approx(2 * 3 / (2 * 3 + 1 + 1)),
        "macro_f1": pytest.approx((2 / 3 + 2 / 3 + 1) / 3),
        "subset_accuracy": 0.5,
    }
    assert metrics.label_set_scores([()], [()], 2)["micro_f1"] == 0


SQUAD2: list[tuple[str, float, list[str]]] = [  # best span, how much more no answer is worth, the true answers
    ("the Aller", -5.0, ["Aller", "river Aller"]),  # right
    ("Celle", -1.0, []),  # there is none
    ("near Celle", 0.5, ["Celle"]),  # half right, but silent at threshold 0
    ("1735", 2.0, []),
]


def test_squad2_by_hand() -> None:
    scores = metrics.squad2_scores(*zip(*SQUAD2, strict=True), threshold=0.0)  # type: ignore[arg-type]
    f1 = 100 * 2 / 3  # precision 1/2, recall 1
    assert scores == {
        # "near Celle" is withheld, which is wrong; so is "Celle", which is not. "1735" is withheld, rightly.
        "exact": 50.0, "HasAns_exact": 50.0, "NoAns_exact": 50.0,
        "f1": 50.0, "HasAns_f1": 50.0, "NoAns_f1": 50.0,
        # Exact: answering the first alone is best. F1: the third is worth less than the second costs.
        "best_exact": 75.0, "best_exact_thresh": -3.0, "best_f1": 75.0, "best_f1_thresh": -3.0,
    }  # fmt: skip
    answering = metrics.squad2_scores(*zip(*SQUAD2, strict=True), threshold=1.0)  # type: ignore[arg-type]
    assert answering["HasAns_f1"] == pytest.approx((100 + f1) / 2)
    assert (answering["HasAns_exact"], answering["NoAns_f1"]) == (50, 50)


def test_squad2_with_answers_alone_equals_v1_where_nothing_is_withheld() -> None:
    guesses, truths = ["The Eiffel Tower!", "in Paris", ""], [["eiffel tower"], ["Paris", "the city of Paris"], ["x"]]
    scores = metrics.squad2_scores(guesses, [0.0] * 3, truths, threshold=0.0)
    assert (scores["exact"], scores["f1"]) == pytest.approx(metrics.squad_scores(guesses, truths))
    assert "NoAns_f1" not in scores


def test_an_answer_of_articles_and_points_alone_is_none() -> None:
    # As the script does: it is left out, and nothing is then the truth; empty strings match each other.
    scores = metrics.squad2_scores(["the", "a cat"], [0.0, 0.0], [["the ."], ["the ."]], threshold=0.0)
    assert scores["exact"] == scores["f1"] == 50


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_the_best_threshold_equals_brute_force(questions: list[tuple[float, bool, bool]]) -> None:
    values = [score * (answerable and answered) for score, answered, answerable in questions]
    answered, answerable = [q[1] for q in questions], [q[2] for q in questions]
    margins = np.random.default_rng(len(questions)).permutation(len(questions)).astype(float)

    def total(threshold: float) -> float:
        return sum(
            (value if can else float(not said)) if margin <= threshold else float(not can)
            for value, said, can, margin in zip(values, answered, answerable, margins, strict=True)
        )

    best, threshold = metrics.best_threshold(values, answered, margins.tolist(), answerable)
    assert best == max(total(t) for t in (-1, *margins))
    assert total(threshold) == best
