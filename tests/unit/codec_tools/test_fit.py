from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from synthetic_masks import SmallAutoencoder
from torch import Tensor

from meinst.codec_tools import mask_batches
from meinst.codec_tools.count import count_masks
from meinst.codec_tools.fit import (
    fit_codec,
    fit_codec_with_details,
    fit_from_moments,
    load_and_merge,
)
from meinst.codec_tools.sample import sample_masks
from meinst.codecs import ClassMoments, DCTCodec, GridCodec, Moments, PCACodec, load_moments
from meinst.codecs.options import CodecOptions
from meinst.codecs.registry import CODECS
from meinst.data import mask_stream
from meinst.data.coco import AnnotationError, read_coco
from meinst.data.mask_stream import MaskFilter

if TYPE_CHECKING:
    from conftest import SyntheticData

OPTIONS = CodecOptions(n_components=2, mask_size=8)


def bars(count: int = 64, names: tuple[str, ...] = ("a", "b"), seed: int = 0) -> dict[str, Any]:
    """A document of bars in boxes of 8 x 8, no two of the first 64 alike, of random categories."""
    rng = np.random.default_rng(seed)
    annotations = []
    for n in range(count):
        w, h = n % 8 + 1, n // 8 % 8 + 1
        annotations.append(
            {
                "id": n,
                "image_id": 1,
                "category_id": 10 + int(rng.integers(len(names))),
                "bbox": [0, 0, 8, 8],
                "segmentation": [[0, 0, w, 0, w, h, 0, h]],
            }
        )
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 20}],
        "categories": [{"id": 10 + n, "name": name} for n, name in enumerate(names)],
        "annotations": annotations,
    }


def written(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


def masks_of(path: Path) -> tuple[Tensor, list[str]]:
    """All masks of a file that are not crowds, and the names of their classes."""
    data = read_coco(path)
    masks, names = [], []
    for instances in data.instances:
        keep = np.flatnonzero(~instances.crowd)
        masks.append(instances.select(keep).masks(8))
        names += [data.class_names[label] for label in instances.labels[keep]]
    return torch.from_numpy(np.concatenate(masks)), names


def same_sums(left: Moments, right: Moments) -> bool:
    return left.count == right.count and torch.equal(left.products, right.products)


@pytest.fixture
def shards(tmp_path: Path, synthetic_data: SyntheticData) -> list[Path]:
    """Three files, whose categories differ in names, ids and order."""
    return [
        written(tmp_path / "first.json", bars(50, ("disc", "rod", "box"))),
        synthetic_data.annotations,
        written(tmp_path / "last.json", bars(30, ("star", "disc"), seed=1)),
    ]


# Fits


def test_file_equals_fit_on_all_masks(
    synthetic_data: SyntheticData, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, _ = masks_of(synthetic_data.annotations)
    expected = PCACodec(2, 8).fit(masks)
    for chunk in (2, 4096):  # in small chunks or in one: the same bits
        monkeypatch.setattr(mask_stream, "_BATCH", chunk)
        codec = fit_codec(synthetic_data.annotations, OPTIONS)
        for name, tensor in expected.state_dict().items():
            assert torch.equal(codec.state_dict()[name], tensor)


@pytest.mark.filterwarnings("ignore:1 of 3 classes have no masks")
@pytest.mark.parametrize(
    "options",
    [
        CodecOptions("pca", 2, 8),
        CodecOptions("pca", 2, 8, sigmoid=False, whiten=False),
        CodecOptions("pca", 2, 8, per_class=True),
        CodecOptions("dct", 4, 8),
        CodecOptions("grid", 4, 8),
    ],
)
def test_annotations_in_memory_equal_their_file_bit_for_bit(
    options: CodecOptions, synthetic_data: SyntheticData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_batches, "_BATCH", 4)  # several batches of several images
    data = read_coco(synthetic_data.annotations)
    for mask_filter in (None, MaskFilter(exclude_crowd=False), MaskFilter(min_size=30)):
        from_file, from_data = (
            fit_codec(source, options, mask_filter=mask_filter)
            for source in (str(synthetic_data.annotations), data)
        )
        assert from_data.get_config() == from_file.get_config()
        for name, tensor in from_file.state_dict().items():
            assert torch.equal(from_data.state_dict()[name], tensor), name


def test_several_files_and_annotations_in_memory(shards: list[Path]) -> None:
    options = CodecOptions("pca", 6, 8, per_class=True)
    codec = fit_codec(shards, options)
    assert codec.class_names == ("box", "disc", "rod", "star")
    mixed = fit_codec([read_coco(shards[2]), str(shards[0]), shards[1]], options, workers=2)
    for name, tensor in codec.state_dict().items():
        assert torch.equal(mixed.state_dict()[name], tensor), name


def test_details_of_a_fit(shards: list[Path], tmp_path: Path) -> None:
    reports: list[Path] = []
    path = tmp_path / "all.moments"
    fit = fit_codec_with_details(
        shards, OPTIONS, moments_path=path, on_report=lambda path, _: reports.append(path)
    )
    assert fit is not None
    assert fit.n_masks == 89
    assert reports == shards
    moments = load_moments(path)
    assert moments.count == 89
    merged = fit_from_moments(load_and_merge([path]), OPTIONS)
    assert torch.equal(merged.components_, fit.codec.state_dict()["components_"])
    for kind in ("grid", "autoencoder"):
        with pytest.raises(ValueError, match=rf"all\.moments: .* {kind}"):
            fit_codec_with_details(shards, CodecOptions(kind, 4, 8), moments_path=path)
    with pytest.raises(ValueError, match="grid"):
        fit_from_moments(moments, CodecOptions("grid", 4, 8))


def test_codec_has_the_options(synthetic_data: SyntheticData) -> None:
    options = CodecOptions(n_components=2, mask_size=6, sigmoid=False, whiten=False)
    codec = fit_codec(synthetic_data.annotations, options)
    assert codec.get_config() == {
        "kind": "pca",
        "n_components": 2,
        "mask_size": 6,
        "sigmoid": False,
        "whiten": False,
    }


def test_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "bars.json", bars())
    masks, _ = masks_of(path)
    monkeypatch.setitem(CODECS, "autoencoder", SmallAutoencoder)
    expected = {
        "dct": DCTCodec(4, 8, whiten=True).fit(masks),
        "grid": GridCodec(4, 8),
        "autoencoder": SmallAutoencoder.from_options(CodecOptions("autoencoder", 4, 8, seed=5)).fit(
            masks
        ),
    }
    for kind, codec in expected.items():
        options = CodecOptions(kind=kind, n_components=4, mask_size=8, seed=5)
        found = fit_codec(path, options)
        assert found.get_config() == codec.get_config()
        assert found.fitted
        assert torch.equal(found.transform(masks), codec.transform(masks))


def test_per_class_equals_a_fit_with_labels(synthetic_data: SyntheticData) -> None:
    options = CodecOptions(n_components=2, mask_size=8, per_class=True, shrinkage=7)
    with pytest.warns(UserWarning, match="1 of 3 classes have no masks and get .*: star"):
        codec = fit_codec(synthetic_data.annotations, options)
    assert codec.class_names == ("disc", "box", "star")
    masks, names = masks_of(synthetic_data.annotations)
    labels = torch.tensor([codec.class_names.index(name) for name in names])
    expected = PCACodec(2, 8, class_names=codec.class_names, shrinkage=7)
    with pytest.warns(UserWarning, match="star"):
        expected.fit(masks, labels)
    assert codec.get_config() == expected.get_config()
    assert torch.equal(
        codec.transform(masks, labels=labels), expected.transform(masks, labels=labels)
    )


@pytest.mark.parametrize("kind", ["pca", "dct", "autoencoder"])
@pytest.mark.parametrize("count", [0, 1])
def test_with_too_few_masks_the_error_names_the_file(kind: str, count: int, tmp_path: Path) -> None:
    path = written(tmp_path / "few.json", bars(count))
    options = CodecOptions(kind=kind, n_components=2, mask_size=8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"few\.json: cannot fit a codec: .* got {count}"):
        fit_codec(path, options)


def test_rejects_impossible_options_before_reading_files(tmp_path: Path) -> None:
    none = tmp_path / "none.json"
    with pytest.raises(ValueError, match=r"between 1 and mask_size squared \(64\), got 65"):
        fit_codec(none, CodecOptions(n_components=65, mask_size=8))
    with pytest.raises(ValueError, match="got 60; use 49"):
        fit_codec(none, CodecOptions(kind="grid"))
    with pytest.raises(ValueError, match=r"shrinkage .* -1"):
        fit_codec(none, CodecOptions(per_class=True, shrinkage=-1))
    with pytest.raises(ValueError, match=r"per_class.* pca, got dct"):
        CodecOptions(kind="dct", per_class=True)
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        fit_codec(none, OPTIONS)


# Sums


def test_rejects_no_files_and_counts_no_masks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got none"):
        count_masks([], [8])
    with pytest.raises(ValueError, match="got none"):
        fit_codec([])
    steps: list[int] = []
    counts = count_masks([written(tmp_path / "a.json", bars(0))], [8], on_masks=steps.append)
    assert counts.moments[8].count == 0
    assert sum(steps) == 0
    assert [str(report) for report in counts.reports] == [""]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("per_class", [False, True])
def test_any_order_and_number_of_workers_give_the_same_sums(
    workers: int, per_class: bool, shards: list[Path]
) -> None:
    steps: list[int] = []
    counts = count_masks(
        shards, [8, 5], per_class=per_class, workers=workers, on_masks=steps.append
    )
    backwards = count_masks(shards[::-1], [8, 5], per_class=per_class)
    for size in (8, 5):
        sums, reversed_sums = counts.moments[size], backwards.moments[size]
        assert sums.count == 89
        assert same_sums(sums.pooled(), reversed_sums.pooled())
    assert sum(steps) == 89
    assert len(counts.reports) == 3
    # By brute force: every mask of every file.
    found = [masks_of(path) for path in shards]
    masks = torch.cat([one for one, _ in found])
    names = np.array([name for _, each in found for name in each])
    assert same_sums(counts.moments[8].pooled(), Moments(8).add(masks))
    if per_class:
        for sums in (counts.moments[8], backwards.moments[8]):
            assert isinstance(sums, ClassMoments)
            assert sums.class_names == ("box", "disc", "rod", "star")  # of all files
            for name, one in zip(sums.class_names, sums.classes, strict=True):
                assert one is not None
                assert same_sums(one, Moments(8).add(masks[names == name])), name


def test_small_files_go_to_different_shares(shards: list[Path]) -> None:
    each = [count_masks(shards[:2], [8], share=(k, 2)).moments[8].count for k in range(2)]
    assert each == [count_masks([path], [8]).moments[8].count for path in shards[:2]]


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("shares", [2, 3, 9])
def test_shares_add_up(
    shares: int, per_class: bool, shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_stream, "_BATCH", 7)
    whole = count_masks(shards, [8], per_class=per_class).moments[8]
    parts = [
        count_masks(shards, [8], per_class=per_class, share=(k, shares)).moments[8]
        for k in range(shares)
    ]
    assert max(part.count for part in parts) < whole.count
    merged = parts.pop()
    for part in parts:
        merged.merge(part)  # type: ignore[arg-type]
    assert same_sums(merged.pooled(), whole.pooled())
    if isinstance(whole, ClassMoments):
        assert isinstance(merged, ClassMoments)
        assert merged.class_names == whole.class_names
        for sums, expected in zip(merged.classes, whole.classes, strict=True):
            assert sums is not None
            assert expected is not None
            assert same_sums(sums, expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_filter_and_reports(workers: int, synthetic_data: SyntheticData, tmp_path: Path) -> None:
    content = synthetic_data.content()
    content["annotations"][2]["segmentation"] = []
    broken = written(tmp_path / "broken.json", content)
    paths = [synthetic_data.annotations, broken]

    def count(mask_filter: MaskFilter | None) -> int:
        return count_masks(paths, [8], mask_filter, workers=workers).moments[8].count

    assert count(None) == 9 + 8
    assert count(MaskFilter(exclude_crowd=False)) == 10 + 9
    assert count(MaskFilter(min_size=30)) < 17
    counts = count_masks(paths, [8], workers=workers)
    texts = [str(report) for report in counts.reports]
    crowd = "note: 1 x crowd region, not used as an instance (annotation 5)"
    assert texts == [crowd, f"dropped: 1 x no mask (annotation 3)\n{crowd}"]


@pytest.mark.parametrize("workers", [1, 2])
def test_faulty_file_raises(workers: int, synthetic_data: SyntheticData, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": []}')
    with pytest.raises(AnnotationError, match=r"broken\.json is not in COCO format") as caught:
        count_masks([synthetic_data.annotations, broken], [8], workers=workers)
    assert caught.value.faults == ("annotations is missing", "categories is missing")
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        count_masks([synthetic_data.annotations, tmp_path / "none.json"], [8], workers=workers)


# Samples


def test_sample_of_no_masks(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", bars(0))
    assert sample_masks([path], 8, 5, 0).shape == (0, 8, 8)


def test_sample_contains_all_masks_if_they_fit(shards: list[Path]) -> None:
    steps: list[int] = []
    masks = sample_masks(shards, 8, 89, 0, on_masks=steps.append)
    assert torch.equal(masks, torch.cat([masks_of(path)[0] for path in shards]))
    assert torch.equal(masks, sample_masks(shards, 8, 10_000, 1))
    assert sum(steps) == 89
    mask_filter = MaskFilter(exclude_crowd=False)
    assert len(sample_masks(shards, 8, 1000, 0, mask_filter)) == 90


@pytest.mark.parametrize("limit", [1, 10, 63])
def test_sample_contains_different_masks_of_the_files(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_stream, "_BATCH", 7)
    path = written(tmp_path / "a.json", bars())
    known = {mask.numpy().tobytes() for mask in masks_of(path)[0]}
    assert len(known) == 64
    masks = sample_masks([path], 8, limit, 0)
    assert masks.shape == (limit, 8, 8)
    found = {mask.numpy().tobytes() for mask in masks}
    assert len(found) == limit
    assert found < known
    assert torch.equal(masks, sample_masks([path], 8, limit, 0))
    assert not torch.equal(masks, sample_masks([path], 8, limit, 1))


def test_sample_is_uniform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 16 of 64 masks, 500 times: each is taken 125 times on average, with a deviation of
    # sqrt(500 * 1/4 * 3/4) = 9.7. The batches end within and beyond the first 16.
    monkeypatch.setattr(mask_stream, "_BATCH", 10)
    documents = [bars(), bars()]
    documents[0]["annotations"] = documents[0]["annotations"][:40]
    documents[1]["annotations"] = documents[1]["annotations"][40:]
    paths = [written(tmp_path / f"{n}.json", one) for n, one in enumerate(documents)]
    taken: dict[bytes, int] = {}
    for seed in range(500):
        for mask in sample_masks(paths, 8, 16, seed):
            key = mask.numpy().tobytes()
            taken[key] = taken.get(key, 0) + 1
    assert len(taken) == 64
    assert 125 - 45 < min(taken.values()) < max(taken.values()) < 125 + 45
