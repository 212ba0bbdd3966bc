import pytest
import torch

from meinst.codecs import PCACodec
from meinst.detector.votes import Elected, hold_votes

SIDE = 20.0
ALIKE, NEAR, HALF = 2.0, 3.0, 4.0  # shifts by which the IoU is 0.82, 0.74 and 0.67


def iou(shift: float) -> float:
    return (SIDE - shift) / (SIDE + shift)


def elect(
    shifts: list[float],
    scores: list[float],
    labels: list[int] | None = None,
    keep: tuple[int, ...] = (0,),
) -> tuple[Elected, list[int]]:
    """Boxes of 20 x 20 pixels moved right; the code of the n-th is ``(n, 1)``."""
    boxes = torch.tensor([[x, 0.0, x + SIDE, SIDE] for x in shifts])
    asked: list[int] = []

    def codes_of(chosen: torch.Tensor) -> torch.Tensor:
        asked.extend(chosen.tolist())
        return torch.stack((chosen.float(), torch.ones(len(chosen))), 1)

    given = torch.tensor(labels or [0] * len(shifts))
    elected = hold_votes(boxes, torch.tensor(scores), given, torch.tensor(keep).long(), codes_of)
    return elected, asked


def test_who_is_alone_stays_as_it_is_and_is_doubted() -> None:
    elected, asked = elect([5], [0.7])
    assert elected.boxes.tolist() == [[5, 0, 25, 20]]
    assert elected.codes.tolist() == [[0, 1]]
    assert elected.agreement.item() == pytest.approx(0.7 / (0.7 + 0.5))
    assert asked == [0]


def test_boxes_and_codes_are_means_by_score() -> None:
    elected, _ = elect([0, ALIKE], [0.9, 0.3])
    assert elected.boxes[0].tolist() == pytest.approx([0.5, 0, 20.5, 20])  # a quarter of 2
    assert elected.codes[0].tolist() == pytest.approx([0.25, 1])
    expected = (0.9 + 0.3 * iou(ALIKE)) / (0.9 + 0.3 + 0.5)
    assert elected.agreement.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shift", "x", "code"), [(ALIKE, 1.0, 0.5), (NEAR, 0.0, 0.5), (HALF, 0.0, 0.0)]
)
def test_the_less_alike_the_less_is_asked(shift: float, x: float, code: float) -> None:
    elected, asked = elect([0, shift], [0.8, 0.8])
    assert asked == ([0, 1] if code else [0])
    assert elected.boxes[0, 0].item() == pytest.approx(x)
    assert elected.codes[0, 0].item() == pytest.approx(code)
    expected = 0.8 * (1 + iou(shift)) / (1.6 + 0.5)
    assert elected.agreement.item() == pytest.approx(expected)


def test_other_classes_and_other_places_have_no_vote_and_are_not_asked_for_codes() -> None:
    alone, _ = elect([0], [0.8])
    elected, asked = elect([0, 1, 6], [0.8, 0.7, 0.7], labels=[0, 1, 0])  # IoU 0.54 of the last
    assert elected.boxes.tolist() == alone.boxes.tolist()
    assert elected.agreement.tolist() == alone.agreement.tolist()
    assert asked == [0]


def test_one_candidate_may_vote_on_several() -> None:
    elected, asked = elect([0, ALIKE, 2 * ALIKE], [0.5, 0.5, 0.5], keep=(0, 2))
    assert elected.boxes[:, 0].tolist() == pytest.approx([ALIKE / 2, 1.5 * ALIKE])
    assert elected.codes[:, 0].tolist() == pytest.approx([0.5, 1.5])
    assert asked == [0, 1, 2]


def test_more_that_agree_are_surer() -> None:
    agreement = [elect([0.0] * n, [0.5] * n)[0].agreement.item() for n in (1, 2, 8)]
    assert agreement == pytest.approx([0.5, 2 / 3, 8 / 9])


def test_empty_boxes_have_votes_too() -> None:
    boxes, keep = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3]]), torch.tensor([0])
    codes = torch.tensor([[1.0], [2.0]])
    elected = hold_votes(
        boxes, torch.tensor([0.6, 0.5]), torch.zeros(2).long(), keep, lambda chosen: codes[chosen]
    )
    assert elected.boxes.tolist() == [[3, 3, 3, 3]]
    assert elected.codes.tolist() == [[1]]


def test_nothing_kept_elects_nothing() -> None:
    elected, asked = elect([0, 1], [0.8, 0.7], keep=())
    assert elected.boxes.shape == (0, 4)
    assert elected.codes.shape == (0, 2)
    assert elected.agreement.shape == (0,)
    assert asked == []


def test_the_mean_of_codes_is_that_of_decoded_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand((50, 6, 6), generator=generator) > 0.5).byte()
    codec = PCACodec(5, 6).fit(masks)
    codes, scores = codec.transform(masks[:3]), torch.tensor([0.9, 0.6, 0.3])
    boxes = torch.tensor([[0.0, 0, 20, 20]]).expand(3, 4)
    elected = hold_votes(
        boxes, scores, torch.zeros(3).long(), torch.tensor([0]), lambda chosen: codes[chosen]
    )
    mean = (codec.inverse_logits(codes) * (scores / scores.sum())[:, None, None]).sum(0)
    torch.testing.assert_close(codec.inverse_logits(elected.codes)[0], mean)
