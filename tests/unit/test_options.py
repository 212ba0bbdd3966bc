from meinst.options import FileError, one_line


def test_messages_are_one_printable_line() -> None:
    assert str(FileError("a.json: 'x\n\ty\x1b[31m'")) == r"a.json: 'x y\x1b[31m'"
    assert str(FileError("a  b.json is bad")) == "a  b.json is bad"
    assert str(FileError("")) == ""


def test_long_messages_keep_file_and_remedy() -> None:
    text = one_line("a.json: " + "9" * 5000 + ": restore it.", 100)
    assert len(text) == 100
    assert text.startswith("a.json: 9")
    assert text.endswith("9: restore it.")
    assert one_line("x" * 100, 100) == "x" * 100
