"""`meinst train --init` and `--codec`: what a new model takes from an older one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from short_training import RECIPE, WARNINGS, make_options

from meinst.data.coco import read_coco
from meinst.engine.checkpoint import load_model, read_info
from meinst.engine.config import load_recipe

if TYPE_CHECKING:
    from conftest import DrawnData

pytest.importorskip("lightning")

pytestmark = WARNINGS


def test_a_recipe_tells_of_the_codec_that_is_used(
    finished_run: Path, drawn_data: DrawnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from meinst.engine.train import train

    recipe = tmp_path / "dct.yaml"
    text = RECIPE.replace("n_components: 4,", "kind: dct, n_components: 9,")
    recipe.write_text(text.replace("iterations: 8,", "iterations: 1,"))
    init = str(finished_run / "best.safetensors")
    options = replace(make_options(drawn_data, recipe, tmp_path / "out"), random_backbone=False)
    info = read_info(train(replace(options, init=init)))
    assert f"the codec (pca, 4 numbers, masks of 14 x 14) is that of --init {init}" in caplog.text
    assert (info.recipe.codec.kind, info.recipe.codec.n_components) == ("pca", 4)
    assert load_recipe(tmp_path / "out" / "recipe.yaml").codec == info.recipe.codec


def test_starting_from_a_trained_model_keeps_what_fits(
    finished_run: Path, drawn_data: DrawnData, tmp_path: Path
) -> None:
    from meinst.engine import start as module

    content = drawn_data.content()
    content["categories"] = [{"id": 3, "name": "round"}, {"id": 7, "name": "box"}]
    renamed = tmp_path / "renamed.json"
    renamed.write_text(json.dumps(content))
    weights = str(finished_run / "best.safetensors")
    options = replace(
        make_options(drawn_data, Path(), tmp_path / "out"),
        train_annotations=renamed,
        init=weights,
        recipe=None,
    )

    recipe = module.find_recipe(options)
    assert recipe.schedule.iterations == 8
    assert recipe.selection.score_threshold is None  # to be found for the new data
    model = module.make_model(options, recipe, read_coco(renamed))
    source = load_model(weights).state_dict()
    for name, tensor in model.state_dict().items():
        if name.startswith("head.logits."):
            assert len(tensor) == 2  # made anew for the new classes
        else:
            assert torch.equal(tensor, source[name]), name
    other = replace(recipe, model=replace(recipe.model, channels=32))
    with pytest.raises(
        ValueError, match=r"--init has another network than the recipe: model\.channels differ"
    ):
        module.make_model(options, other, read_coco(renamed))


def test_a_codec_of_its_own_makes_the_codes_of_an_initial_model_anew(
    finished_run: Path, drawn_data: DrawnData, tmp_path: Path
) -> None:
    from meinst.codecs import load_codec
    from meinst.engine.codec_fit import fit_codec
    from meinst.engine.config import CodecOptions
    from meinst.engine.start import find_recipe, make_model

    weights = str(finished_run / "best.safetensors")
    fitted = fit_codec(drawn_data.annotations, CodecOptions(n_components=3, mask_size=14))
    fitted.save(tmp_path / "three.npz")
    options = replace(
        make_options(drawn_data, Path(), tmp_path / "out"),
        init=weights,
        recipe=None,
        codec=tmp_path / "three.npz",
    )
    recipe = find_recipe(options)
    model = make_model(options, recipe, read_coco(drawn_data.annotations))
    three = load_codec(tmp_path / "three.npz")
    assert all(torch.equal(a, three.state_dict()[n]) for n, a in model.codec.state_dict().items())
    source = load_model(weights).state_dict()
    anew = {n for n, a in model.state_dict().items() if not torch.equal(a, source[n])}
    assert {n for n in anew if not n.startswith("codec.")} == {
        "head.codes.weight",
        "head.codes.bias",
    }
