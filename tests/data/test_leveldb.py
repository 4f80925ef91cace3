"""LevelDB: the original's database, reading that leaves no trace, writing, processes and complaints."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import plyvel
import pytest

from caffe_lite.data import leveldb
from caffe_lite.data.database import create, open_reader
from caffe_lite.errors import DataError, FileAccessError, MissingFileError

ORIGINAL = Path(__file__).resolve().parents[1] / "reference" / "files" / "raw_leveldb"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let temporary folders appear in one of the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def write(path: Path, records: int = 10) -> Path:
    with create(path, "LEVELDB") as writer:
        for number in range(records):
            writer.put(b"%08d" % number, b"value %d" % number)
    return path


def state(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        path.name: (hashlib.md5(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in folder.iterdir()
    }


def test_the_originals_records_come_in_order() -> None:
    with contextlib.closing(open_reader(ORIGINAL, "LEVELDB")) as reader:
        names = [key.decode() for key, _ in reader.read()]
    assert names == [
        f"0000000{number}_{name}"
        for number, name in enumerate(["astronaut.jpg", "coffee.png", "chelsea.jpg", "rocket.png", "coins.jpg"])
    ]


@pytest.mark.parametrize("start", [0, 1, 7, 9, 10, 13, 29])
def test_records_are_counted_around_the_end(tmp_path: Path, start: int) -> None:
    with contextlib.closing(open_reader(write(tmp_path / "db"), "LEVELDB")) as reader:
        assert reader.records == 10
        records = list(reader.read(start))
    assert records == [(b"%08d" % number, b"value %d" % number) for number in range(start % 10, 10)]


def test_reading_changes_nothing_and_leaves_nothing_behind(tmp_path: Path, temporary: Path) -> None:
    folder = tmp_path / "db"
    shutil.copytree(ORIGINAL, folder)
    before = state(folder)
    reader = open_reader(folder, "LEVELDB")
    assert len(list(reader.read())) == reader.records == 5
    assert len(list(temporary.iterdir())) == 1
    reader.close()
    assert state(folder) == before
    assert not list(temporary.iterdir())


def test_a_database_whose_log_was_not_merged_is_read_whole_and_stays(tmp_path: Path) -> None:
    with contextlib.closing(plyvel.DB(str(tmp_path / "db"), create_if_missing=True)) as database:
        database.put(b"a", b"1")
    before = state(tmp_path / "db")
    assert any(name.endswith(".log") for name in before) and not any(name.endswith(".ldb") for name in before)
    with contextlib.closing(open_reader(tmp_path / "db", "LEVELDB")) as reader:
        assert list(reader.read()) == [(b"a", b"1")]
    assert state(tmp_path / "db") == before


def test_a_read_only_folder_can_be_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "db")
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    with contextlib.closing(open_reader(folder, "LEVELDB")) as reader:
        assert len(list(reader.read())) == 10
    folder.chmod(0o755)


def test_an_iterator_goes_on_after_the_reader_was_closed(tmp_path: Path, temporary: Path) -> None:
    reader = open_reader(write(tmp_path / "db"), "LEVELDB")
    records = reader.read()
    next(records)
    reader.close()
    assert len(list(records)) == 9
    del records
    gc.collect()
    assert not list(temporary.iterdir())


def test_two_readers_do_not_disturb_each_other(tmp_path: Path) -> None:
    folder = write(tmp_path / "db")
    with (
        contextlib.closing(open_reader(folder, "LEVELDB")) as first,
        contextlib.closing(open_reader(folder, "LEVELDB")) as second,
    ):
        assert list(first.read()) == list(second.read())


def test_a_forked_process_reads_for_itself_and_leaves_its_parents_folder(tmp_path: Path, temporary: Path) -> None:
    script = (
        "import os, sys, caffe_lite.data.database as d\n"
        "reader = d.open_reader(sys.argv[1], 'LEVELDB')\n"
        "child = os.fork()\n"
        "if not child: sys.exit(len(list(reader.read())))\n"
        "status = os.waitpid(child, 0)[1]\n"
        "print(os.waitstatus_to_exitcode(status), len(list(reader.read())))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, write(tmp_path / "db")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(temporary)},
        timeout=60,
    )
    assert result.stdout.split() == ["10", "10"], result.stderr
    assert not list(temporary.iterdir())


def test_create_overwrites_a_leveldb_only_when_asked(tmp_path: Path) -> None:
    folder = write(tmp_path / "db")
    with create(folder, "LEVELDB", overwrite=True) as writer:
        writer.put(b"new", b"1")
        writer.commit()
        writer.put(b"newer", b"2")
    with contextlib.closing(open_reader(folder, "LEVELDB")) as reader:
        assert list(reader.read()) == [(b"new", b"1"), (b"newer", b"2")]


# -- complaints


def test_a_missing_folder_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="db: no such database"):
        open_reader(tmp_path / "db", "LEVELDB")


def test_a_file_is_no_leveldb(tmp_path: Path) -> None:
    (tmp_path / "db").touch()
    with pytest.raises(DataError, match=r"db is a file. Expected the folder of a LevelDB"):
        open_reader(tmp_path / "db", "LEVELDB")


def test_an_lmdb_is_recognized(tmp_path: Path) -> None:
    with create(tmp_path / "db") as writer:
        writer.put(b"a", b"1")
    with pytest.raises(DataError, match=r"db is an LMDB. Write `backend: LMDB` into data_param"):
        open_reader(tmp_path / "db", "LEVELDB")


def test_a_folder_of_other_things_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").touch()
    with pytest.raises(DataError, match=r"is not a LevelDB. Expected CURRENT in it, found cat.jpg"):
        open_reader(tmp_path, "LEVELDB")


def test_an_empty_leveldb_is_an_error(tmp_path: Path, temporary: Path) -> None:
    write(tmp_path / "db", records=0)
    with pytest.raises(DataError, match=r"the LevelDB is empty. Expected at least one record"):
        open_reader(tmp_path / "db", "LEVELDB")
    gc.collect()
    assert not list(temporary.iterdir())


def test_a_missing_table_is_an_error(tmp_path: Path, temporary: Path) -> None:
    shutil.copytree(ORIGINAL, tmp_path / "db")
    (tmp_path / "db" / "000005.ldb").unlink()
    with pytest.raises(DataError, match=r"db: the LevelDB cannot be opened: .*missing files"):
        open_reader(tmp_path / "db", "LEVELDB")
    assert not list(temporary.iterdir())


def test_a_damaged_table_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    with contextlib.closing(plyvel.DB(str(tmp_path / "db"), create_if_missing=True, compression=None)) as database:
        for number in range(1000):
            database.put(b"%08d" % number, bytes(100))
        database.compact_range()
    (table,) = (tmp_path / "db").glob("*.ldb")
    content = bytearray(table.read_bytes())
    content[50000] ^= 1
    table.write_bytes(content)
    with contextlib.closing(open_reader(tmp_path / "db", "LEVELDB")) as reader:
        records = reader.read()
        assert next(records)[0] == b"00000000"
        with pytest.raises(DataError, match=r"db: the LevelDB cannot be read: Corruption: block checksum mismatch"):
            list(records)
        with pytest.raises(DataError, match="the LevelDB cannot be read"):
            _ = reader.records


def test_a_file_that_cannot_be_read_is_an_access_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    folder = write(tmp_path / "db")
    monkeypatch.setattr(leveldb.shutil, "copyfile", refuse)
    with pytest.raises(FileAccessError, match="db: the database cannot be read: Permission denied"):
        open_reader(folder, "LEVELDB")
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(FileAccessError, match="db: the database cannot be read: Permission denied"):
        open_reader(folder, "LEVELDB")


def test_a_database_that_another_process_writes_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_lite.data.database.LOCK_PATIENCE", 0.05)
    folder = write(tmp_path / "db")
    hold = "import plyvel, sys; database = plyvel.DB(sys.argv[1]); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(DataError, match="db is locked by another process"):
            open_reader(folder, "LEVELDB")
        process.communicate("\n")
    open_reader(folder, "LEVELDB").close()


def test_a_closed_reader_says_so(tmp_path: Path) -> None:
    reader = open_reader(write(tmp_path / "db"), "LEVELDB")
    reader.close()
    with pytest.raises(DataError, match="this reader was closed"):
        next(reader.read())


def test_plyvel_missing_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "db")
    monkeypatch.setitem(sys.modules, "plyvel", None)
    with pytest.raises(
        DataError, match=r"needs the library plyvel. Install it with: pip install 'caffe-lite\[leveldb\]'"
    ):
        open_reader(folder, "LEVELDB")


def test_a_place_that_cannot_be_written_is_an_access_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileAccessError, match="a LevelDB cannot be created"):
        leveldb.LevelDbWriter(str(tmp_path / "file"))


def test_a_write_that_fails_is_an_access_error(tmp_path: Path) -> None:
    writer = leveldb.LevelDbWriter(str(tmp_path))
    writer.put(b"a", b"1")

    class Full:
        def write(self) -> None:
            raise plyvel.IOError("No space left on device")

    writer._batch = Full()
    with pytest.raises(FileAccessError, match="the LevelDB cannot be written: No space left on device"):
        writer.commit()
    writer.close()
