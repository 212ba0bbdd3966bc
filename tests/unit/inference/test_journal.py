from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from meinst.detector.meinst import MEInst
from meinst.detector.select import SelectOptions
from meinst.inference.journal import JOURNAL, Journal, Row, describe_run

HEADER = {"journal": 1, "images": 5, "score_threshold": 0.25}
ROWS = [
    Row({"id": 1, "file_name": "a", "low": 0.1 + 0.2}, detections=1),
    Row(None, "b is broken"),
    Row({"id": 3, "file_name": "ü"}),
]


def write(folder: Path, rows: list[Row] = ROWS) -> Path:
    journal = Journal(folder, HEADER, resume=False)
    for row in rows:
        journal.append(row)
    journal.close()
    return journal.path


def test_journal_without_rows_can_be_replaced_and_resumed(tmp_path: Path) -> None:
    assert write(tmp_path, []) == write(tmp_path, []) == tmp_path / JOURNAL
    journal = Journal(tmp_path, HEADER, resume=True)
    assert (journal.done, journal.failed, list(journal.rows())) == (0, 0, [])
    journal.close()


def test_rows_are_in_the_file_as_soon_as_they_are_appended(tmp_path: Path) -> None:
    journal = Journal(tmp_path, HEADER, resume=False)
    for number, row in enumerate(ROWS, 1):
        journal.append(row)
        assert journal.path.read_bytes().count(b"\n") == 1 + number
    assert list(journal.rows()) == ROWS
    assert (journal.done, journal.failed) == (3, 1)
    journal.close()


def test_resumed_journal_continues_after_the_last_row(tmp_path: Path) -> None:
    path = write(tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"continue it with --resume.*another --output"):
        Journal(tmp_path, HEADER, resume=False)
    journal = Journal(tmp_path, HEADER, resume=True)
    assert (journal.done, journal.failed) == (3, 1)
    journal.append(ROWS[0])
    journal.close()
    assert path.read_bytes() == before + json.dumps(asdict(ROWS[0])).encode() + b"\n"


@pytest.mark.parametrize("rest", [b'{"image": nul', b'{"image": null', b"\0" * 9, b"\0\n", b"[]\n"])
def test_torn_last_row_is_dropped(tmp_path: Path, rest: bytes) -> None:
    path = write(tmp_path)
    before = path.read_bytes()
    path.write_bytes(before + rest)
    journal = Journal(tmp_path, HEADER, resume=True)
    assert journal.done == 3
    assert list(journal.rows()) == ROWS
    journal.close()
    assert path.read_bytes() == before


def test_every_cut_leaves_whole_rows(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(ends[0], len(whole)):
        path.write_bytes(whole[:cut])
        journal = Journal(tmp_path, HEADER, resume=True)
        assert journal.done == sum(end <= cut for end in ends) - 1
        journal.close()


def test_resumed_run_starts_with_the_first_image_of_a_batch(tmp_path: Path) -> None:
    for rows, batch_size, done in ((3, 2, 2), (1, 2, 0), (2, 2, 2), (5, 2, 5), (3, 3, 3)):
        (tmp_path / JOURNAL).unlink(missing_ok=True)
        write(tmp_path, [ROWS[1]] * rows)
        journal = Journal(tmp_path, HEADER, resume=True, batch_size=batch_size)
        assert journal.done == journal.failed == len(list(journal.rows())) == done
        journal.close()


def test_other_options_are_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"score_threshold is 0\.5, but was 0\.25"):
        Journal(tmp_path, HEADER | {"score_threshold": 0.5}, resume=True)
    with pytest.raises(ValueError, match="the number of images is 6, but was 5"):
        Journal(tmp_path, HEADER | {"images": 6}, resume=True)
    assert path.read_bytes() == before


def test_without_a_run_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="start one without --resume"):
        Journal(tmp_path, HEADER, resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "diary\n", "{}\n", '{"a": 1}\n{"b": 2}\n'])
@pytest.mark.parametrize("resume", [False, True])
def test_other_files_of_this_name_are_kept(tmp_path: Path, content: str, resume: bool) -> None:
    (tmp_path / JOURNAL).write_text(content)
    with pytest.raises(FileExistsError, match="not written by"):
        Journal(tmp_path, HEADER, resume=resume)
    assert (tmp_path / JOURNAL).read_text() == content


def test_description_depends_on_everything_that_results_depend_on(tiny_model: MEInst) -> None:
    from conftest import make_tiny_model

    sources, names = [Path("a.png"), Path("b.png")], ["a.jpg", "b.jpg"]
    selection = SelectOptions()
    first = describe_run(tiny_model, selection, sources, names)
    assert json.loads(json.dumps(first)) == first
    assert describe_run(make_tiny_model(), selection, sources, names) == first

    def changed(*arguments: object) -> set[str]:
        other = describe_run(*arguments)  # type: ignore[arg-type]
        return {key for key in first if other[key] != first[key]}

    assert changed(make_tiny_model(seed=1), selection, sources, names) == {"model"}
    named = make_tiny_model(("box", "ball"))
    assert changed(named, selection, sources, names) == {"class_names"}
    other = replace(selection, max_detections=9, box_voting=True)
    assert changed(tiny_model, other, sources, names) == {"max_detections", "box_voting"}
    assert changed(tiny_model, selection, sources[::-1], names) == {"sources"}
    assert changed(tiny_model, selection, sources, ["a.jpg", "b_2.jpg"]) == {"overlays"}
