from pathlib import Path

import numpy as np
import pytest
import torch

from meinst.codecs import PCACodec
from meinst.data import mask_stream
from meinst.data.coco import read_coco
from meinst.engine.codec_fit import fit_codec
from meinst.engine.config import CodecOptions

OPTIONS = CodecOptions(n_components=2, mask_size=8)


def test_equals_a_codec_fitted_on_all_masks_at_once(
    drawn_data, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_coco(drawn_data.annotations)
    masks = [one.select(np.flatnonzero(~one.crowd)).masks(8) for one in data.instances]
    wanted = PCACodec(2, 8).fit(torch.from_numpy(np.concatenate(masks)))
    for chunk in (2, 4096):  # in small chunks or in one: the same bits
        monkeypatch.setattr(mask_stream, "_BATCH", chunk)
        codec = fit_codec(drawn_data.annotations, OPTIONS)
        for name, tensor in wanted.state_dict().items():
            assert torch.equal(codec.state_dict()[name], tensor)


def test_options_reach_the_codec(drawn_data) -> None:
    options = CodecOptions(n_components=2, mask_size=6, sigmoid=False, whiten=False)
    codec = fit_codec(drawn_data.annotations, options)
    assert codec.get_config() == {
        "kind": "pca",
        "n_components": 2,
        "mask_size": 6,
        "sigmoid": False,
        "whiten": False,
    }


def test_without_masks_the_error_names_the_file(drawn_data, tmp_path: Path) -> None:
    import json

    content = drawn_data.content() | {"annotations": []}
    path = tmp_path / "none.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"none\.json: no codec can be fitted"):
        fit_codec(path, OPTIONS)
