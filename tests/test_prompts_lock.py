"""The lock: released versions never change, and the two commands that hold it."""

import shutil
from pathlib import Path

import pytest

from penstock.errors import ConfigurationError
from penstock.prompts import PromptLibrary
from penstock.prompts.__main__ import main

SHIPPED = Path(__file__).parents[1] / "prompts"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a copy of the shipped prompts with a fresh lock beside it."""
    shutil.copytree(SHIPPED, tmp_path / "prompts")
    assert run("lock", tmp_path / "prompts") == 0
    return tmp_path / "prompts"


def run(command: str, root: Path) -> int:
    return main([command, "--root", str(root), "--lock", str(lock_of(root))])


def lock_of(root: Path) -> Path:
    return root.parent / "prompts.lock"


def edit(root: Path) -> None:
    with (root / "classify_document/1.0.0/user.txt").open("a") as file:
        file.write("Be quick.\n")


def test_the_lock_has_one_sorted_line_a_version(root: Path) -> None:
    library = PromptLibrary.load(root)
    assert lock_of(root).read_text().splitlines()[1:] == [
        f'{prompt.reference.id}."{prompt.reference.version}" = "{prompt.reference.digest}"' for prompt in library
    ]


def test_check_agrees_with_a_fresh_lock(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("check", root) == 0
    assert capsys.readouterr() == ("7 prompt versions are as locked\n", "")


def test_check_names_every_version_that_differs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(root)
    shutil.copytree(root / "extract_metadata/1.0.0", root / "extract_metadata/1.0.1")
    shutil.rmtree(root / "summarise_document/1.0.0")
    capsys.readouterr()
    assert run("check", root) == 1
    lock = lock_of(root)
    assert capsys.readouterr().err.splitlines() == [
        f"{lock}, classify_document 1.0.0: differs from the lock; undo the change, and make a new version beside it",
        f"{lock}, extract_metadata 1.0.1: is not locked; run `python -m penstock.prompts lock`",
        f"{lock}, summarise_document 1.0.0: is locked, and its files are gone; restore them: old versions are kept",
    ]


def test_lock_adds_a_new_version_and_leaves_the_other_lines(root: Path) -> None:
    before = lock_of(root).read_text().splitlines()
    shutil.copytree(root / "extract_metadata/1.0.0", root / "extract_metadata/1.0.1")
    assert run("lock", root) == 0
    added = [line for line in lock_of(root).read_text().splitlines() if line not in before]
    assert [line.split(" = ")[0] for line in added] == ['extract_metadata."1.0.1"']
    assert run("check", root) == 0


def test_lock_refuses_a_changed_version_and_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = lock_of(root).read_bytes()
    edit(root)
    shutil.copytree(root / "extract_metadata/1.0.0", root / "extract_metadata/1.0.1")
    assert run("lock", root) == 1
    assert "classify_document 1.0.0: differs from the lock; undo the change" in capsys.readouterr().err
    assert lock_of(root).read_bytes() == before
    assert [path.name for path in root.parent.iterdir() if path.is_file()] == ["prompts.lock"]


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_lock_refuses_a_version_that_is_gone(root: Path, version: str) -> None:
    before = lock_of(root).read_bytes()
    shutil.rmtree(root / "summarise_document" / version)
    assert run("lock", root) == 1
    assert lock_of(root).read_bytes() == before


def test_a_library_is_not_loaded_against_a_lock_that_differs(root: Path) -> None:
    edit(root)
    with pytest.raises(ConfigurationError) as caught:
        PromptLibrary.load(root, lock_of(root))
    assert (caught.value.file, caught.value.place) == (str(lock_of(root)), "classify_document 1.0.0")


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        (None, "file", "is missing"),
        ("a.\n", "line 1", "is not TOML: Invalid initial character for a key part"),
        ('greet."1.0.0" = "abc"\n', "greet.1.0.0", "is not a SHA-256 digest in hex"),
        (f'greet."1.0" = "{"0" * 64}"\n', "versions", "'1.0' is not a semantic version"),
    ],
)
def test_a_malformed_lock_is_refused(root: Path, content: str | None, place: str, reason: str) -> None:
    lock_of(root).unlink()
    if content is not None:
        lock_of(root).write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        PromptLibrary.load(root, lock_of(root))
    assert (caught.value.place, caught.value.reason) == (place, reason)


def test_a_digest_tells_a_name_from_a_content_and_one_file_from_another(root: Path) -> None:
    directory = root / "classify_document/1.0.0"
    digests = {PromptLibrary.load(root).find("classify_document").reference.digest}
    (directory / "negatives.jsonl").unlink()
    digests.add(PromptLibrary.load(root).find("classify_document").reference.digest)
    (directory / "examples.jsonl").rename(directory / "negatives.jsonl.kept")
    (directory / "negatives.jsonl.kept").unlink()
    digests.add(PromptLibrary.load(root).find("classify_document").reference.digest)
    assert len(digests) == 3
