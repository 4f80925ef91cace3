"""Databases: what is written is read, whoever else reads, and what is wrong with one is said."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from caffe_lite.data import database
from caffe_lite.data.database import LmdbReader, LmdbWriter, create, open_reader
from caffe_lite.errors import DataError, FileAccessError, MissingFileError, UsageError


def write(path: Path, records: int = 10, value: bytes = b"value") -> Path:
    with create(path) as writer:
        for number in range(records):
            writer.put(b"%08d" % number, value + b"%d" % number)
    return path


def test_records_come_back_in_the_order_of_their_keys(tmp_path: Path) -> None:
    with create(tmp_path / "db") as writer:
        for key in (b"b", b"c", b"a"):
            writer.put(key, key * 2)
    reader = open_reader(tmp_path / "db")
    assert reader.records == 3
    assert list(reader.read()) == [(b"a", b"aa"), (b"b", b"bb"), (b"c", b"cc")]
    reader.close()


@pytest.mark.parametrize("start", [0, 1, 7, 9])
def test_read_starts_at_any_record(tmp_path: Path, start: int) -> None:
    with contextlib.closing(open_reader(write(tmp_path / "db"))) as reader:
        keys = [key for key, _ in reader.read(start)]
    assert keys == [b"%08d" % number for number in range(start, 10)]


@pytest.mark.parametrize(("start", "first"), [(10, 0), (13, 3), (29, 9)])
def test_records_are_counted_around_the_end(tmp_path: Path, start: int, first: int) -> None:
    with contextlib.closing(open_reader(write(tmp_path / "db"))) as reader:
        assert [key for key, _ in reader.read(start)] == [b"%08d" % number for number in range(first, 10)]


def test_opening_logs_what_caffe_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "caffe_lite")
    open_reader(write(tmp_path / "db")).close()
    assert caplog.messages == [f"Opened lmdb {tmp_path / 'db'}"]


def test_two_readers_of_one_process_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = write(tmp_path / "db")
    first, second = open_reader(path), open_reader(path)
    pairs = list(itertools.islice(zip(first.read(), second.read(5), strict=False), 3))
    assert [(a[0], b[0]) for a, b in pairs] == [(b"%08d" % k, b"%08d" % (k + 5)) for k in range(3)]
    first.close()
    first.close()  # closing twice is nothing
    assert len(list(second.read())) == 10
    second.close()
    open_reader(path).close()


def test_a_forgotten_reader_closes_its_database(tmp_path: Path) -> None:
    path = write(tmp_path / "db")
    assert open_reader(path).records
    gc.collect()
    lmdb.open(str(path)).close()  # raises while this process has it open


def test_another_process_reads_at_the_same_time(tmp_path: Path) -> None:
    path = write(tmp_path / "db")
    script = "import sys, caffe_lite.data.database as d; print(len(list(d.open_reader(sys.argv[1]).read())))"
    with contextlib.closing(open_reader(path)) as reader:
        records = reader.read()
        next(records)
        output = subprocess.check_output([sys.executable, "-c", script, str(path)], cwd=Path(__file__).parents[2])
    assert output.split() == [b"10"]


def test_reading_goes_on_while_another_writes(tmp_path: Path) -> None:
    """A reader sees the state at its beginning, also if the writer has replaced all of it meanwhile."""
    path = write(tmp_path / "db")
    replace = (
        "import lmdb, sys\nenvironment = lmdb.open(sys.argv[1], map_size=1 << 24)\n"
        "for turn in range(5):\n  with environment.begin(write=True) as t:\n"
        "    for k in range(10): t.put(b'%08d' % k, b'new')"
    )
    with contextlib.closing(open_reader(path)) as reader:
        records = reader.read()
        next(records)
        subprocess.check_call([sys.executable, "-c", replace, str(path)])
        assert all(value.startswith(b"value") for _, value in records)


def test_what_lmdb_says_of_a_failed_opening_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> lmdb.Environment:
        raise lmdb.Error("The environment is already open in this process.")

    path = write(tmp_path / "db")
    monkeypatch.setattr(database, "LOCK_PATIENCE", 0.01)
    monkeypatch.setattr(lmdb, "open", refuse)
    with pytest.raises(DataError, match=r"db: the LMDB cannot be opened: .*already open in this process"):
        open_reader(path)


def test_opening_waits_for_a_thread_that_is_just_closing_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "db")
    real_open = lmdb.open
    still_open = [True, True]

    def open_when_closed(*args: object, **options: object) -> lmdb.Environment:
        if still_open:
            still_open.pop()
            raise lmdb.Error("The environment is already open in this process.")
        return real_open(*args, **options)

    monkeypatch.setattr(lmdb, "open", open_when_closed)
    with contextlib.closing(open_reader(path)) as reader:
        assert len(list(reader.read())) == 10
    assert "lock file" not in caplog.text


def test_a_lock_file_that_cannot_be_used_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "db")
    real_open = lmdb.open

    def open_on_a_read_only_disk(*args: object, lock: bool = True, **options: object) -> lmdb.Environment:
        if lock:
            raise lmdb.ReadonlyError("Read-only file system")
        return real_open(*args, lock=lock, **options)

    monkeypatch.setattr(lmdb, "open", open_on_a_read_only_disk)
    with contextlib.closing(open_reader(path)) as reader:
        assert len(list(reader.read())) == 10
    assert "its lock file cannot be used (Read-only file system)" in caplog.text


def test_a_locked_database_is_an_error_and_no_endless_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "db")
    hold = "import fcntl, sys\nf = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX, 1); print(); input()"
    monkeypatch.setattr(database, "LOCK_PATIENCE", 0.05)
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path / "lock.mdb")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        with pytest.raises(DataError, match="db is locked by another process"):
            open_reader(path)
        process.communicate(b"\n")
    open_reader(path).close()


def test_a_missing_database_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nothing_lmdb: no such database"):
        open_reader(tmp_path / "nothing_lmdb")


def test_a_file_is_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"text")
    with pytest.raises(DataError, match=r"db is a file. Expected the folder of an LMDB"):
        open_reader(tmp_path / "db")


def test_a_folder_of_other_things_is_not_a_database(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Expected data.mdb in it, found nothing"):
        open_reader(tmp_path)
    for number in range(7):
        (tmp_path / f"{number}.jpg").touch()
    with pytest.raises(DataError, match=r"found 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, \.\.\."):
        open_reader(tmp_path)


def test_a_leveldb_is_recognized(tmp_path: Path) -> None:
    (tmp_path / "CURRENT").write_bytes(b"MANIFEST-000004\n")
    with pytest.raises(DataError, match=r"is a LevelDB. Write `backend: LEVELDB` into data_param, or convert it"):
        open_reader(tmp_path)


def test_an_lmdb_without_records_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "db", records=0)
    with pytest.raises(DataError, match=r"the LMDB is empty. Expected at least one record"):
        open_reader(tmp_path / "db")


def test_an_empty_data_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").touch()
    with pytest.raises(DataError, match=r"data.mdb is empty \(0 bytes\)"):
        open_reader(tmp_path)


def test_a_data_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"not an LMDB file. It begins with b'version https://'"):
        open_reader(tmp_path)


def test_a_truncated_database_is_an_error_and_no_crash(tmp_path: Path) -> None:
    data = write(tmp_path / "db", records=1000) / "data.mdb"
    size = data.stat().st_size
    os.truncate(data, size // 2)
    with pytest.raises(DataError, match=f"is truncated. Expected {size} bytes, found {size // 2}"):
        open_reader(tmp_path / "db")


def test_an_unreadable_folder_is_an_access_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "db")

    def refuse(self: Path, *args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FileAccessError, match="db: the database cannot be read: Permission denied"):
        open_reader(path)


def test_a_closed_reader_is_an_error_but_its_iterators_end_well(tmp_path: Path) -> None:
    reader = open_reader(write(tmp_path / "db"))
    running, late = reader.read(), reader.read()
    next(running)
    reader.close()
    with pytest.raises(DataError, match=r"db: this reader was closed. Open the database again"):
        next(late)
    assert len(list(running)) == 9


def test_damaged_pages_are_an_error_that_names_the_database(tmp_path: Path) -> None:
    path = write(tmp_path / "db", records=1000)
    with (path / "data.mdb").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(2 * 4096)  # behind the two pages that describe the rest
        file.write(bytes(size - 2 * 4096))
    with contextlib.closing(open_reader(path)) as reader, pytest.raises(DataError, match="db: the LMDB cannot be read"):
        list(reader.read())


def test_the_map_grows_with_what_is_written(tmp_path: Path) -> None:
    writer = LmdbWriter(str(tmp_path), map_size=1 << 16)
    for number in range(100):
        writer.put(b"%08d" % number, bytes(10_000))
    writer.commit()
    writer.close()
    assert LmdbReader(str(tmp_path)).records == 100


def test_a_database_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), create(tmp_path / "db") as writer:
        writer.put(b"a", b"a")
        writer.commit()
        assert not (tmp_path / "db").exists()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_nothing_at_the_target(tmp_path: Path) -> None:
    script = (
        "import os, sys, caffe_lite.data.database as d\n"
        "with d.create(sys.argv[1]) as writer:\n  writer.put(b'a', b'a'); writer.commit(); os.kill(os.getpid(), 9)"
    )
    subprocess.call([sys.executable, "-c", script, str(tmp_path / "db")], cwd=Path(__file__).parents[2])
    assert not (tmp_path / "db").exists()
    write(tmp_path / "db")


def test_an_existing_database_is_replaced_only_if_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "db")
    with pytest.raises(UsageError, match=r"db exists already. Remove it"), create(path):
        pass
    with create(path, overwrite=True) as writer:
        writer.put(b"new", b"new")
    with contextlib.closing(open_reader(path)) as reader:
        assert list(reader.read()) == [(b"new", b"new")]
    assert [entry.name for entry in tmp_path.iterdir()] == ["db"]


def test_a_folder_of_other_things_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for target in (tmp_path, tmp_path / "thesis.tex"):
        with (
            pytest.raises(UsageError, match=r"is not a database, so it is not overwritten. It holds thesis.tex"),
            create(target, overwrite=True),
        ):
            pass
    assert (tmp_path / "thesis.tex").exists()


def test_logs_alone_are_no_database_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "20.log").touch()
    with pytest.raises(UsageError, match=r"is not a database.*It holds 20.log"), create(tmp_path, overwrite=True):
        pass


def test_a_place_that_cannot_be_written_is_an_access_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileAccessError, match="db: the database cannot be written"), create(tmp_path / "file" / "db"):
        pass


def test_a_full_disk_is_an_access_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: LmdbWriter) -> None:
        raise lmdb.DiskError("No space left on device")

    monkeypatch.setattr(LmdbWriter, "commit", full)
    with pytest.raises(FileAccessError, match="db: the database cannot be written: No space left on device"):
        write(tmp_path / "db")
    assert not list(tmp_path.iterdir())
