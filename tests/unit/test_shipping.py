"""What of a folder goes with a job: as Ray itself would ship it, bounded, and named by its content."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from pipelines.shipping import MIB, NEVER_SHIPPED, ShippingError, find_excess, list_shipped, write_package
from tests.conftest import ROOT

Fill = Callable[..., Path]


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Makes a folder with files of these contents."""

    def make(files: dict[str, str], name: str = "work") -> Path:
        for path, content in files.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
        return tmp_path / name

    return make


def list_names(folder: Path) -> list[str]:
    return [file.name for file in list_shipped(folder)]


def list_ray_ships(folder: Path, package: Path) -> list[str]:
    create_package(str(folder), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    with ZipFile(package) as shipped:
        return sorted(name for name in shipped.namelist() if not name.endswith("/"))


FILES = {
    ".gitignore": "out/\n*.log\n!keep.log\n/top.txt\n",
    ".rayignore": "# data stays here\ndata/**/raw\ntests\n",
    "code.py": "1",
    "top.txt": "1",
    "below/top.txt": "1",
    "below/.gitignore": "local.txt\n",
    "below/local.txt": "1",
    "local.txt": "1",
    "run.log": "1",
    "keep.log": "1",
    "out/bundle/model": "1",
    "data/a/raw/x": "1",
    "data/a/clean/x": "1",
    "tests/test_x.py": "1",
    ".venv/bin/python": "1",
    "below/__pycache__/x.pyc": "1",
    ".git/HEAD": "1",
    "ünïcode/文.txt": "1",
}


def test_ignore_files_are_read_as_ray_reads_them(fill, tmp_path):
    folder = fill(FILES)
    names = list_names(folder)
    assert names == list_ray_ships(folder, tmp_path / "ray.zip")
    assert {"code.py", "keep.log", "below/top.txt", "local.txt", "data/a/clean/x", "ünïcode/文.txt"} <= set(names)
    assert {"top.txt", "run.log", "below/local.txt", "out/bundle/model", "data/a/raw/x", ".git/HEAD"}.isdisjoint(names)
    assert tuple(get_runtime_env_default_excludes()) == NEVER_SHIPPED


def test_checkout_ships_what_a_job_needs_and_little_else():
    files = list_shipped(ROOT)
    names = {file.name for file in files}
    assert {"pipelines/train.py", "pipelines/configs/quickstart.yaml", "pipelines/sample/en-train.jsonl"} <= names
    assert "serve/app.py" in names
    assert [name for name in names if name.startswith(("tests/", "out/", ".venv", ".git/"))] == []
    assert sum(file.num_bytes for file in files) < 5 * MIB


def test_links_are_followed_but_not_around(fill, tmp_path):
    folder = fill({"a.txt": "1"})
    elsewhere = fill({"b.txt": "1"}, "elsewhere")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "around").symlink_to(folder)
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    assert list_names(folder) == ["a.txt", "linked/b.txt"]


def test_folder_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ShippingError, match="cannot be read"):
        list_shipped(tmp_path / "nowhere")


def test_what_is_large_is_named(fill):
    folder = fill({"a.bin": "x" * (2 * MIB), "data/b.bin": "x" * (3 * MIB), "data/c.bin": "x" * MIB, "code.py": "1"})
    files = list_shipped(folder)
    assert find_excess(folder, files, 6.1) is None
    told = str(find_excess(folder, files, 5))
    for fact in (
        "too large",
        str(folder),
        "at most 5 MiB",
        "6.0 MiB in 4 files",
        ".rayignore",
        "--max_working_dir_mib",
    ):
        assert fact in told
    assert "data/ 4.0 MiB in 2 files, of them data/b.bin 3.0 MiB; a.bin 2.0 MiB" in told


def test_same_content_is_the_same_package_wherever_and_whenever(fill, tmp_path):
    folder = fill(FILES)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    os.utime(copy / "code.py", (0, 0))
    digests = [write_package(one, list_shipped(one), tmp_path / f"{one.name}.zip") for one in (folder, copy)]
    assert digests[0] == digests[1]
    assert (tmp_path / "work.zip").read_bytes() == (tmp_path / "copy.zip").read_bytes()
    with ZipFile(tmp_path / "work.zip") as package:
        assert package.namelist() == list_names(folder)
        assert package.read("code.py") == b"1"
    (copy / "code.py").write_text("2")
    assert write_package(copy, list_shipped(copy), tmp_path / "changed.zip") != digests[0]
    (folder / "out" / "more").write_text("ignored")
    assert write_package(folder, list_shipped(folder), tmp_path / "same.zip") == digests[0]


def test_rights_to_run_go_with_a_file(fill, tmp_path):
    folder = fill({"run.sh": "true", "code.py": "1"})
    (folder / "run.sh").chmod(0o755)
    write_package(folder, list_shipped(folder), tmp_path / "package.zip")
    with ZipFile(tmp_path / "package.zip") as package:
        assert [info.external_attr >> 16 for info in package.infolist()] == [0o644, 0o755]


def test_deeper_ignore_file_takes_back_what_one_above_says(fill):
    folder = fill(
        {".gitignore": "*.csv\n", "a/.gitignore": "!keep.csv\n", "a/keep.csv": "1", "a/other.csv": "2", "b.csv": "3"}
    )
    assert [file.name for file in list_shipped(folder)] == [".gitignore", "a/.gitignore", "a/keep.csv"]
    (folder / ".rayignore").write_text("keep.csv\n", encoding="utf-8")
    assert "a/keep.csv" not in [file.name for file in list_shipped(folder)]


def test_name_that_is_no_utf8_is_refused(fill):
    folder = fill({"a.txt": "1"})
    with open(os.fsencode(folder) + b"/caf\xe9.txt", "wb"):
        pass
    with pytest.raises(ShippingError, match="no UTF-8"):
        list_shipped(folder)
