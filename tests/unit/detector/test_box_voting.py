import pytest
import torch

from meinst.codecs import PCACodec
from meinst.detector.box_voting import VotedBoxes, vote_boxes

SIDE = 20.0
CLOSE, NEAR, FAR = 2.0, 3.0, 4.0  # shifts that give an IoU of 0.82, 0.74 and 0.67


def iou(shift: float) -> float:
    return (SIDE - shift) / (SIDE + shift)


def vote(
    shifts: list[float],
    scores: list[float],
    labels: list[int] | None = None,
    keep: tuple[int, ...] = (0,),
) -> tuple[VotedBoxes, list[int]]:
    """Vote on boxes of 20 x 20 pixels shifted right; the n-th code is ``(n, 1)``.

    Returns:
        The result, and the candidates whose codes were requested.
    """
    boxes = torch.tensor([[x, 0.0, x + SIDE, SIDE] for x in shifts])
    requested: list[int] = []

    def codes_of(chosen: torch.Tensor) -> torch.Tensor:
        requested.extend(chosen.tolist())
        return torch.stack((chosen.float(), torch.ones(len(chosen))), 1)

    given = torch.tensor(labels or [0] * len(shifts))
    voted = vote_boxes(boxes, torch.tensor(scores), given, torch.tensor(keep).long(), codes_of)
    return voted, requested


def test_single_candidate_keeps_box_and_code() -> None:
    voted, requested = vote([5], [0.7])
    assert voted.boxes.tolist() == [[5, 0, 25, 20]]
    assert voted.codes.tolist() == [[0, 1]]
    assert voted.agreement.item() == pytest.approx(0.7 / (0.7 + 0.5))
    assert requested == [0]


def test_boxes_and_codes_are_averaged_by_score() -> None:
    voted, _ = vote([0, CLOSE], [0.9, 0.3])
    assert voted.boxes[0].tolist() == pytest.approx([0.5, 0, 20.5, 20])  # a quarter of 2
    assert voted.codes[0].tolist() == pytest.approx([0.25, 1])
    expected = (0.9 + 0.3 * iou(CLOSE)) / (0.9 + 0.3 + 0.5)
    assert voted.agreement.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shift", "x", "code"), [(CLOSE, 1.0, 0.5), (NEAR, 0.0, 0.5), (FAR, 0.0, 0.0)]
)
def test_distant_candidates_contribute_less(shift: float, x: float, code: float) -> None:
    voted, requested = vote([0, shift], [0.8, 0.8])
    assert requested == ([0, 1] if code else [0])
    assert voted.boxes[0, 0].item() == pytest.approx(x)
    assert voted.codes[0, 0].item() == pytest.approx(code)
    expected = 0.8 * (1 + iou(shift)) / (1.6 + 0.5)
    assert voted.agreement.item() == pytest.approx(expected)


def test_other_classes_and_places_do_not_vote() -> None:
    alone, _ = vote([0], [0.8])
    voted, requested = vote([0, 1, 6], [0.8, 0.7, 0.7], labels=[0, 1, 0])  # IoU 0.54 of the last
    assert voted.boxes.tolist() == alone.boxes.tolist()
    assert voted.agreement.tolist() == alone.agreement.tolist()
    assert requested == [0]


def test_candidate_can_vote_for_several_boxes() -> None:
    voted, requested = vote([0, CLOSE, 2 * CLOSE], [0.5, 0.5, 0.5], keep=(0, 2))
    assert voted.boxes[:, 0].tolist() == pytest.approx([CLOSE / 2, 1.5 * CLOSE])
    assert voted.codes[:, 0].tolist() == pytest.approx([0.5, 1.5])
    assert requested == [0, 1, 2]


def test_agreement_increases_with_the_number_of_votes() -> None:
    agreement = [vote([0.0] * n, [0.5] * n)[0].agreement.item() for n in (1, 2, 8)]
    assert agreement == pytest.approx([0.5, 2 / 3, 8 / 9])


def test_empty_boxes_keep_their_own_code() -> None:
    boxes, keep = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3]]), torch.tensor([0])
    codes = torch.tensor([[1.0], [2.0]])
    voted = vote_boxes(
        boxes, torch.tensor([0.6, 0.5]), torch.zeros(2).long(), keep, lambda chosen: codes[chosen]
    )
    assert voted.boxes.tolist() == [[3, 3, 3, 3]]
    assert voted.codes.tolist() == [[1]]


def test_no_kept_boxes_give_no_result() -> None:
    voted, requested = vote([0, 1], [0.8, 0.7], keep=())
    assert voted.boxes.shape == (0, 4)
    assert voted.codes.shape == (0, 2)
    assert voted.agreement.shape == (0,)
    assert requested == []


def test_averaged_codes_decode_to_averaged_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand((50, 6, 6), generator=generator) > 0.5).byte()
    codec = PCACodec(5, 6).fit(masks)
    codes, scores = codec.transform(masks[:3]), torch.tensor([0.9, 0.6, 0.3])
    boxes = torch.tensor([[0.0, 0, 20, 20]]).expand(3, 4)
    voted = vote_boxes(
        boxes, scores, torch.zeros(3).long(), torch.tensor([0]), lambda chosen: codes[chosen]
    )
    mean = (codec.inverse_logits(codes) * (scores / scores.sum())[:, None, None]).sum(0)
    torch.testing.assert_close(codec.inverse_logits(voted.codes)[0], mean)
