"""Deliberate mistakes in atomic_io.py and checkpoint/, each put into its source, and each caught by a check.

A check that no mistake can fail proves nothing; this is the proof that these can. docs/reliability.md shows
the table.
"""

from functools import partial

import checks
import pytest
from seeded import assert_caught, to_run

from gptmini import atomic_io, lock
from gptmini.checkpoint import gpt2_directory, hf_gpt2, manifest, safetensors_io, state, store

pytestmark = [
    pytest.mark.skipif("not hasattr(__import__('os'), 'fork')"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

kills = partial(checks.check_kills, stride=1)
late_kills = partial(checks.check_kills, stride=1)  # these two mistakes show only at the end of a save
late_faults = partial(checks.check_faults, stride=1)
power_loss = partial(checks.check_power_loss, states=200)
bit_flips = partial(checks.check_bit_flips, stride=101)
lengths = partial(checks.check_lengths, stride=53)
hostile_weights = partial(checks.check_hostile, only="training/optimizer.safetensors")
hostile_config = partial(checks.check_hostile, only="config.json")
kills_beside_strays = partial(checks.check_kills, stride=1, strays=True)
hostile_index = partial(checks.check_hostile, only="model.safetensors.index.json")

SLOW = [
    power_loss,
    late_kills,
    late_faults,
    kills_beside_strays,
    hostile_weights,
    hostile_config,
    hostile_index,
    checks.check_transformers,
]

BUGS = [
    (
        "files are not synced",
        power_loss,
        atomic_io,
        "        with _errors_name_path(path):\n            _sync(file)\n",
        "",
    ),
    (
        "folders are not synced",
        power_loss,
        atomic_io,
        "    folder = os.open(path, os.O_RDONLY)\n",
        "    return\n    folder = os.open(path, os.O_RDONLY)\n",
    ),
    (
        "the names in a new folder are not synced",
        power_loss,
        atomic_io,
        "        sync_folders(temporary)\n",
        "",
    ),
    (
        "a new folder's own name is not synced",
        power_loss,
        atomic_io,
        "            _sync_folder(path.parent)\n    except BaseException:\n        with suppress",
        "            pass\n    except BaseException:\n        with suppress",
    ),
    (
        "the run folder's name is not synced",
        power_loss,
        atomic_io,
        "            _sync_folder(folder.parent)\n",
        "",
    ),
    (
        "lines of metrics are not synced",
        power_loss,
        atomic_io,
        "            _sync(self._file)\n",
        "            pass\n",
    ),
    (
        "a folder is removed before its new name is synced",
        power_loss,
        atomic_io,
        "        os.rename(path, target)\n        _sync_folder(path.parent)\n",
        "        os.rename(path, target)\n",
    ),
    (
        "a folder is removed under its name",
        late_kills,
        store,
        "        atomic_io.rename(path, removed)  # a reader sees all of it or nothing\n",
        "        removed = path\n",
    ),
    (
        "a new folder is filled under its name",
        kills,
        atomic_io,
        "    with _temporary(path) as temporary:\n        with _errors",
        "    with deleted_on_failure(path) as temporary:\n        with _errors",
    ),
    (
        "a file is rewritten in place",
        kills,
        atomic_io,
        '        write_file(path, (line for line in lines if line.endswith(b"\\n") and keep(line)))\n',
        '        kept = [line for line in lines if line.endswith(b"\\n") and keep(line)]\n'
        "    file = os.open(path, os.O_WRONLY | os.O_TRUNC)\n"
        '    _write_all(file, b"".join(kept))\n'
        "    os.close(file)\n",
    ),
    ("leftovers are not cleaned", kills, atomic_io, "if leftover.fullmatch(name):", "if False:"),
    (
        "older checkpoints go before the new one is written",
        kills,
        store,
        "        atomic_io.make_folder(self.folder)\n",
        "        for step in self.steps():\n"
        "            atomic_io.remove_folder(self.path(step))\n"
        "        atomic_io.make_folder(self.folder)\n",
    ),
    (
        "a failed fsync is tried again",
        checks.check_faults,
        atomic_io,
        "    os.fsync(file)\n",
        "    try:\n        os.fsync(file)\n    except OSError:\n        os.fsync(file)\n",
    ),
    (
        "a full disk is passed over",
        checks.check_faults,
        atomic_io,
        "        written = os.write(file, rest)\n",
        "        try:\n            written = os.write(file, rest)\n"
        "        except OSError:\n            return\n",
    ),
    (
        "the error does not say which file",
        checks.check_faults,
        atomic_io,
        "raise OSError(error.errno, error.strerror, str(path)) from error",
        "raise",
    ),
    (
        "a failed new folder is left in place",
        late_faults,
        atomic_io,
        "    except BaseException:\n        with suppress(OSError):\n            remove_folder(path)\n"
        "        raise\n",
        "    except OSError:\n        pass\n",
    ),
    (
        "a short write is taken for a whole one",
        checks.check_short_writes,
        atomic_io,
        "rest[written:]",
        "rest[:0]",
    ),
    (
        "what was written is not read back",
        checks.check_lying_disk,
        manifest,
        " or buffer[: len(part)] != part:",
        ":",
    ),
    (
        "only sizes are verified",
        bit_flips,
        manifest,
        'b"")) == summary\n',
        'b"")) is not None\n',
    ),
    (
        "the manifest's own checksum is not checked",
        lengths,
        manifest,
        '    if text != append_checksum(text[: -len(append_checksum(b""))]):\n',
        "    if False:\n",
    ),
    (
        "files of others are damage",
        checks.check_missing_and_extra,
        manifest,
        "    written = read_manifest(step_folder)\n",
        "    written = read_manifest(step_folder)\n"
        "    if len([p for p in step_folder.rglob('*') if p.is_file()]) > len(written) + 1:\n"
        "        raise DamagedError(f'{step_folder}: extra')\n",
    ),
    (
        "files of others are deleted",
        checks.check_strays,
        store,
        "        for listed in ({*names}, {MANIFEST}):",
        "        atomic_io.remove_folder(removed)\n        for listed in ():",
    ),
    (
        "files of others are forgotten after a crash",
        kills_beside_strays,
        store,
        "            self._delete_files(removed)\n",
        "            atomic_io.remove_folder(removed)\n",
    ),
    (
        "the newest checkpoint is taken unverified",
        checks.check_fallback,
        state,
        "    verify(step_folder)\n",
        "",
    ),
    (
        "a damaged checkpoint is skipped in silence",
        checks.check_fallback,
        store,
        "                    damaged.append(printable(error))\n",
        "",
    ),
    (
        "the optimizer's step counts are not saved",
        checks.check_round_trip,
        store,
        "OPTIMIZER: checkpoint.optimizer,",
        "OPTIMIZER: {n: t for n, t in checkpoint.optimizer.items() if t.dim()},",
    ),
    (
        "the optimizer's state is rounded",
        checks.check_round_trip,
        store,
        "OPTIMIZER: checkpoint.optimizer,",
        "OPTIMIZER: {n: t.bfloat16() for n, t in checkpoint.optimizer.items()},",
    ),
    (
        "the best checkpoint is removed",
        checks.check_pruning,
        store,
        "if best < (losses.get(step, math.inf), step):",
        "if True:",
    ),
    (
        "a checkpoint is pruned by a loss that is damaged",
        checks.check_pruning_of_damaged,
        state,
        "    verify(step_folder, only=[STATE])\n",
        "",
    ),
    (
        "a damaged checkpoint counts as kept",
        checks.check_pruning_of_damaged,
        store,
        "filter(self._is_whole, reversed(steps))",
        "reversed(steps)",
    ),
    (
        "a damaged best checkpoint counts as kept",
        checks.check_pruning_of_damaged,
        store,
        "if self._is_whole(entry[1])",
        "if True",
    ),
    ("the worst checkpoint is called best", checks.check_pruning, store, "min(losses)", "max(losses)"),
    (
        "a checkpoint that is pruned while it is read is called damaged",
        checks.check_readers,
        store,
        "                    if not holds_checkpoint(folder):\n                        break\n",
        "",
    ),
    (
        "a damaged newer checkpoint counts as kept",
        checks.check_pruning,
        store,
        " if step <= newest]",
        "]",
    ),
    (
        "a damaged step is not written anew",
        checks.check_pruning,
        store,
        "                self.remove(path, contents)\n        atomic_io.make_folder",
        "                return path\n        atomic_io.make_folder",
    ),
    (
        "there is no lock",
        checks.check_lock,
        lock,
        "        file_lock.acquire()\n",
        "        path.touch()\n",
    ),
    (
        "the lock is given back at once",
        checks.check_lock,
        lock,
        "        yield check\n",
        "        file_lock.release()\n        yield check\n",
    ),
    (
        "a run continues without its folder",
        checks.check_moved_folder,
        store,
        "            self._check_lock()\n",
        "            pass\n",
    ),
    (
        "a torn line is kept",
        checks.check_torn_lines,
        atomic_io,
        'line.endswith(b"\\n") and keep(line)',
        "keep(line)",
    ),
    (
        "a projection is not transposed",
        checks.check_transformers,
        hf_gpt2,
        '"attn.c_proj.weight", "mlp.c_fc.weight"',
        '"mlp.c_fc.weight"',
    ),
    (
        "pickles are read where safetensors are not found",
        hostile_weights,
        safetensors_io,
        '                file: Any = safe_open(path, framework="pt")\n',
        "                import pickle, contextlib\n"
        "                with contextlib.suppress(Exception):\n"
        "                    pickle.loads(path.read_bytes())\n"
        '                file: Any = safe_open(path, framework="pt")\n',
    ),
    (
        "a file that is no safetensors file ends in a traceback",
        hostile_weights,
        safetensors_io,
        "    except SafetensorError as error:\n",
        "    except ZeroDivisionError as error:\n",
    ),
    (
        "JSON may give a key twice",
        hostile_config,
        safetensors_io,
        "if len(values) != len(pairs):",
        "if False:",
    ),
    (
        "JSON may be nested without end",
        hostile_config,
        safetensors_io,
        "except RecursionError:",
        "except ZeroDivisionError:",
    ),
    (
        "an index may point anywhere",
        hostile_index,
        gpt2_directory,
        're.fullmatch(r"\\w[\\w.-]*\\.safetensors", shard)',
        "shard",
    ),
]


def pytest_generate_tests(metafunc):
    bugs = to_run(BUGS, SLOW, metafunc.config.getoption("--long"))
    metafunc.parametrize("bug", bugs, ids=[bug[0] for bug in bugs])


def test_the_checks_catch(bug, tmp_path):
    assert_caught(bug, tmp_path)
