"""`meinst train --init` and `--codec`: what a new model reuses from an older one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from short_training import WARNINGS, make_options, with_values

from meinst.data.coco import read_coco
from meinst.models.checkpoint import load_model, read_info
from meinst.models.recipe import load_recipe

if TYPE_CHECKING:
    from conftest import SyntheticData

pytest.importorskip("lightning")

pytestmark = WARNINGS


def test_saved_recipe_describes_the_codec_of_the_initial_model(
    finished_run: Path,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from meinst.training.train import train

    values = {"codec.kind": "dct", "codec.n_components": 9, "schedule.iterations": 1}
    init = str(finished_run / "best.safetensors")
    options = replace(
        make_options(synthetic_data, tmp_path / "out", with_values(values)), random_backbone=False
    )
    info = read_info(train(replace(options, init=init)))
    assert "pca, 4 components, 14 x 14 masks" in caplog.text
    assert f"--init {init}" in caplog.text
    assert (info.recipe.codec.kind, info.recipe.codec.n_components) == ("pca", 4)
    assert load_recipe(tmp_path / "out" / "recipe.yaml").codec == info.recipe.codec


def test_initial_model_gives_all_weights_but_the_logits_of_new_classes(
    finished_run: Path,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from meinst.training import initialize as module

    content = synthetic_data.content()
    content["categories"] = [{"id": 3, "name": "round"}, {"id": 7, "name": "box"}]
    renamed = tmp_path / "renamed.json"
    renamed.write_text(json.dumps(content))
    weights = str(finished_run / "best.safetensors")
    options = replace(
        make_options(synthetic_data, tmp_path / "out", None),
        train_annotations=renamed,
        init=weights,
    )

    recipe = module.find_recipe(options)
    assert recipe.schedule.iterations == 8
    assert recipe.selection.score_threshold is None  # tuned on the new data
    caplog.set_level("INFO", "meinst")
    model = module.make_model(options, recipe, read_coco(renamed))
    assert "head.logits. (but for box)" in caplog.text
    source = load_model(weights).state_dict()
    for name, tensor in model.state_dict().items():
        if name.startswith("head.logits."):
            assert len(tensor) == 2
            assert torch.equal(tensor[1], source[name][1])  # "box" is known by name
            assert not torch.equal(tensor[0], source[name][0])  # "disc" is not called "round"
        else:
            assert torch.equal(tensor, source[name]), name
    other = replace(recipe, model=replace(recipe.model, channels=32))
    with pytest.raises(ValueError, match=r"model\.channels"):
        module.make_model(options, other, read_coco(renamed))


def test_another_codec_reinitialises_the_codes_of_the_initial_model(
    finished_run: Path, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    from meinst.codec_tools.fit import fit_codec
    from meinst.codecs import load_codec
    from meinst.codecs.options import CodecOptions
    from meinst.training.initialize import find_recipe, make_model

    weights = str(finished_run / "best.safetensors")
    fitted = fit_codec(synthetic_data.annotations, CodecOptions(n_components=3, mask_size=14))
    fitted.save(tmp_path / "three.npz")
    options = replace(
        make_options(synthetic_data, tmp_path / "out", None),
        init=weights,
        codec=tmp_path / "three.npz",
    )
    recipe = find_recipe(options)
    model = make_model(options, recipe, read_coco(synthetic_data.annotations))
    three = load_codec(tmp_path / "three.npz")
    assert all(torch.equal(a, three.state_dict()[n]) for n, a in model.codec.state_dict().items())
    source = load_model(weights).state_dict()
    new = {n for n, a in model.state_dict().items() if not torch.equal(a, source[n])}
    assert {n for n in new if not n.startswith("codec.")} == {
        "head.codes.weight",
        "head.codes.bias",
    }
