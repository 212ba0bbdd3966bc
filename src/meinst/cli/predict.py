"""``meinst predict``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from meinst.cli.main import print_error
from meinst.cli.parser import parse_command
from meinst.options import printable

if TYPE_CHECKING:
    from meinst.detector.predictor import Predictor
    from meinst.images.notes import NoteSummary
    from meinst.images.search import FoundImages
    from meinst.images.sources import ImageSource
    from meinst.inference.predict import ImageResult, PredictionSummary

EXAMPLES = """
meinst predict holiday.jpg
meinst predict slides/ 'more/**/*.tif' --model nuclei --output found
meinst predict slide.svs --model nuclei --tile 512
meinst predict holiday.jpg --model runs/mine/best.safetensors --score-threshold 0.5
meinst predict stack.tif --model nuclei --frames all --channels 1 --save labels,csv
meinst predict clip.mp4 --every 2 --start 60 --end 90
meinst predict plates/ --recursive --model nuclei --save labels,csv
meinst predict s3://bucket/cells/ --model nuclei --save parquet
"""


@dataclass(frozen=True)
class PredictArguments:
    """Segment images and videos.

    By default, writes an overlay of each image (JPEG, named after the image) to the output folder,
    and for all images together predictions.json (COCO results, masks as RLE in the size of the
    original) and images.json (the file of each image_id and the class of each category_id). To load
    them with pycocotools: COCO("images.json").loadRes("predictions.json"), unless there are no
    detections. Other formats are chosen with --save. Overlays that earlier runs wrote there are
    skipped. If a file has several frames or channels, only the first is used, unless --frames or
    --channels chooses others. For slides and other large TIFF files, only the parts that are needed
    are read, and the overlay is a reduced copy. A run that ended early (killed, full disk)
    continues with --resume and ends with the same files. The exit code is 1 if an image or a part
    of one could not be read, or if a folder or pattern contains pictures or videos of kinds that
    cannot be read; they are counted in a warning.

    A video becomes an annotated video with its sound, tracks in MOT format (.txt), and COCO results
    with a track_id (.json, with the frames in .images.json). Ctrl-C ends it at the current frame.

    Attributes:
        sources: image files, folders (the images directly in them), quoted glob patterns, or
            addresses of the same that fsspec opens (s3://, gs://, https://, zip://); videos,
            addresses of streams (rtsp://...), or the number of a camera.
        model: a shipped model's name (see meinst models), a model file or an exported folder.
        output: folder for the results; created if it does not exist.
        save: what to write, separated by commas. For images: overlay (JPEG), coco
            (predictions.json, images.json), parquet (compact detections of all images), geojson
            (polygons for QuPath), labels (TIFF label images), ome-zarr (multiscale label images),
            yolo and labelme (labels to be corrected), imagej (ROIs), csv (measurements of all
            objects); by default overlay,coco. For videos: overlay (the annotated video), mot, coco,
            parquet; by default overlay,mot,coco.
        recursive: include the folders below the given ones.
        from_file: a text file with further sources, one a line; - reads them from the standard
            input. By default, all sources are arguments.
        score_threshold: smallest score of a detection, 0 to 1; by default the score that maximised
            F1 on the model's validation set.
        max_detections: limit of detections per image; by default the model's own, and none for
            images that are predicted in windows.
        intensity: for images of more than 8 bits, the values that become 0 and 255: percentile
            (percentiles 0.1 and 99.9 of the image), full (its smallest and greatest value) or
            LOW:HIGH (with = if negative: --intensity=-500:900); by default the model's own, which
            is percentile unless it was trained otherwise.
        channels: numbers, from 0, of the channels of microscopy images that become red, green and
            blue, such as 2,0,0, or of the one that becomes grey; by default the model's own.
        frames: of stacks (z), time series, multi-page files and animations, the frames that are
            used, each as an image of its own: all, a number from 0, or A:B for those from A up to
            but without B; by default only the first.
        tile: auto predicts those images in overlapping windows in which objects would be missed,
            because they are much larger than the network's input; off predicts each as a whole; a
            number is the side of the windows in pixels, for all images with a longer side.
        pixel_size: micrometres that a pixel of the network's input shows; images are resized to it
            by the pixel size in their file (OME-TIFF, resolution tags). By default the model's
            own, if it has one.
        batch_size: images per forward pass, where they have the same size, or windows; useful on
            GPUs.
        device: cpu, cuda or another torch device; auto uses a GPU if there is one.
        resume: continue the unfinished run in the output folder; the sources, the model and the
            options that affect the results must be the same. Videos start anew.
        every: of a video, predict one of this number of frames.
        start: of a video, time of the first frame, in seconds.
        end: of a video, time at which to stop, in seconds; by default its end.
        track: in a video, give the same object the same number in all frames.
    """

    sources: tuple[str, ...] = ()
    model: str = "photos"
    output: Path = Path("predictions")
    save: str | None = None
    recursive: bool = False
    from_file: str | None = None
    score_threshold: float | None = None
    max_detections: int | None = None
    intensity: str | None = None
    channels: str | None = None
    frames: str | None = None
    tile: str = "auto"
    pixel_size: float | None = None
    batch_size: int = 1
    device: str = "auto"
    resume: bool = False
    every: int = 1
    start: float = 0.0
    end: float | None = None
    track: bool = True


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_command(PredictArguments, arguments, "predict", EXAMPLES, ("sources",))

    from meinst.images.video import is_video

    sources = _sources(options)
    videos = [source for source in sources if is_video(source)]
    images = [source for source in sources if source not in videos]
    if videos:
        from meinst.cli.predict_video import predict_videos, video_formats

        video_formats(options)
    code = _predict_images(replace(options, sources=tuple(images))) if images else 0
    if not videos:
        return code
    failed = predict_videos(_load(options), videos, options)
    if failed == len(videos) and (code == 2 or not images):
        return 2
    return min(1, failed + code)


def _load(options: PredictArguments) -> Predictor:
    from meinst.cli.device import find_device
    from meinst.cli.memory import keep_for_reuse
    from meinst.cli.model_input import override_input
    from meinst.models.load import load

    keep_for_reuse()
    model = load(options.model).fuse().to(find_device(options.device))
    override_input(model, options.intensity, options.channels)
    return model


def _predict_images(options: PredictArguments) -> int:
    """Segment images; returns the exit code."""
    from meinst.cli.output import window_progress
    from meinst.detector.passes import TileOptions
    from meinst.images.notes import NoteSummary
    from meinst.images.search import search_images
    from meinst.inference.predict import predict_files
    from meinst.inference.results import RESULTS
    from meinst.inference.writers.formats import DEFAULT_FORMATS, parse_formats

    formats = parse_formats(options.save or DEFAULT_FORMATS, "--save: ")
    tiles = TileOptions.from_text(options.tile, options.pixel_size, options.max_detections)
    found = search_images(options.sources, recursive=options.recursive)
    sources = _without_overlays(found, options.output)
    model = _load(options)
    notes = NoteSummary()

    def report(result: ImageResult) -> None:
        print_result(result)
        notes.add(result.source, result.notes)

    with window_progress() as on_window:
        summary = predict_files(
            model,
            sources,
            options.output,
            selection=model.selection.override(options.score_threshold, options.max_detections),
            formats=formats,
            batch_size=options.batch_size,
            resume=options.resume,
            tiles=tiles,
            frames=options.frames,
            on_image=report,
            on_window=on_window,
        )
    results = options.output / (RESULTS if "coco" in formats else "")
    exit_code = _print_summary(summary, notes, results)
    return max(exit_code, int(bool(found.left_out)))


def _print_summary(summary: PredictionSummary, notes: NoteSummary, results: Path) -> int:
    """Print what was done and how images were used; returns the exit code."""
    done = summary.images - summary.failed
    if done:
        print(f"results of {done} of {summary.images} images: {results}")
    for line in notes.lines():
        print(line, file=sys.stderr)
    if not done:
        return 2
    return 1 if summary.failed or notes.damaged else 0


def _sources(options: PredictArguments) -> list[str]:
    """The sources on the command line and in the list.

    Raises:
        OSError: if the list cannot be read.
        ValueError: if there are none.
    """
    from meinst.images.search import read_list

    sources = list(options.sources or ())
    if options.from_file == "-":
        sources += read_list(sys.stdin)
    elif options.from_file is not None:
        path = Path(options.from_file)
        if not path.is_file():
            raise FileNotFoundError(f"--from-file {path} does not exist; give a text file, or -.")
        sources += read_list(os.fsdecode(path.read_bytes()).removeprefix("\ufeff").splitlines())
    if not sources:
        raise ValueError("missing arguments: SOURCES; see `meinst predict --help`")
    return sources


def _without_overlays(found: FoundImages, output: Path) -> list[ImageSource]:
    """The images that are not overlays of an earlier run; prints how many are, and were left out.

    Raises:
        ValueError: if all are.
    """
    from meinst.inference.results import without_overlays

    images = found.images
    sources = without_overlays(images, output)
    if not sources:
        raise ValueError(
            f"all images are overlays of an earlier run, such as {images[0]}; give the originals"
        )
    if len(sources) < len(images):
        skipped = len(images) - len(sources)
        print(f"skipped: {skipped} overlays of an earlier run in {output}")
    if found.left_out:
        print("warning:", found, file=sys.stderr)
    return sources


def print_result(result: ImageResult) -> None:
    """Print the summary line of an image, or why it failed."""
    if result.error is not None:
        print_error(result.error)
        return
    found = ", ".join(f"{count} {name}" for name, count in result.counts.items())
    time = f"{result.milliseconds:.0f} ms"
    target = f" -> {result.overlay}" if result.overlay is not None else ""
    line = f"{result.source}: {found or 'nothing found'} ({time}){target}"
    print(printable(line), flush=True)
