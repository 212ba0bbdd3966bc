import math

import pytest
import torch

from meinst.codecs.clipped_logit import LOGIT, LOGIT_VARIANCE, clipped_logits


def test_mean_in_closed_form() -> None:
    # v = 0.01 with mass 0.2, else uniform on [0.01, 0.05] with density 20. The antiderivative
    # of log((1 - v) / v) is the entropy h(v) = -v log v - (1 - v) log(1 - v), so
    # L = 0.2 log 99 + 20 (h(0.05) - h(0.01)) = 3.7692981.
    def entropy(v: float) -> float:
        return -v * math.log(v) - (1 - v) * math.log(1 - v)

    expected = 0.2 * math.log(99) + 20 * (entropy(0.05) - entropy(0.01))
    assert pytest.approx(expected, abs=1e-12) == LOGIT
    assert pytest.approx(3.7692981, abs=5e-8) == LOGIT


def test_variance() -> None:
    assert pytest.approx(0.3311785, abs=5e-8) == LOGIT_VARIANCE


def test_no_pixels() -> None:
    assert clipped_logits(torch.zeros(0, 4, dtype=torch.bool)).shape == (0, 4)


def test_expectation_is_a_constant_with_the_pixels_sign() -> None:
    logits = clipped_logits(torch.tensor([True, False]))
    torch.testing.assert_close(logits, torch.tensor([LOGIT, -LOGIT]))


def test_random_logits_have_expected_moments_and_limits() -> None:
    inside = torch.ones(1_000_000, dtype=torch.bool)
    logits = clipped_logits(inside, "random", torch.Generator().manual_seed(0))
    # Standard errors: sqrt(0.33 / 1e6) = 0.0006 of the mean, about as much of the variance.
    assert logits.mean().item() == pytest.approx(LOGIT, abs=0.003)
    assert logits.var().item() == pytest.approx(LOGIT_VARIANCE, abs=0.003)
    assert logits.max().item() == pytest.approx(math.log(99), abs=1e-5)
    assert logits.min().item() == pytest.approx(math.log(19), abs=1e-4)
    assert (logits == logits.max()).float().mean().item() == pytest.approx(0.2, abs=0.002)


def test_constant_logits_are_those_of_the_clip() -> None:
    logits = clipped_logits(torch.tensor([True, False]), "constant")
    assert logits.tolist() == pytest.approx([math.log(99), -math.log(99)])


def test_generator_is_required_for_random_logits_only() -> None:
    inside = torch.tensor([True])
    with pytest.raises(ValueError, match="logits='random' with no generator"):
        clipped_logits(inside, "random")
    with pytest.raises(ValueError, match="logits='expected' with a generator"):
        clipped_logits(inside, "expected", torch.Generator())


def test_generator_determines_random_logits() -> None:
    inside = torch.rand(50, generator=torch.Generator().manual_seed(1)) < 0.5
    first = clipped_logits(inside, "random", torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        first, clipped_logits(inside, "random", torch.Generator().manual_seed(2))
    )
    assert not torch.equal(
        first, clipped_logits(inside, "random", torch.Generator().manual_seed(3))
    )
    assert torch.equal(first > 0, inside)
