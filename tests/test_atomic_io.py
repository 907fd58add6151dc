"""The file writes: what they promise while nothing fails. tests/reliability/ has the disks that do."""

import errno
import os
import subprocess
import sys
from contextlib import closing

import pytest

from gptmini import atomic_io, lock
from gptmini.errors import DamagedError, InUseError


def names(folder):
    return sorted(os.listdir(folder))


def test_a_written_file_replaces_the_old_one_and_leaves_no_other_name(tmp_path):
    atomic_io.write_file(tmp_path / "a", b"old")
    atomic_io.write_file(tmp_path / "a", [b"ne", memoryview(b"w"), b""])
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_a_write_that_fails_in_the_middle_keeps_the_old_file_and_names_it(tmp_path, monkeypatch):
    atomic_io.write_file(tmp_path / "a", b"old")

    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"No space left on device: .*/a'"):
        atomic_io.write_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_an_error_in_making_the_data_keeps_its_own_message(tmp_path):
    def pieces():
        yield b"start"
        raise OSError(errno.EIO, "Input/output error", "the corpus")

    with pytest.raises(OSError, match="the corpus"):
        atomic_io.write_file(tmp_path / "a", pieces())
    assert names(tmp_path) == []


def test_a_file_is_never_created_over_another(tmp_path):
    atomic_io.create_file(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError, match="a'"):
        atomic_io.create_file(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"


def test_a_new_folder_shows_its_name_only_when_it_is_complete(tmp_path):
    with atomic_io.new_folder(tmp_path / "whole") as folder:
        atomic_io.create_file(folder / "one", b"1")
        assert not (tmp_path / "whole").exists()
    assert names(tmp_path / "whole") == ["one"]
    assert names(tmp_path) == ["whole"]


def test_a_new_folder_that_fails_leaves_nothing(tmp_path):
    def fill_and_fail():
        with atomic_io.new_folder(tmp_path / "whole") as folder:
            atomic_io.make_folder(folder / "deep" / "er")
            atomic_io.create_file(folder / "deep" / "er" / "one", b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_and_fail()
    assert names(tmp_path) == []


def test_a_new_folder_is_refused_where_something_stands(tmp_path):
    (tmp_path / "taken").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="taken"), atomic_io.new_folder(tmp_path / "taken"):
        pass
    assert names(tmp_path) == ["taken"]


def test_folders_are_made_with_all_above_them(tmp_path):
    atomic_io.make_folder(tmp_path / "a" / "b")
    atomic_io.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_is_not_made_where_a_file_stands(tmp_path):
    (tmp_path / "a").write_text("file")
    with pytest.raises(FileExistsError, match="a'"):
        atomic_io.make_folder(tmp_path / "a")


def test_removing_a_folder_removes_links_but_not_what_they_point_to(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("1")
    (tmp_path / "gone" / "deep").mkdir(parents=True)
    (tmp_path / "gone" / "deep" / "file").write_text("1")
    (tmp_path / "gone" / "link").symlink_to(tmp_path / "outside")
    atomic_io.remove_folder(tmp_path / "gone")
    assert names(tmp_path) == ["outside"]
    assert names(tmp_path / "outside") == ["precious"]


def test_cleaning_removes_what_a_killed_process_was_writing_and_nothing_else(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom gptmini import atomic_io\n"
        "with atomic_io.new_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'deep').mkdir()\n    os._exit(9)\n"
    )
    for name in ("entry", "another"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    (tmp_path / "kept").write_text("whole")
    assert len(names(tmp_path)) == 3
    atomic_io.clean_leftovers(tmp_path, "entry")
    atomic_io.clean_leftovers(tmp_path / "missing", "entry")
    assert len(names(tmp_path)) == 2
    atomic_io.clean_leftovers(tmp_path, "entry|another")
    assert names(tmp_path) == ["kept"]


def test_errors_in_a_new_folder_name_the_place_where_it_is_to_stand(tmp_path):
    def fail_in(place, error):
        with pytest.raises(OSError, match="place") as raised, atomic_io.new_folder(place) as folder:
            raise error(folder)
        return str(raised.value)

    place = tmp_path / "place"
    assert fail_in(place, lambda f: OSError(errno.EIO, "bad", str(f / "a"))).endswith(f"bad: '{place}/a'")
    assert fail_in(place, lambda f: DamagedError(f"{f / 'a'}: bad")) == f"{place}/a: bad"


def test_lines_are_appended_to_what_is_there(tmp_path):
    for line in ["one", "zwölf"]:
        with closing(atomic_io.AppendOnlyLog(tmp_path / "lines")) as lines:
            lines.append(line)
            assert (tmp_path / "lines").read_text(encoding="utf-8").endswith(line + "\n")  # before the close
            lines.sync()
    assert (tmp_path / "lines").read_text(encoding="utf-8") == "one\nzwölf\n"


def test_a_torn_last_line_is_dropped_with_the_unwanted_ones(tmp_path):
    (tmp_path / "lines").write_bytes(b"1\n2\n3\n1")
    atomic_io.filter_lines(tmp_path / "lines", lambda line: int(line) != 2)
    assert (tmp_path / "lines").read_bytes() == b"1\n3\n"
    atomic_io.filter_lines(tmp_path / "missing", lambda line: True)
    assert names(tmp_path) == ["lines"]


LOCK = """
import sys
from pathlib import Path
from gptmini import lock
with lock.lock(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_against_others_and_freed_by_a_kill(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(InUseError, match="the run is in use"),
            lock.lock(tmp_path / "lock", "the run"),
        ):
            pass
        holder.kill()
    with lock.lock(tmp_path / "lock", "the run"):
        pass


def test_a_lock_is_free_after_its_block_even_if_that_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.lock(tmp_path / "lock", "it"):
        raise ZeroDivisionError
    with lock.lock(tmp_path / "lock", "it"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_lock_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises(OSError, match=str(tmp_path / "lock")), lock.lock(tmp_path / "lock", "it"):
        pass


def test_a_lock_notices_that_its_file_is_gone_or_another(tmp_path):
    with lock.lock(tmp_path / "lock", "the run") as check:
        check()
        (tmp_path / "lock").rename(tmp_path / "moved")
        with pytest.raises(OSError, match="the run was removed or moved while in use"):
            check()
        (tmp_path / "lock").write_text("")
        with pytest.raises(OSError, match="the run was removed or moved while in use"):
            check()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_a_filesystem_without_locks_is_an_error_and_not_a_lock_that_outlives_its_process(
    tmp_path, monkeypatch
):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="Function not implemented"), lock.lock(tmp_path / "lock", "it"):
        pass


def test_a_new_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", fail)
    place = tmp_path / "place"
    with pytest.raises(OSError, match="place'"), atomic_io.new_folder(place):
        pass
