"""The scores against what defines them, computed another way on small cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune.rank.logistic import fit_logistic
from finetune.rank.logme import log_evidence
from finetune.rank.measures import Estimate, accuracy, best_of, corrected_error, mean_average_precision
from finetune.rank.neighbours import neighbour_scores
from finetune.rank.probe import cross_validated, probe_kind
from finetune.rank.ridge import PENALTIES, ridge_scores
from finetune.rank.sample import fold_of
from finetune.rank.targets import Targets


def clouds(
    *, signal: float, count: int = 120, classes: int = 4, dim: int = 12, seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Features and truth: Gaussian clouds whose middles are `signal` apart."""
    chance = np.random.default_rng(seed)
    label_N = np.arange(count) % classes
    middle_CD = np.random.default_rng(99).standard_normal((classes, dim))
    truth_NC = np.eye(classes, dtype=bool)[label_N]
    return chance.standard_normal((count, dim)) + signal * middle_CD[label_N], truth_NC


class TestLogistic:
    def test_the_gradient_vanishes_where_it_ends_and_every_step_away_is_worse(self) -> None:
        feature_ND, truth_NC = clouds(signal=0.5)
        fit = fit_logistic(feature_ND, truth_NC, 0.01, iterations=500, tolerance=1e-9)

        def objective(weight: np.ndarray) -> float:
            logit_NC = feature_ND @ weight[:-1] + weight[-1]
            cross = np.log(np.exp(logit_NC).sum(axis=1)) - logit_NC[truth_NC]
            return float(cross.mean() + 0.005 * (weight[:-1] ** 2).sum())

        assert fit.gradient < 1e-9
        assert fit.loss == pytest.approx(objective(fit.weight), abs=1e-12)
        chance = np.random.default_rng(1)
        for _ in range(20):
            step = 1e-3 * chance.standard_normal(fit.weight.shape)
            assert objective(fit.weight + step) > fit.loss

    def test_it_agrees_with_newtons_method_on_two_classes(self) -> None:
        feature_ND, truth_NC = clouds(signal=0.4, classes=2, dim=3)
        fit = fit_logistic(feature_ND, truth_NC, 0.02, iterations=500, tolerance=1e-10)
        # Two columns with ‖w₀‖² + ‖w₁‖² under one difference: w₁ = −w₀, so half the penalty on the difference.
        design = np.c_[feature_ND, np.ones(len(feature_ND))]
        ridge = np.diag([0.01, 0.01, 0.01, 0.0])
        weight = np.zeros(4)
        for _ in range(50):
            share = 1 / (1 + np.exp(-design @ weight))
            gradient = design.T @ (share - truth_NC[:, 1]) / len(design) + ridge @ weight
            hessian = (design.T * (share * (1 - share))) @ design / len(design) + ridge
            weight -= np.linalg.solve(hessian, gradient)
        assert np.allclose(fit.weight[:, 1] - fit.weight[:, 0], weight, atol=1e-6)

    def test_a_warm_start_ends_at_the_same_place_sooner(self) -> None:
        feature_ND, truth_NC = clouds(signal=0.5)
        cold = fit_logistic(feature_ND, truth_NC, 0.01, tolerance=1e-7)
        warm = fit_logistic(feature_ND, truth_NC, 0.01, tolerance=1e-7, start=cold.weight + 1e-3)
        assert warm.iterations < cold.iterations
        assert np.allclose(warm.log_probability(feature_ND), cold.log_probability(feature_ND), atol=1e-4)


class TestRidge:
    @pytest.mark.parametrize("dim", [5, 60])  # fewer and more features than images
    def test_the_penalty_is_that_of_the_least_error_on_images_left_out_one_by_one(self, dim: int) -> None:
        feature_ND, truth_NC = clouds(signal=0.3, count=30, dim=dim)
        train_ND, truth = feature_ND - feature_ND.mean(axis=0), truth_NC.astype(float)
        test_MD = np.random.default_rng(5).standard_normal((7, dim))

        def solved(rows: np.ndarray, penalty: float, asked_MD: np.ndarray) -> np.ndarray:
            part_ND, mean_D = train_ND[rows], train_ND[rows].mean(axis=0)
            part_ND = part_ND - mean_D
            weight_DC = np.linalg.solve(part_ND.T @ part_ND + penalty * np.eye(dim), part_ND.T @ truth[rows])
            return truth[rows].mean(axis=0) + (asked_MD - mean_D) @ weight_DC

        everyone = np.arange(30)
        errors = []
        for share in PENALTIES:
            left_out = [solved(everyone[everyone != row], 30 * share, train_ND[row : row + 1])[0] for row in everyone]
            errors.append(np.square(np.array(left_out) - truth).mean())
        best = 30 * PENALTIES[int(np.argmin(errors))]
        assert np.allclose(ridge_scores(train_ND, truth, test_MD), solved(everyone, best, test_MD), atol=1e-6)

    def test_features_that_never_vary_give_the_shares_of_the_columns(self) -> None:
        _, truth_NC = clouds(signal=1)
        scores = ridge_scores(np.zeros((120, 8)), truth_NC.astype(float), np.zeros((3, 8)))
        assert np.allclose(scores, 0.25)


class TestNeighbours:
    def test_votes_by_hand(self) -> None:
        train = np.array([[1.0, 0], [0.96, 0.28], [0, 1], [-1, 0], [0, -1]])
        truth = np.eye(2, dtype=bool)[[0, 1, 1, 0, 0]]
        scores, k = neighbour_scores(train, truth, np.array([[2.0, 0.0]]), lambda score: float(score.shape[1]))
        assert k == 1  # every k measures the same: the smallest
        assert scores.tolist() == [[1.0, 0.0]]
        scores, k = neighbour_scores(train, truth, np.array([[2.0, 0.0]]), lambda score: float((score > 0).sum()))
        assert k == 3
        near, middle, far = 1.0, math.exp(-0.04 / 0.07), math.exp(-1 / 0.07)
        assert scores[0, 0] == pytest.approx(near / (near + middle + far))

    def test_an_image_never_votes_for_itself_when_k_is_chosen(self) -> None:
        chance = np.random.default_rng(0)
        train, truth = chance.standard_normal((40, 6)), np.eye(2, dtype=bool)[chance.integers(0, 2, 40)]
        seen: list[float] = []

        def measure(score_NC: np.ndarray) -> float:
            seen.append(accuracy(score_NC, truth))
            return seen[-1]

        neighbour_scores(train, truth, train[:1], measure)
        assert max(seen) < 0.9  # noise: with itself among the neighbours it would be 1 for k = 1


class TestLogME:
    @pytest.mark.parametrize(("count", "dim"), [(40, 6), (12, 20)])
    def test_it_is_the_maximum_of_the_evidence(self, count: int, dim: int) -> None:
        """p(y) = N(y; 0, FFᵀ/α + I/β): no weights, no eigenvectors, maximised by looking everywhere."""
        feature_ND, truth_NC = clouds(signal=0.7, count=count, classes=3, dim=dim)

        def evidence(log_alpha: float, log_beta: float, target: np.ndarray) -> float:
            covariance = feature_ND @ feature_ND.T * math.exp(-log_alpha) + np.eye(count) * math.exp(-log_beta)
            _, determinant = np.linalg.slogdet(covariance)
            squared = target @ np.linalg.solve(covariance, target)
            return float(-0.5 * (count * math.log(2 * math.pi) + determinant + squared)) / count

        best = []
        for target in truth_NC.T.astype(float):
            middle, width = (0.0, 0.0), 8.0
            for _ in range(14):
                steps = np.linspace(-width, width, 9)
                tried = [(middle[0] + a, middle[1] + b) for a in steps for b in steps]
                middle, width = max(tried, key=lambda one, y=target: evidence(*one, y)), width / 2.5
            best.append(evidence(*middle, target))
        assert log_evidence(feature_ND, truth_NC) == pytest.approx(np.mean(best), abs=1e-5)

    def test_more_signal_is_more_evidence_and_extra_noise_is_less(self) -> None:
        rising = [log_evidence(*clouds(signal=signal)) for signal in (0.0, 0.3, 1.0)]
        assert rising == sorted(rising)
        feature_ND, truth_NC = clouds(signal=1.0)
        noise = np.random.default_rng(3).standard_normal((120, 60))
        assert log_evidence(np.c_[feature_ND, noise], truth_NC) < rising[-1]

    def test_features_that_say_nothing_or_everything_have_a_finite_evidence(self) -> None:
        _, truth_NC = clouds(signal=0)
        assert math.isfinite(log_evidence(np.zeros((120, 5)), truth_NC))
        assert math.isfinite(log_evidence(truth_NC.astype(float), truth_NC))
        assert math.isnan(log_evidence(np.ones((3, 2)), np.ones((3, 2), bool)))


class TestMeasures:
    def test_average_precision_by_hand_ties_come_in_together(self) -> None:
        truth = np.array([[1], [0], [1], [0]], bool)
        assert mean_average_precision(np.array([[4.0], [3], [2], [1]]), truth) == pytest.approx((1 + 2 / 3) / 2)
        assert mean_average_precision(np.ones((4, 1)), truth) == 0.5
        assert mean_average_precision(np.array([[2.0], [2], [1], [1]]), truth) == 0.5
        # A column without a true row is not asked.
        assert mean_average_precision(np.array([[2.0, 1], [1, 1]]), np.array([[1, 0], [0, 0]], bool)) == 1
        assert math.isnan(mean_average_precision(np.ones((2, 1)), np.zeros((2, 1), bool)))

    def test_spread(self) -> None:
        one = Estimate(folds=(0.5, 0.6, 0.7, 0.6))
        assert one.mean == pytest.approx(0.6)
        assert one.standard_error == pytest.approx(np.std(one.folds, ddof=1) / 2)
        hard_fold = Estimate(folds=(0.4, 0.5, 0.6, 0.5))
        assert one.minus(hard_fold).standard_error == pytest.approx(0)
        assert corrected_error(one) == pytest.approx(math.sqrt((1 / 4 + 1 / 3) * np.var(one.folds, ddof=1)))

    def test_nan_never_wins(self) -> None:
        assert best_of([math.nan, 0.1, 0.3, 0.3]) == 2


class TestCrossValidation:
    def targets(self, truth_NC: np.ndarray, by: str = "label") -> Targets:
        return Targets(by="labels" if by == "labels" else "label", names=tuple("abcd"), truth=truth_NC)

    @pytest.mark.parametrize("by", ["label", "labels"])
    def test_more_signal_scores_higher_and_noise_no_better_than_guessing(self, by: str) -> None:
        found = []
        for signal in (0.0, 0.5, 2.0):
            feature_ND, truth_NC = clouds(signal=signal, count=160)
            targets = self.targets(truth_NC, by)
            folds = fold_of(targets.strata, 4, seed=1)
            found.append(cross_validated(feature_ND, targets, folds, seed=1))
        for scores in zip(*((one.probe.mean, one.neighbours.mean) for one in found), strict=True):
            assert scores[0] < 0.45
            assert scores[0] < scores[1] < scores[2]
            assert scores[2] > 0.95

    def test_the_same_seed_gives_the_same_scores_and_features_scale_changes_no_probe(self) -> None:
        feature_ND, truth_NC = clouds(signal=0.5)
        targets = self.targets(truth_NC)
        folds = fold_of(targets.strata, 3, seed=2)
        first = cross_validated(feature_ND, targets, folds, seed=2)
        assert cross_validated(feature_ND, targets, folds, seed=2) == first
        # An image's place on another scale, and features that never move, are nothing that a head couldn't undo.
        moved = np.c_[feature_ND * np.logspace(-2, 2, 12) + 7, np.full((120, 3), 5.0)]
        assert cross_validated(moved, targets, folds, seed=2).probe.folds == pytest.approx(first.probe.folds)

    def test_what_is_asked_of_a_fold_decides_nothing_in_it(self) -> None:
        """The probe's answers for a fold don't change when that fold's truth does."""
        feature_ND, truth_NC = clouds(signal=0.5)
        folds = fold_of(self.targets(truth_NC).strata, 3, seed=1)
        before = cross_validated(feature_ND, self.targets(truth_NC), folds, seed=1)
        lied_NC = truth_NC.copy()
        lied_NC[folds == 0] = np.roll(truth_NC[folds == 0], 1, axis=1)
        after = cross_validated(feature_ND, self.targets(lied_NC), folds, seed=1)
        assert after.k[0] == before.k[0]
        assert after.probe.folds[0] < 0.5 < before.probe.folds[0]

    def test_many_classes_are_told_by_ridge_regression(self) -> None:
        names = tuple(str(number) for number in range(201))
        assert probe_kind(Targets(by="label", names=names, truth=np.eye(201, dtype=bool))) == "ridge"
        assert probe_kind(Targets(by="label", names=names[:200], truth=np.eye(200, dtype=bool))) == "logistic"
