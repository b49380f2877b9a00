"""The evaluation's arithmetic on made-up data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.statistics import (
    best,
    bootstrap,
    confusion,
    diversity,
    estimate,
    kid,
    paired,
    rank_of_first,
)


def test_the_interval_holds_the_true_mean_in_about_95_of_100_experiments() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for trial in range(400):
        low, high = bootstrap(generator.exponential(2.0, 60) - 2.0, seed=trial, draws=400)
        inside += low <= 0 <= high
    assert 0.90 <= inside / 400 <= 0.975  # a percentile interval of skewed data holds a little less than 0.95


def test_more_pictures_of_the_same_captions_do_not_narrow_the_interval() -> None:
    generator = np.random.default_rng(1)
    captions = [f"caption {i}" for i in range(30)]
    values = generator.random(30).tolist()
    once, often = estimate(captions, values), estimate(captions * 9, values * 9)
    assert (once.low, once.high, once.value) == pytest.approx((often.low, often.high, often.value))
    assert (once.captions, once.pictures, often.captions, often.pictures) == (30, 30, 30, 270)


def test_every_caption_weighs_the_same_however_many_pictures_it_has() -> None:
    found = estimate(["a", "a", "a", "b"], [1.0, 1.0, 1.0, 0.0])
    assert found.value == 0.5


def test_a_paired_difference_does_not_see_how_hard_the_captions_are() -> None:
    generator = np.random.default_rng(2)
    captions = [str(i) for i in range(50)]
    hardness = generator.normal(0, 10, 50)
    one = (hardness + 0.3 + generator.normal(0, 0.05, 50)).tolist()
    found = paired((captions, one), (captions[::-1], hardness[::-1].tolist()))
    assert found.value == pytest.approx(0.3, abs=0.03)
    assert 0.25 < found.low < found.value < found.high < 0.35


def test_a_paired_difference_needs_common_captions() -> None:
    assert paired((["a", "b"], [1.0, 5.0]), (["a", "c"], [0.25, 9.0])).value == 0.75
    with pytest.raises(ValueError, match="both sides"):
        paired((["a"], [1.0]), (["b"], [1.0]))


def naive_kid(one: np.ndarray, other: np.ndarray) -> float:
    """The definition, pair by pair."""
    dim = one.shape[1]

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((sum(a * b for a, b in zip(x, y, strict=True)) / dim + 1) ** 3)

    m, n = len(one), len(other)
    inner = sum(kernel(one[i], one[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    outer = sum(kernel(other[i], other[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return inner + outer - 2 * sum(kernel(x, y) for x in one for y in other) / (m * n)


def test_the_kernel_distance_is_its_definition() -> None:
    generator = np.random.default_rng(3)
    one, other = generator.normal(0, 1, (9, 5)), generator.normal(0.5, 1.5, (12, 5))
    assert kid(one, other) == pytest.approx(naive_kid(one, other), rel=1e-10)


def test_the_kernel_distance_is_unbiased_and_grows_with_the_shift() -> None:
    generator = np.random.default_rng(4)
    same = [kid(generator.normal(size=(40, 8)), generator.normal(size=(40, 8))) for _ in range(200)]
    spread = float(np.std(same)) / np.sqrt(len(same))
    assert abs(float(np.mean(same))) < 3 * spread  # a biased one would be above zero by far more
    near, far = (kid(generator.normal(size=(200, 8)), generator.normal(shift, 1, (200, 8))) for shift in (0.5, 1.0))
    assert 0 < near < far


def test_ranks_count_equal_scores_against_the_right_answer() -> None:
    scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.1, 0.3], [0.5, 0.5, 0.5]])
    assert rank_of_first(scores).tolist() == [1, 2, 3]


def test_recall_among_n_of_guessing_is_one_in_n() -> None:
    scores = np.random.default_rng(5).random((20_000, 100))
    assert float((rank_of_first(scores) == 1).mean()) == pytest.approx(0.01, abs=0.0025)


def test_confusion_counts_truth_by_rows() -> None:
    assert confusion([0, 0, 1, 2], [0, 1, 1, 0], 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_diversity_is_the_mean_over_pairs() -> None:
    features = np.random.default_rng(6).normal(size=(7, 4))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i in range(7) for j in range(7) if i < j]
    assert diversity(features) == pytest.approx(float(np.mean(pairs)), rel=1e-10)
    assert diversity(np.ones((5, 3))) == pytest.approx(0, abs=1e-12)


def test_of_equal_settings_the_first_is_chosen() -> None:
    assert best({"cheap": 0.5, "dear": 0.5, "worse": 0.4}) == "cheap"
