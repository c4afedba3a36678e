from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, jaccard_score, recall_score, top_k_accuracy_score

from trimtab.errors import BadInput
from trimtab.evaluators.answers import SHARES, Answers, Graded, Resampled, Scale, Values, lost, paired
from trimtab.evaluators.metrics import METRICS, Metric, graded, usual_metric
from trimtab.evaluators.targets import IGNORED, as_labels, joined, read_targets, taken
from trimtab.graph import Array

rng = np.random.default_rng(0)
LOGITS, LABELS = rng.normal(size=(60, 7)).astype(np.float32), rng.integers(7, size=60)
MAPS, MASKS = rng.normal(size=(12, 3, 5, 4)).astype(np.float32), rng.integers(3, size=(12, 5, 4))


def test_metrics_of_labels_are_those_of_scikit_learn() -> None:
    predicted = LOGITS.argmax(1)
    expected = {
        "top-1": (predicted == LABELS).mean(),
        "top-5": top_k_accuracy_score(LABELS, LOGITS, k=5),
        "mean-iou": jaccard_score(LABELS, predicted, average="macro"),
        "mean-recall": recall_score(LABELS, predicted, average="macro"),
        "worst-class-recall": recall_score(LABELS, predicted, average=None).min(),
        "mean-average-precision": average_precision_score(np.eye(7)[LABELS], LOGITS, average="macro"),
    }
    for name, value in expected.items():
        assert METRICS[name].value(LOGITS, LABELS) == pytest.approx(value, abs=1e-12), name


def test_metrics_of_masks_count_pixels_and_leave_out_the_ignored() -> None:
    masks = as_labels(np.where(rng.random(MASKS.shape) < 0.2, 255, MASKS), "task.train")
    known, predicted = masks != IGNORED, MAPS.argmax(1)
    assert METRICS["mean-iou"].value(MAPS, masks) == pytest.approx(
        jaccard_score(masks[known], predicted[known], average="macro"), abs=1e-12
    )
    each = [(p[k] == m[k]).mean() for p, m, k in zip(predicted, masks, known, strict=True)]
    found = METRICS["top-1"].graded(MAPS, masks, SHARES)
    assert isinstance(found, Values)
    np.testing.assert_allclose(found.each, each, rtol=1e-6)


def test_metrics_of_values_are_those_of_their_formulas() -> None:
    wanted, outputs = rng.normal(3.0, 2.0, (50, 4)), rng.normal(3.0, 2.0, (50, 4)).astype(np.float32)
    near = (wanted + 0.3 * (outputs - 3)).astype(np.float32)
    assert METRICS["rmse"].value(outputs, wanted) == pytest.approx(np.sqrt(((outputs - wanted) ** 2).mean()))
    left = ((near - wanted) ** 2).mean() / wanted.var(axis=0).mean()
    assert METRICS["explained-variance"].value(near, wanted) == pytest.approx(1 - left, abs=1e-6)
    assert METRICS["explained-variance"].value(-outputs, wanted) == 0


def test_outputs_that_are_not_finite_say_nothing() -> None:
    broken = np.where(rng.random(LOGITS.shape) < 0.2, np.nan, LOGITS)
    for name in ("top-1", "mean-iou", "rmse"):
        targets = LOGITS if name == "rmse" else LABELS
        assert METRICS[name].value(broken, targets) == METRICS[name].value(np.nan_to_num(broken), targets)


def mean_iou(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """The mean intersection over union, by loops."""
    predicted = outputs.argmax(1)
    found = []
    for label in range(outputs.shape[1]):
        union = ((predicted == label) | (targets == label)).sum()
        if union:
            found.append(float(((predicted == label) & (targets == label)).sum() / union))
    return float(np.mean(found))


def test_a_callable_of_tensors_is_bootstrapped_as_sums_are() -> None:
    own, sums = Metric.of(mean_iou).graded(MAPS, MASKS, SHARES), METRICS["mean-iou"].graded(MAPS, MASKS, SHARES)
    assert isinstance(own, Resampled)
    assert isinstance(sums, Resampled)
    assert own.value == pytest.approx(sums.value, abs=1e-6)
    np.testing.assert_allclose(own.resampled, sums.resampled, atol=1e-6)


def test_a_callable_of_single_images_is_a_mean_or_says_what_is_right() -> None:
    def absolute(outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        return (outputs - targets["wanted"]).abs().mean(1)

    wanted = LOGITS + 0.5
    metric = Metric.of(absolute, "lower")
    found = metric.graded(LOGITS, {"wanted": wanted}, metric.scale(0.5))
    assert isinstance(found, Values)
    assert found.value == pytest.approx(0.5, abs=1e-6)
    right = Metric.of(lambda outputs, labels: outputs.argmax(1) == labels)
    assert right.graded(LOGITS, LABELS, SHARES) == graded(LOGITS, LABELS)


def test_every_kind_survives_json_and_a_trip_to_a_worker() -> None:
    kinds = [graded(LOGITS, LABELS), *(METRICS[name].graded(MAPS, MASKS, SHARES) for name in ("top-1", "mean-iou"))]
    kinds.append(METRICS["rmse"].graded(MAPS, MAPS + 1, Scale(False, 1.5)))
    for each in kinds:
        assert Graded.from_json(json.loads(json.dumps(each.to_json()))) == each
    for metric in METRICS.values():
        assert pickle.loads(pickle.dumps(metric)).name == metric.name


def test_what_agents_are_told_rises_with_what_is_better() -> None:
    scales = {Scale(True, 20.0): [-40, 0, 19.9, 20, 20.1, 1e9], Scale(False, 0.3): [1e9, 3, 0.31, 0.3, 0.29, 0]}
    for scale, worse_to_better in scales.items():
        told = [scale.accuracy(value) for value in worse_to_better]
        assert told == sorted(told)
        assert told[0] >= 0
        assert told[-1] <= 1
        assert told[3] == 0.5
    assert Scale(False, 0.0).gain(0.1, 0.3) == pytest.approx(0.2)
    assert METRICS["rmse"].scale(0.5) == Scale(False, 0.5)
    assert Metric.of(mean_iou).scale(0.5) == SHARES
    assert Metric.of(mean_iou).scale(5.0) == Scale(True, 5.0)


def networks(count: int, seed: int) -> tuple[Array, Array, Array]:
    """Outputs of two networks for masks (count, 4, 4) of two classes, one of them rare; the second one errs more."""
    draw = np.random.default_rng(seed)
    easy = draw.beta(2, 1, (count, 1, 1))  # images differ
    masks = (draw.random((count, 4, 4)) < 0.25).astype(np.int64)
    outputs = []
    for share in (1.0, 0.93):
        right = draw.random(masks.shape) < 0.6 + 0.38 * easy * share
        outputs.append(np.stack([right == (masks == 0), right == (masks == 1)], axis=1).astype(np.float32))
    return outputs[0], outputs[1], masks


@pytest.mark.parametrize("name", ["mean-iou", "top-1"])
def test_intervals_and_bounds_cover_the_truth(name: str) -> None:
    metric, trials, images = METRICS[name], 150, 150
    many = networks(20_000, 1)
    truth = metric.value(many[0], many[2]) - metric.value(many[1], many[2])
    covered = bounded = 0
    for seed in range(trials):
        a, b, masks = networks(images, seed + 2)
        given, other = (metric.graded(outputs, masks, SHARES) for outputs in (a, b))
        difference = paired(given, other)
        covered += abs(difference.value - truth) <= 2 * difference.error
        bounded += lost(given, other, 0.95).bound >= truth
    assert 0.90 <= covered / trials <= 1.0  # 0.954 of a normal distribution, less three of its standard errors
    assert bounded / trials >= 0.90


def test_networks_that_agree_may_lose_a_few_images_all_the_same() -> None:
    given = METRICS["mean-iou"].graded(MAPS, MASKS, SHARES)
    found = lost(given, given, 0.95)
    assert found.value == 0
    assert found.bound == pytest.approx((1.645**2 + 0.5) / 12, rel=1e-3)  # the rule of three, rounded up
    assert lost(given, given, 0.99).bound > found.bound


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Metric.of("mean-iuo"), "did you mean 'mean-iou'"),
        (lambda: Metric.of("rmse", "higher"), "of rmse lower is better, not higher"),
        (lambda: Metric.of(3), "a name, or a callable"),
        (lambda: Metric.of("no.such:metric"), "metric 'no.such:metric': ModuleNotFoundError"),
        (lambda: Metric.of(lambda y, t: y / 0 @ t).value(LOGITS, LABELS), "metric .*: RuntimeError"),
        (lambda: Metric.of(lambda y, t: y).value(LOGITS, LABELS), r"values of shape \(60, 7\)"),
        (lambda: Metric.of(lambda y, t: float("nan")).value(LOGITS, LABELS), "it has to be finite"),
        (lambda: Metric.of(lambda y, t: None).value(LOGITS, LABELS), "a number is wanted"),
        (lambda: Metric.of(lambda y, t: "good").value(LOGITS, LABELS), "a number is wanted"),
        (lambda: METRICS["mean-iou"].fitting((3, 5, 4), LABELS), r"labels of shape \(5, 4\)"),
        (lambda: METRICS["mean-iou"].fitting((3, 5, 4), MAPS), "targets that are no labels"),
        (lambda: METRICS["mean-iou"].fitting((2, 5, 4), MASKS), "3 classes"),
    ],
)
def test_what_is_no_metric_is_refused(call: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        call()


def test_different_kinds_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not of one metric"):
        paired(graded(LOGITS, LABELS), Values.of(np.ones(60)))


def test_where_nothing_is_asked_the_outputs_decide() -> None:
    assert usual_metric((10,)).name == usual_metric((4, 8, 8)).name == "top-1"
    assert usual_metric((1,)).name == "explained-variance"
    own = Metric.of(mean_iou)
    assert own.fitting((3, 5, 4), MASKS).classes
    assert own.fitting((3, 5, 4), None).classes
    assert not own.fitting((3, 5, 4), MAPS).classes
    assert not own.fitting((1,), None).classes


def test_targets_of_any_form_are_joined_and_taken() -> None:
    boxes = [[{"box": i}] * i for i in range(4)]
    batches = [
        read_targets({"mask": torch.ones(2, 3), "both": [torch.arange(2), np.ones((2, 1))]}, 2),
        read_targets({"mask": torch.zeros(1, 3), "both": [torch.arange(1), np.zeros((1, 1))]}, 1),
    ]
    whole = taken(joined(batches), np.array([2, 0]))
    np.testing.assert_array_equal(whole["mask"], [[0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(whole["both"][0], [0, 0])
    np.testing.assert_array_equal(whole["both"][1], [[0], [1]])
    assert taken(joined([read_targets(boxes[:3], 3), read_targets(boxes[3:], 1)]), [3, 1]) == [boxes[3], boxes[1]]
    with pytest.raises(ValueError, match="beside 3 images"):
        read_targets(torch.ones(2), 3)
    assert isinstance(graded(LOGITS, LABELS), Answers)
