"""`meinst predict` on videos: annotated video with sound, tracks, COCO results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from videos import RATE, write_video

from meinst import Detections
from meinst.cli.main import main
from meinst.detector.meinst import MEInst
from meinst.images.video import FrameRange, VideoError, VideoReader
from meinst.inference.predict_video import expected_frames, predict_video

av = pytest.importorskip("av")
pytest.importorskip("trackers")

FILES = ["clip.images.json", "clip.json", "clip.mp4", "clip.txt"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_results_are_those_of_the_frames(tiny_model: MEInst, tmp_path: Path) -> None:
    clip, output = write_video(tmp_path / "clip.mkv", 8, lossless=True), tmp_path / "out"
    selection = tiny_model.selection.override(0.6, 5)
    summary = predict_video(tiny_model, clip, output, selection=selection, tracking=False)
    assert names(output) == FILES
    expected = []
    with VideoReader(clip) as video:
        for number, frame in enumerate(video.read(), 1):
            found = tiny_model.predict(frame.pixels, score_threshold=0.6, max_detections=5)
            expected += found.to_coco(number)
    assert expected
    results = json.loads((output / "clip.json").read_text())
    assert results == json.loads(json.dumps(expected))
    assert (summary.frames, summary.detections, summary.broken) == (8, len(expected), None)
    assert (output / "clip.txt").read_text() == ""  # no tracks
    coco = COCO(str(output / "clip.images.json"))
    assert len(coco.loadRes(str(output / "clip.json")).getAnnIds()) == len(expected)
    assert [coco.imgs[n]["frame"] for n in range(1, 9)] == list(range(8))


def test_video_has_the_times_and_the_sound_of_its_source(
    tiny_model: MEInst, tmp_path: Path
) -> None:
    clip, output = write_video(tmp_path / "clip.mp4", 50), tmp_path / "out"
    predict_video(tiny_model, clip, output)
    with av.open(str(output / "clip.mp4")) as made, av.open(str(clip)) as source:
        assert made.streams.video[0].average_rate == RATE
        times = [frame.time for frame in made.decode(video=0)]
        assert times == pytest.approx([n / RATE for n in range(50)], abs=1e-3)
        made.seek(0)
        sounds = [
            np.concatenate([frame.to_ndarray() for frame in each.decode(audio=0)], axis=1)
            for each in (made, source)
        ]
    shorter = min(sound.shape[1] for sound in sounds)
    assert shorter > 1.9 * 44100
    np.testing.assert_array_equal(sounds[0][:, :shorter], sounds[1][:, :shorter])


def test_sound_of_a_broadcast_starts_with_its_first_frame(
    tiny_model: MEInst, tmp_path: Path
) -> None:
    """Times in MPEG transport streams do not begin at 0."""
    clip, output = write_video(tmp_path / "clip.ts", 50, start=7), tmp_path / "out"
    with av.open(str(clip)) as source:
        stream = source.streams.video[0]
        assert stream.start_time * stream.time_base > 6
    predict_video(tiny_model, clip, output)
    with av.open(str(output / "clip.mp4")) as made:
        times = [frame.time for frame in made.decode(video=0)]
        made.seek(0)
        sound = [frame.time for frame in made.decode(audio=0)]
    assert times[0] == pytest.approx(0, abs=1e-3)
    assert sound[0] == pytest.approx(0, abs=0.05)
    assert sound[-1] == pytest.approx(2, abs=0.1)


def test_videos_of_the_same_name_are_rejected(
    tiny_model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_video(tmp_path / "clip.mp4", 2, sound=False)
    second = write_video(tmp_path / "clip.mkv", 2, sound=False)
    output = tmp_path / "out"
    arguments = ["--model", str(tiny_model_file), "--output", str(output)]
    assert main(["predict", str(first), str(second), *arguments]) == 2
    assert f"would both be written to {output / 'clip.mp4'}" in capsys.readouterr().err
    assert not output.exists()


def test_part_of_a_video(tiny_model: MEInst, tmp_path: Path) -> None:
    clip, output = write_video(tmp_path / "clip.mp4", 50), tmp_path / "out"
    summary = predict_video(tiny_model, clip, output, frames=FrameRange(5, 0.4, 1.6))
    assert summary.frames == 6
    images = json.loads((output / "clip.images.json").read_text())["images"]
    assert [image["frame"] for image in images] == [10, 15, 20, 25, 30, 35]
    with av.open(str(output / "clip.mp4")) as made:
        times = [frame.time for frame in made.decode(video=0)]
        made.seek(0)
        sound = [frame.time for frame in made.decode(audio=0)]
    assert times == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0], abs=1e-3)
    assert 0 <= sound[0] < 0.05
    assert 1.1 < sound[-1] < 1.25


@pytest.mark.parametrize(
    "chosen", [FrameRange(), FrameRange(3), FrameRange(2, 0.4, 1.3), FrameRange(start=1.5)]
)
def test_expected_number_of_frames(tmp_path: Path, chosen: FrameRange) -> None:
    clip = write_video(tmp_path / "clip.mp4", 50, sound=False)
    with VideoReader(clip) as video:
        count = len(list(video.read(chosen)))
    assert abs((expected_frames(clip, chosen) or 0) - count) <= 1
    assert expected_frames("rtsp://nowhere/live", chosen) is None


def test_tracks_are_written_as_mot_text(tiny_model: MEInst, tmp_path: Path) -> None:
    clip, output = write_video(tmp_path / "clip.mp4", 12, sound=False), tmp_path / "out"
    selection = tiny_model.selection.override(0.6, 5)
    summary = predict_video(tiny_model, clip, output, selection=selection)
    results = json.loads((output / "clip.json").read_text())
    tracked = [result for result in results if result["track_id"] > 0]
    rows = [line.split(",") for line in (output / "clip.txt").read_text().splitlines()]
    assert len(rows) == len(tracked) > 0
    for row, result in zip(rows, tracked, strict=True):
        assert [int(row[0]), int(row[1])] == [result["image_id"], result["track_id"]]
        assert [float(value) for value in row[2:6]] == pytest.approx(result["bbox"], abs=0.006)
        assert row[7:] == ["-1", "-1", "-1"]
    assert summary.tracks == len({row[1] for row in rows})
    for number in range(1, 13):  # a track has one object in a frame
        seen = [row[1] for row in rows if row[0] == str(number)]
        assert len(seen) == len(set(seen))


def test_odd_sides(tiny_model: MEInst, tmp_path: Path) -> None:
    """Encoders need even sides: the last row and column are repeated."""
    clip = write_video(tmp_path / "clip.mkv", 3, size=(95, 127), sound=False, lossless=True)
    predict_video(tiny_model, clip, tmp_path / "out")
    with av.open(str(tmp_path / "out" / "clip.mp4")) as made:
        assert {(frame.height, frame.width) for frame in made.decode(video=0)} == {(96, 128)}
    images = json.loads((tmp_path / "out" / "clip.images.json").read_text())["images"]
    assert (images[0]["height"], images[0]["width"]) == (95, 127)


def test_cut_video_is_kept_with_a_warning(
    tiny_model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_video(tmp_path / "whole.ts", 40, sound=False).read_bytes()
    clip = tmp_path / "clip.ts"
    clip.write_bytes(whole[: len(whole) // 2] + bytes(1000))
    output = tmp_path / "out"
    arguments = ["predict", str(clip), "--model", str(tiny_model_file), "--output", str(output)]
    code = main(arguments)
    text = capsys.readouterr()
    assert code in (0, 1)
    assert names(output) == FILES
    assert "frames/s) -> " in text.out
    with av.open(str(output / "clip.mp4")) as made:
        assert 5 < len(list(made.decode(video=0))) < 40


def test_frames_before_a_change_of_size_are_kept(tiny_model: MEInst, tmp_path: Path) -> None:
    first = write_video(tmp_path / "a.ts", 5, sound=False)
    second = write_video(tmp_path / "b.ts", 5, size=(64, 80), sound=False)
    clip, output = tmp_path / "clip.ts", tmp_path / "out"
    clip.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(VideoError, match="split the video there"):
        predict_video(tiny_model, clip, output)
    assert names(output) == FILES
    assert len(json.loads((output / "clip.images.json").read_text())["images"]) >= 4


def test_ctrl_c_ends_the_video_at_the_current_frame(tiny_model: MEInst, tmp_path: Path) -> None:
    clip, output = write_video(tmp_path / "clip.mp4", 30), tmp_path / "out"

    done = []

    def stop() -> None:
        done.append(1)
        if len(done) == 7:
            raise KeyboardInterrupt

    summary = predict_video(tiny_model, clip, output, on_frame=stop)
    assert summary.frames == 7
    assert names(output) == FILES
    with av.open(str(output / "clip.mp4")) as made:
        assert len(list(made.decode(video=0))) == 7


def test_nothing_is_left_of_a_video_that_cannot_be_read(
    tiny_model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, output = tmp_path / "clip.mp4", tmp_path / "out"
    clip.write_text("no video")
    good = write_video(tmp_path / "good.mp4", 3, sound=False)
    arguments = ["--model", str(tiny_model_file), "--output", str(output)]
    assert main(["predict", str(clip), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {clip} cannot be opened as a video: ")
    assert error.count("\n") == 1
    assert not output.exists()
    assert main(["predict", str(clip), str(good), *arguments]) == 1
    assert "good.mp4" in names(output)
    assert main(["predict", "73", *arguments]) == 2
    assert "error: There is no camera 73" in capsys.readouterr().err


def test_images_and_videos_together(tiny_model_file: Path, tmp_path: Path) -> None:
    from PIL import Image

    clip = write_video(tmp_path / "clip.mp4", 3, sound=False)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    output = tmp_path / "out"
    arguments = ["--model", str(tiny_model_file), "--output", str(output)]
    assert main(["predict", str(tmp_path / "a.png"), str(clip), *arguments]) == 0
    assert names(output) == sorted(["a.jpg", "images.json", "predictions.json", *FILES])


def test_source_is_not_overwritten(tiny_model: MEInst, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", 3)
    content = clip.read_bytes()
    with pytest.raises(FileExistsError, match=r"clip\.mp4 would be overwritten"):
        predict_video(tiny_model, clip, tmp_path)
    assert clip.read_bytes() == content


def test_chosen_formats(
    tiny_model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    clip, output = write_video(tmp_path / "clip.mkv", 6, lossless=True), tmp_path / "out"
    arguments = ["predict", str(clip), "--model", str(tiny_model_file), "--output", str(output)]
    assert main([*arguments, "--save", "parquet,coco"]) == 0
    assert names(output) == ["clip.images.json", "clip.json", "clip.parquet"]
    results = json.loads((output / "clip.json").read_text())
    with Detections.from_parquet(output / "clip.parquet") as stored:
        assert list(stored) == [1, 2, 3, 4, 5, 6]
        found = [entry for number in stored for entry in stored[number].to_coco(number)]
        assert stored.file(2) == str(clip)
    assert found == results
    assert max(entry["track_id"] for entry in results) > 0
    assert main([*arguments, "--save", "geojson"]) == 2
    message = "--save: the formats of videos are overlay, mot, coco, parquet; got 'geojson'"
    assert message in capsys.readouterr().err
    assert names(output) == ["clip.images.json", "clip.json", "clip.parquet"]


def test_nothing_is_written_if_stopped_before_the_first_frame(
    tiny_model: MEInst, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, output = write_video(tmp_path / "clip.mkv", 3, sound=False), tmp_path / "out"
    output.mkdir()
    (output / "clip.json").write_text("of an earlier run")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny_model, "predict_batch", stop)
    with pytest.raises(VideoError, match=r"clip\.mkv: stopped before the first frame"):
        predict_video(tiny_model, clip, output, formats="coco,overlay")
    assert names(output) == ["clip.json"]
    assert (output / "clip.json").read_text() == "of an earlier run"
