"""The corpus walk: what it takes, what it leaves out, and that it always ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.trainer.jobs.corpus import (
    BINARY,
    EMPTY,
    MAX_FILE_BYTES,
    NOT_UTF8,
    SNIFFED_BYTES,
    SPECIAL,
    SYMBOLIC_LINK,
    TOO_LARGE,
    CorpusError,
    find_source_files,
    require_source_files,
    why_not_text,
)


def write(root: Path, relative_path: str, content: bytes | str = "x = 1\n") -> Path:
    path = root / relative_path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def names(root: Path, **globs: list[str]) -> list[str]:
    return [file.relative_path for file in find_source_files(root, **globs).files]


def test_walk_is_sorted_and_leaves_hidden_folders_out(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", "a/b/c.md", ".git/config", "a/__pycache__/z.pyc", ".env"):
        write(tmp_path, name)
    assert names(tmp_path) == ["b.py", "a/z.py", "a/b/c.md"]


def test_include_matches_names_and_exclude_matches_paths(tmp_path: Path) -> None:
    for name in ("a.py", "a.txt", "lib/b.py", "test/c.py", "test/deep/d.py"):
        write(tmp_path, name)
    assert names(tmp_path, include_globs=["*.py"]) == ["a.py", "lib/b.py", "test/c.py",
                                                        "test/deep/d.py"]  # fmt: skip
    assert names(tmp_path, include_globs=["*.py"], exclude_globs=["test/*"]) == ["a.py", "lib/b.py"]
    assert names(tmp_path, exclude_globs=["test", "*.txt"]) == ["a.py", "lib/b.py"]
    assert names(tmp_path, exclude_globs=["test/*.txt"])[-1] == "test/deep/d.py"


def test_every_unfit_file_is_named_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path, "good.py")
    write(tmp_path, "binary.bin", b"\x7fELF\0\0")
    write(tmp_path, "latin.txt", "café".encode("latin-1"))
    write(tmp_path, "empty.py", b"")
    with write(tmp_path, "huge.txt").open("r+b") as huge:
        huge.truncate(MAX_FILE_BYTES + 1)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.py").symlink_to(tmp_path / "good.py")
    corpus = find_source_files(tmp_path)
    assert [file.relative_path for file in corpus.files] == ["good.py"]
    assert {entry.relative_path: entry.reason for entry in corpus.skipped} == {
        "binary.bin": BINARY, "latin.txt": NOT_UTF8, "empty.py": EMPTY, "huge.txt": TOO_LARGE,
        "pipe": SPECIAL, "link.py": SYMBOLIC_LINK,
    }  # fmt: skip


def test_link_loops_and_links_out_of_the_tree_are_not_followed(tmp_path: Path) -> None:
    outside = write(tmp_path, "outside/secret.py").parent
    root = write(tmp_path, "root/a.py").parent
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "out").symlink_to(outside, target_is_directory=True)
    assert names(root) == ["a.py"]


def test_root_may_be_a_link_or_a_single_file(tmp_path: Path) -> None:
    file = write(tmp_path, "root/a.py")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    assert find_source_files(tmp_path / "link").root == tmp_path / "root"
    assert [found.path for found in find_source_files(file).files] == [file]


def test_character_cut_by_the_sniffer_is_still_text(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "x" * (SNIFFED_BYTES - 1) + "é")
    assert names(tmp_path) == ["a.txt"]
    assert why_not_text("é".encode()[:1], is_whole=False) == ""
    assert why_not_text("é".encode()[:1], is_whole=True) == NOT_UTF8


@pytest.mark.parametrize("check", [find_source_files, require_source_files])
def test_bad_paths_say_what_is_wrong(tmp_path: Path, check) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path, "binary/a.bin", b"\0")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for name, expected in (
        ("missing", "does not exist"), ("nothing", "no text file"), ("binary", "1 binary"),
        ("loop", "cannot be opened"), ("pipe", "neither a folder nor a file"),
    ):  # fmt: skip
        with pytest.raises(CorpusError, match=expected) as raised:
            check(tmp_path / name)
        assert raised.value.fix


def test_submission_check_accepts_a_good_folder(tmp_path: Path) -> None:
    write(tmp_path, "a.py")
    require_source_files(tmp_path)
