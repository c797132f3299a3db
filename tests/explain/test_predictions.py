from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from normlab.explain.predictions import disagreement, predict, probabilities, telling_confusions
from normlab.models.residual import build_model


def test_predictions_are_the_models_in_evaluation_mode() -> None:
    model = build_model("resnet8", "bn", num_classes=4, in_channels=3, seed=0, dropout=0.5).train()
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 16, 16)).astype(np.uint8)
    mean, std = np.full(3, 0.4, np.float32), np.full(3, 0.2, np.float32)
    logits = predict(model, images, mean, std, batch=3)
    assert model.training
    whole = model.eval()((torch.as_tensor(images).float() / 255 - 0.4) / 0.2).detach().numpy()
    np.testing.assert_allclose(logits, whole, rtol=1e-3, atol=1e-4)


def test_probabilities_are_softmax() -> None:
    logits = np.array([[1.0, 2.0, 1000.0], [0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_allclose(probabilities(logits), softmax(logits, axis=1))


def test_confusions_of_one_norm_and_not_another() -> None:
    bn = np.array([[90, 10, 0], [0, 100, 0], [0, 30, 70]])
    gn = np.array([[90, 10, 0], [5, 95, 0], [0, 2, 98]])
    first, second = telling_confusions({"bn": bn, "gn": gn})
    assert (first.norm, first.other, first.truth, first.called) == ("bn", "gn", 2, 1)
    assert (first.rate, first.other_rate) == pytest.approx((0.30, 0.02))
    assert (second.norm, second.truth, second.called) == ("gn", 1, 0)
    assert telling_confusions({"bn": bn}) == []


def test_disagreement_is_the_entropy_of_the_votes() -> None:
    votes = [np.array([0, 1, 2]), np.array([0, 1, 1]), np.array([0, 2, 0]), np.array([0, 2, 0])]
    shares = [[1, 0, 0], [0, 0.5, 0.5], [0.5, 0.25, 0.25]]
    np.testing.assert_allclose(disagreement(votes, 3), [entropy(s, base=2) for s in shares], atol=1e-12)
