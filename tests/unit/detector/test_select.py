import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from meinst.codecs import PCACodec
from meinst.detector.meinst import MEInst
from meinst.detector.select import ImageSizes, SelectOptions, select_detections
from meinst.types import HeadOutputs


@pytest.fixture(scope="module")
def codec() -> PCACodec:
    generator = torch.Generator().manual_seed(0)
    return PCACodec(4, 5).fit((torch.rand((99, 5, 5), generator=generator) > 0.5).byte())


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def outputs_at(
    points: list[tuple[float, float]],
    scores: list[list[float]],
    centerness: list[float],
    level_sizes: tuple[int, ...] | None = None,
    half: float = 1.0,
) -> HeadOutputs:
    """Outputs of one image at stride 8; every box extends ``half`` strides to each side."""
    count = len(points)
    return HeadOutputs(
        logits=torch.tensor([[[logit(p) for p in row] for row in scores]]),
        boxes=torch.full((1, count, 4), half),
        centerness=torch.tensor([[logit(p) for p in centerness]]),
        codes=torch.arange(count * 4.0).view(1, count, 4),
        points=torch.tensor(points),
        strides=torch.full((count,), 8.0),
        level_sizes=level_sizes or (count,),
    )


def select(outputs, codec, size=None, **options):
    size = size or ImageSizes((100, 200), (100, 200))
    names = tuple("abc"[: outputs.logits.shape[2]])
    selection = SelectOptions(**{"score_threshold": 0.0, **options})
    return select_detections(outputs, [size], codec, names, selection)[0]


def test_no_candidates_give_no_detections(codec: PCACodec) -> None:
    found = select(outputs_at([(50, 50)], [[0.04, 0.01]], [0.9]), codec)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.codes.shape == (0, 4)


def test_score_box_label_and_code_of_one_point(codec: PCACodec) -> None:
    found = select(outputs_at([(50, 40)], [[0.01, 0.64]], [0.25]), codec)
    assert found.scores.tolist() == pytest.approx([math.sqrt(0.64 * 0.25)])
    assert found.boxes.tolist() == [[42, 32, 58, 48]]  # the point minus and plus one stride of 8
    assert found.labels.tolist() == [1]
    assert found.codes.tolist() == [[0, 1, 2, 3]]


def test_point_can_have_two_classes_best_first(codec: PCACodec) -> None:
    found = select(outputs_at([(50, 40)], [[0.3, 0.6]], [0.9]), codec)
    assert found.labels.tolist() == [1, 0]


def test_candidate_threshold_applies_to_class_scores(codec: PCACodec) -> None:
    found = select(outputs_at([(50, 40), (90, 40)], [[0.06], [0.049]], [0.01, 0.99]), codec)
    assert found.scores.tolist() == pytest.approx([math.sqrt(0.06 * 0.01)])


def test_score_threshold_applies_to_final_scores(codec: PCACodec) -> None:
    outputs = outputs_at([(50, 40), (90, 40)], [[0.64], [0.64]], [0.26, 0.25])
    found = select(outputs, codec, score_threshold=0.405)
    assert found.scores.tolist() == pytest.approx([math.sqrt(0.64 * 0.26)])


def test_default_score_threshold_is_one_half(codec: PCACodec) -> None:
    outputs = outputs_at([(50, 40), (90, 40)], [[0.5], [0.5]], [0.51, 0.49])
    assert len(select(outputs, codec, score_threshold=None)) == 1


def test_duplicates_are_suppressed_within_a_class(codec: PCACodec) -> None:
    # Boxes of 16 x 16 pixels, 2 apart: IoU 14 / 18 = 0.78 > 0.6.
    points = [(50.0, 40.0), (52.0, 40.0), (52.0, 40.0)]
    found = select(outputs_at(points, [[0.9, 0.01], [0.8, 0.01], [0.01, 0.7]], [0.9] * 3), codec)
    assert found.labels.tolist() == [0, 1]
    # 5 apart: IoU 11 / 21 = 0.52 < 0.6.
    points = [(50.0, 40.0), (55.0, 40.0)]
    assert len(select(outputs_at(points, [[0.9], [0.8]], [0.9] * 2), codec)) == 2


def test_limits_per_level_and_per_image(codec: PCACodec) -> None:
    points = [(10.0 + 20 * i, 40.0) for i in range(8)]
    scores = [[0.9 - 0.05 * i] for i in range(8)]
    outputs = outputs_at(points, scores, [0.9] * 8, level_sizes=(4, 4), half=0.5)
    found = select(outputs, codec, max_per_level=2)
    assert found.boxes[:, 0].tolist() == [6, 26, 86, 106]  # the best two of each level
    assert len(select(outputs, codec, max_detections=3)) == 3


def test_ties_with_the_last_score_are_kept(codec: PCACodec) -> None:
    points = [(10.0 + 20 * i, 40.0) for i in range(4)]
    outputs = outputs_at(points, [[0.9], [0.5], [0.5], [0.5]], [0.9] * 4, half=0.5)
    assert len(select(outputs, codec, max_detections=2)) == 4


def test_boxes_are_scaled_and_clipped_and_empty_ones_dropped(codec: PCACodec) -> None:
    outputs = outputs_at([(4, 4), (50, 40), (300, 40)], [[0.9], [0.8], [0.7]], [0.9] * 3)
    found = select(outputs, codec, ImageSizes((50, 400), (100, 200)))
    # x doubles, y halves; the first is clipped at 0, the third is outside the image.
    assert found.boxes.tolist() == [[0, 0, 24, 6], [84, 16, 116, 24]]
    assert found.codes[:, 0].tolist() == [0, 4]


def test_images_of_a_batch_are_independent(codec: PCACodec) -> None:
    first = outputs_at([(50, 40), (90, 40)], [[0.9], [0.01]], [0.9] * 2)
    second = outputs_at([(50, 40), (90, 40)], [[0.01], [0.8]], [0.9] * 2)
    batch = HeadOutputs(
        *(torch.cat((getattr(first, n), getattr(second, n))) for n in ("logits", "boxes")),
        *(torch.cat((getattr(first, n), getattr(second, n))) for n in ("centerness", "codes")),
        points=first.points,
        strides=first.strides,
        level_sizes=first.level_sizes,
    )
    size = ImageSizes((100, 200), (100, 200))
    found = select_detections(batch, [size, size], codec, ("a",), SelectOptions())
    assert [len(f) for f in found] == [1, 1]
    assert [f.boxes[0, 0].item() for f in found] == [42, 82]


def test_box_voting_moves_boxes_and_codes_and_uses_low_scores(codec: PCACodec) -> None:
    # Boxes of 16 x 16 pixels, 1 apart: IoU 15 / 17 = 0.88.
    outputs = outputs_at([(50, 40), (51, 40)], [[0.64], [0.09]], [0.64, 0.09])
    agreement = (0.64 + 0.09 * 15 / 17) / (0.64 + 0.09 + 0.5)
    found = select(outputs, codec, box_voting=True, score_threshold=0.2)
    assert found.scores.tolist() == pytest.approx([0.64 * agreement])
    share = 0.09 / (0.64 + 0.09)
    assert found.boxes[0].tolist() == pytest.approx([42 + share, 32, 58 + share, 48])
    assert found.codes[0].tolist() == pytest.approx([4 * share + n for n in range(4)])
    # The threshold applies to the score after multiplication by the agreement.
    higher = 0.64 * agreement + 0.01
    assert len(select(outputs, codec, box_voting=True, score_threshold=higher)) == 0


def test_box_voting_changes_the_order(codec: PCACodec) -> None:
    # The best candidate is alone; three agree on the second.
    points = [(20.0, 40.0), (90.0, 40.0), (90.0, 40.0), (90.0, 40.0)]
    outputs = outputs_at(points, [[0.8], [0.7], [0.7], [0.7]], [0.8, 0.7, 0.7, 0.7])
    assert select(outputs, codec).boxes[:, 0].tolist() == [12, 82]
    found = select(outputs, codec, box_voting=True)
    assert found.boxes[:, 0].tolist() == pytest.approx([82, 12])
    assert found.scores.tolist() == pytest.approx([0.7 * 2.1 / 2.6, 0.8 * 0.8 / 1.3])


def test_box_voting_without_candidates(codec: PCACodec) -> None:
    found = select(outputs_at([(50, 50)], [[0.04, 0.01]], [0.9]), codec, box_voting=True)
    assert found.codes.shape == (0, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("candidate_threshold", 0.0),
        ("candidate_threshold", 1.5),
        ("score_threshold", -0.1),
        ("max_detections", 0),
    ],
)
def test_options_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        SelectOptions(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("max_detections", 1.5, "an integer"),
        ("max_detections", "20", "an integer"),
        ("max_detections", True, "an integer"),
        ("score_threshold", "0.5", "a number"),
        ("score_threshold", math.nan, "between 0 and 1"),
    ],
)
def test_values_that_are_no_numbers_are_named(
    tiny_model: MEInst, name: str, value: object, rule: str
) -> None:
    message = rf"{name} must be {rule}, got {value!r}"
    with pytest.raises(ValueError, match=message):
        SelectOptions(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        SelectOptions().override(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        tiny_model.predict(np.zeros((9, 9, 3), np.uint8), **{name: value})  # type: ignore[call-overload]
    assert SelectOptions(max_detections=np.int64(7), score_threshold=np.float32(0.5))  # type: ignore[arg-type]


def test_raising_max_detections_raises_the_limit_per_level(codec: PCACodec) -> None:
    options = SelectOptions(score_threshold=0.0)  # 100 detections, 1000 candidates per level
    assert options.override(max_detections=40) == replace(options, max_detections=40)
    assert options.override(0.3, 100) == replace(options, score_threshold=0.3)
    assert options.override(max_detections=150).max_per_level == 1500
    assert options.override(max_detections=150).override(max_detections=100).max_per_level == 1500
    points = [(20.0 * i, 40.0) for i in range(1500)]
    outputs = outputs_at(points, [[0.9]] * 1500, [0.9] * 1500, half=0.5)
    size = ImageSizes((100, 40_000), (100, 40_000))

    def count(selection: SelectOptions) -> int:
        return len(select_detections(outputs, [size], codec, ("a",), selection)[0])

    assert count(replace(options, max_detections=1400)) == 1000  # the limit per level
    assert count(options.override(max_detections=1400)) >= 1400  # ties are kept
