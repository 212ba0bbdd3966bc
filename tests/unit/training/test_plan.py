import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meinst.data.coco import read_coco
from meinst.models.recipe import Recipe, load_recipe
from meinst.training.plan import (
    FINISH_SECONDS,
    MIN_UPDATES,
    DataFigures,
    Timing,
    TooShortError,
    adapt_to_data,
    choose_start,
    describe_classes,
    figures_of,
    plan_training,
)

FIGURES = DataFigures(
    images=61,
    validation_images=13,
    class_names=("balloon",),
    image_side=1024,
    small=0.05,
    median=0.15,
    objects=4,
    most_objects=20,
)
PHOTOS, NUCLEI = load_recipe("photos"), load_recipe("nuclei")


def adapted(base: Recipe = PHOTOS, *, from_model: bool = True, **values: Any) -> Recipe:
    return adapt_to_data(replace(FIGURES, **values), base, from_model)


def timing(step: float, validation: float = 0.1, **values: Any) -> Timing:
    return Timing(adapted(), step, validation, **values)


def test_figures_are_relative_to_the_longer_side_of_each_image(tmp_path: Path) -> None:
    shapes = [(1, 0, 0, 10, 40), (1, 0, 0, 20, 20), (2, 0, 0, 5, 5), (3, 0, 0, 100, 100)]
    entries = [
        {
            "id": number,
            "image_id": image,
            "category_id": 1,
            "iscrowd": int(image == 3),
            "bbox": [x, y, width, height],
            "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
        }
        for number, (image, x, y, width, height) in enumerate(shapes, start=1)
    ]
    sizes = {1: (200, 100), 2: (50, 100), 3: (400, 400)}
    images = [
        {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        for number, (width, height) in sizes.items()
    ]
    content = {"images": images, "annotations": entries[:3], "categories": [{"id": 1, "name": "a"}]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    data = read_coco(path)
    figures = figures_of(data, data)
    # Both objects of image 1 have the size 20 of 200, that of image 2 has 5 of 100.
    assert figures.median == pytest.approx(0.1)
    assert figures.small == pytest.approx(0.06)  # interpolated: 0.05 + 0.2 * 0.05
    assert (figures.image_side, figures.objects, figures.most_objects) == (200, 1.5, 2)
    assert (figures.images, figures.validation_images, figures.class_names) == (3, 3, ("a",))


def test_crowds_of_small_objects_start_from_nuclei() -> None:
    assert choose_start(FIGURES)[0] == "photos"
    assert choose_start(replace(FIGURES, objects=100, median=0.04))[0] == "nuclei"
    assert choose_start(replace(FIGURES, objects=100, median=0.3))[0] == "photos"


@pytest.mark.parametrize(
    ("small", "image_side", "side"),
    [
        (0.05, 1024, 640),  # 32 pixels, four strides of 8
        (0.04, 1024, 800),
        (0.2, 1024, 416),  # at least what the model was trained with
        (0.01, 4000, 1024),  # the largest input
        (0.01, 400, 800),  # enlarged twice at most
        (0.2, 100, 192),  # 200, to a multiple of 32
    ],
)
def test_input_side_follows_from_small_objects(small: float, image_side: int, side: int) -> None:
    resize = adapted(small=small, image_side=image_side).resize
    assert (resize.shorter_side, resize.longer_side) == (side, side)


def test_input_side_follows_from_the_finest_stride() -> None:
    # 16 pixels, four strides of 4, are 0.025 of 640; the base has 512.
    assert adapted(NUCLEI, small=0.025).resize.longer_side == 640
    assert adapted(NUCLEI, small=0.1).resize.longer_side == 512


def test_crop_is_not_larger_than_the_input() -> None:
    assert adapted(small=0.01).augment.crop_size == PHOTOS.augment.crop_size == 416
    assert adapted(small=0.2, image_side=100).augment.crop_size == 192


def test_rates_of_a_trained_start_differ_from_those_of_imagenet() -> None:
    assert adapted().optimizer.backbone_lr_factor > PHOTOS.optimizer.backbone_lr_factor
    assert adapted(from_model=False).optimizer == PHOTOS.optimizer
    assert adapted(NUCLEI).optimizer == NUCLEI.optimizer


@pytest.mark.parametrize(("most", "limit"), [(20, 100), (81, 300), (400, 500), (900, 1000)])
def test_crowded_images_raise_the_limit_of_detections(most: int, limit: int) -> None:
    assert adapted(most_objects=most).selection.max_detections == limit


def test_updates_fill_the_time_that_validations_and_report_leave() -> None:
    # 13 images of 1 s: a validation takes 13 s; 12 % of 600 s are five of them, and one for the
    # report. 600 - 8 - 6 * 13 = 514 s remain, for 1,028 updates of 0.5 s.
    plan = plan_training(FIGURES, timing(0.5, 1.0), 600, recrop=False)
    assert FINISH_SECONDS == 8
    assert plan.recipe.schedule.iterations == 1028
    assert plan.recipe.schedule.validate_every == 206  # a fifth, rounded up
    assert (plan.seconds_per_update, plan.validation_seconds) == (0.5, 13)
    assert plan.finish_seconds == 21
    assert plan.recipe.schedule.warmup_iterations == 102


@pytest.mark.parametrize(
    ("step", "crop", "batch"),
    [
        # 1,718 s are left: 1,200 updates may take 1.43 s, and 1 s is measured for 416 pixels.
        (0.1, 624 // 32 * 32 + 32, 4),
        (0.9, 512, 4),
        (1.4, 416, 4),
        (2.0, 416, 2),
        (9.0, 320, 2),
    ],
)
def test_crops_and_batch_follow_from_the_speed(step: float, crop: int, batch: int) -> None:
    recipe = plan_training(FIGURES, timing(step), 1740).recipe
    assert (recipe.augment.crop_size, recipe.batch_size) == (crop, batch)
    assert recipe.resize == adapted().resize
    # The rate changes with the root of the batch.
    assert recipe.optimizer.lr == pytest.approx(8e-4 if batch == 4 else 5.66e-4, rel=1e-3)


def test_crops_fit_into_the_memory() -> None:
    large = timing(0.1, memory=3_000, memory_before=1_000, memory_limit=4_000)
    # A fifth is kept free: 2,200 of 2,000 for crops of 416, so 512 x 512 (3,029) does not fit.
    assert plan_training(FIGURES, large, 1740).recipe.augment.crop_size == 416
    assert large.memory_bytes(replace(large.recipe, batch_size=2)) == 2_000


def test_given_recipe_keeps_all_but_its_schedule() -> None:
    own = replace(PHOTOS, batch_size=3)
    measured = Timing(own, 0.1, 0.1)
    planned = plan_training(FIGURES, measured, 600, given=True).recipe
    assert planned.schedule != own.schedule
    assert replace(planned, schedule=own.schedule) == own


def test_a_fifth_of_an_update_does_not_depend_on_its_pixels() -> None:
    measured = timing(1.0)
    half = replace(measured.recipe, batch_size=2)
    assert measured.step_seconds(half) == pytest.approx(0.6)  # 0.2 + 0.8 / 2
    assert measured.step_seconds(measured.recipe) == 1.0


def test_patience_gets_more_validations() -> None:
    few, more = (plan_training(FIGURES, timing(0.5), 600, patience=p) for p in (None, 3))
    counts = [p.recipe.schedule.iterations / p.recipe.schedule.validate_every for p in (few, more)]
    assert counts == pytest.approx([6, 12], abs=0.2)


def test_too_short_time_says_how_much_is_needed() -> None:
    # 50 updates of 0.1 s, a validation of 13 s, and 8 + 13 s at the end.
    needed = MIN_UPDATES * 0.1 + 13 + 21
    with pytest.raises(TooShortError) as caught:
        plan_training(FIGURES, timing(0.1, 1.0), needed - 1, recrop=False)
    assert (caught.value.needed, caught.value.validation) == (pytest.approx(needed), 13)
    plan = plan_training(FIGURES, timing(0.1, 1.0), needed + 0.01, recrop=False)
    assert plan.recipe.schedule.iterations == MIN_UPDATES
    assert plan.recipe.schedule.validate_every == MIN_UPDATES


def test_each_choice_has_a_value_and_a_reason() -> None:
    choices = plan_training(FIGURES, timing(1.0), 1740).choices
    names = [choice.name for choice in choices]
    assert names == [
        *("input", "crops", "batch", "updates", "warm-up", "validation", "rates", "detections")
    ]
    text = "\n".join(map(str, choices))
    assert "larger than 32 pixels there, 4.0 times the finest stride (8)" in text
    assert "passes over 61 images" in text


def test_classes_known_to_the_start_are_named() -> None:
    assert describe_classes(["person", "car"], ["person"]) == "known: person, new: car"
    assert describe_classes(["car"], ["person"]) == "new: car"
