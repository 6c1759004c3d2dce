"""Files of other tools, before anybody knows which: what is none is refused in one line."""

import pytest

from loadtest.errors import UsageError
from loadtest.records.peers import result


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.fault("input", "`import` of a file that is damaged, or of no tool")
@pytest.mark.parametrize(
    "content",
    [b"", b"no JSON", b"\xff\xfe", b"[" * 100_000, b"{}\n{", b'{"a": ' + b"9" * 5000 + b"}", b"PK\x03\x04..."],
)
def test_what_is_no_json_is_refused_in_one_line(tmp_path, content):
    with pytest.raises(UsageError) as caught:
        result.open_file(write(tmp_path / "x.json", content))
    assert str(caught.value).startswith(f"{tmp_path / 'x.json'}")
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_and_absent_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="got a folder"):
        result.open_file(tmp_path)
    with pytest.raises(UsageError, match="got no file"):
        result.open_file(tmp_path / "absent.json")


def test_a_file_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(result, "LARGEST_BYTES", 10)
    with pytest.raises(UsageError, match="expected at most 10 bytes"):
        result.open_file(write(tmp_path / "x.json", b'{"a": "' + b"b" * 20 + b'"}'))


def test_documents_stand_alone_or_one_a_line(tmp_path):
    assert result.open_file(write(tmp_path / "one.json", b'{\n"a": NaN}')).documents[0].keys() == {"a"}
    two = result.open_file(write(tmp_path / "two.jsonl", b'{"a": 1}\n\n{"a": Infinity}\n'))
    assert [one["a"] for one in two.documents] == [1, float("inf")]
    with pytest.raises(UsageError, match=r"two.jsonl:2: expected JSON"):
        result.open_file(write(tmp_path / "two.jsonl", b'{"a": 1}\n{"a": \n'))
