"""Checkpoints made to do harm, each a change to a valid one.

A GPT-2 directory has no manifest; a step's folder is given a matching manifest, as an
attacker would do.
"""

import io
import json
import os
import pickle
import zipfile

from gptmini.checkpoint import manifest


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def tensor_file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def zipped_pickle(marker):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(marker)))
    return file.getvalue()


def weights(marker):
    """Contents of model.safetensors, by what is wrong with them."""
    huge = 2**62
    return {
        "a pickle": pickle.dumps(Evil(marker)),
        "a zipped pickle": zipped_pickle(marker),
        "an empty file": b"",
        "half a length": b"\x08\0\0",
        "a header of 2**64 bytes": b"\xff" * 8 + b"{}",
        "a header past the end": (100).to_bytes(8, "little") + b"{}",
        "no header": tensor_file(b""),
        "a header that is a list": tensor_file(b"[]"),
        "a header nested deeply": tensor_file(b'{"a":' * 100_000),
        "a header of 4 MiB": tensor_file({f"{i:x}": entry([0], 0, 0) for i in range(60_000)}),
        "a header with NaN": tensor_file(b'{"a": NaN}'),
        "a header with a number of 5,000 digits": tensor_file(b'{"a": ' + b"9" * 5000 + b"}"),
        "a header with a key twice": tensor_file(b'{"a": 1, "a": 1}'),
        "a header that is not UTF-8": tensor_file(b'{"\xff": 1}'),
        "metadata that is not text": tensor_file({"__metadata__": {"a": [1]}}),
        "tensors that overlap": tensor_file({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        "two tensors in one place": tensor_file({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
        "two tensors in one place, and spare bytes": tensor_file(
            {"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(16)
        ),
        "a gap": tensor_file({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
        "bytes past the last tensor": tensor_file({"a": entry([1], 0, 4)}, bytes(8)),
        "a tensor past the end": tensor_file({"a": entry([4], 0, 16)}, bytes(8)),
        "a tensor before the start": tensor_file({"a": entry([1], -4, 0)}),
        "a tensor backwards": tensor_file({"a": entry([1], 4, 0)}, bytes(4)),
        "offsets of 10**30": tensor_file({"a": entry([1], 10**30, 10**30 + 4)}, bytes(4)),
        "a tensor of 2**62 elements": tensor_file({"a": entry([huge], 0, 4 * huge)}),
        "a shape that overflows to 4 bytes": tensor_file({"a": entry([2**32, 2**32, 1], 0, 4)}, bytes(4)),
        "an overflowing shape with a zero": tensor_file({"a": entry([2**63, 2**63, 0], 0, 0)}),
        "a negative shape": tensor_file({"a": entry([-1, -1], 0, 4)}, bytes(4)),
        "a shape of a million axes": tensor_file({"a": entry([1] * 1_000_000, 0, 4)}, bytes(4)),
        "a shape of fractions": tensor_file({"a": entry([1.0], 0, 4)}, bytes(4)),
        "a shape of truths": tensor_file({"a": entry([True], 0, 4)}, bytes(4)),
        "a dtype that no model has": tensor_file({"a": entry([4], 0, 4, "F8_E8M0")}, bytes(4)),
        "an unknown dtype": tensor_file({"a": entry([1], 0, 4, "F31")}, bytes(4)),
        "a dtype that is a list": tensor_file({"a": entry([1], 0, 4, ["F32"])}, bytes(4)),
        "an entry that is a number": tensor_file({"a": 1}),
        "an entry with more keys": tensor_file({"a": {**entry([1], 0, 4), "url": "x"}}, bytes(4)),
        "a name with line ends": tensor_file({"a\n\x1b[2J": entry([1], 0, 4)}, bytes(4)),
        "no tensors": tensor_file({}),
    }


STRANGE = {
    "a dtype that no model has",
    "a header of 4 MiB",
    "a name with line ends",
    "a shape of a million axes",
    "an entry with more keys",
    "no tensors",
}
"""Weights that are safetensors all the same: names, shapes and dtypes are compared with what is needed."""


def configs(valid):
    """Contents of config.json, by what is wrong with them."""

    def changed(**changes):
        return json.dumps({**valid, **changes}).encode()

    return {
        "10**12 parameters": changed(n_layer=1024, n_embd=2**17, n_head=1, vocab_size=2**24),
        "10**12 layers": changed(n_layer=10**12),
        "a mask of 10**18 bytes": changed(n_positions=10**9),
        "the largest sizes there are": changed(n_positions=2**14, n_embd=2**17, vocab_size=2**24),
        "a size of 5,000 digits": changed(n_layer="x").replace(b'"x"', b"9" * 5000),
        "an infinite size": changed(n_layer="x").replace(b'"x"', b"1e999"),
        "sizes that are lists": changed(n_layer=[[1]]),
        "a size that is a text of a megabyte": changed(n_layer="9" * 2**20),
        "a negative size": changed(n_layer=-1),
        "no heads": changed(n_head=0),
        "code to load": changed(model_type="evil", auto_map={"AutoConfig": "evil.py"}),
        "another model's class": changed(model_type="../../etc/passwd"),
        "a version that is a list": changed(gptmini={"format_version": [1]}),
        "a later version": changed(gptmini={"format_version": 10**100}),
        "a key with line ends": changed(gptmini={"a\n\x1b[2J": 1}),
        "deep nesting": b'{"a":' * 100_000,
        "deep lists": b"[" * 100_000,
        "17 MiB": b'{"a": "' + b"x" * (17 * 2**20) + b'"}',
        "NaN": b'{"n_layer": NaN}',
        "a key twice": changed().replace(b"{", b'{"n_layer": 1, ', 1),
        "a list": b"[]",
        "nothing": b"",
        "not UTF-8": b"\xff\xfe\xfd",
    }


def indexes():
    """Contents of model.safetensors.index.json, by what is wrong with them."""

    def naming(shard):
        return json.dumps({"weight_map": {"wte.weight": shard}}).encode()

    return {
        "a path upwards": naming("../outside.safetensors"),
        "an absolute path": naming("/etc/passwd"),
        "a path of Windows": naming("C:\\outside.safetensors"),
        "a path into a folder": naming("a/b.safetensors"),
        "a zero byte": naming("a\0.safetensors"),
        "a hidden file": naming("..safetensors"),
        "a number": naming(1),
        "a shard that is missing": naming("missing.safetensors"),
        "a pickle": naming("pytorch_model.bin"),
        "itself": naming("model.safetensors.index.json"),
        "a map that is a list": b'{"weight_map": ["a.safetensors"]}',
        "no map": b"{}",
        "a line end": naming("a\n.safetensors"),
    }


def states(valid, marker):
    """Contents of training/state.json, by what is wrong with them."""

    def changed(**changes):
        return json.dumps({**valid, **changes}).encode()

    return {
        "a pickle": pickle.dumps(Evil(marker)),
        "a step that is text": changed(step="1"),
        "a negative step": changed(step=-1),
        "an infinite loss": changed(val_loss=0).replace(b'"val_loss": 0', b'"val_loss": 1e999'),
        "a loss that is NaN": changed(val_loss=float("nan")),
        "an unknown key": changed(run="rm"),
        "a scaler that is text": changed(grad_scaler={"scale": "x"}),
        "a config that is a list": changed(config=[]),
        "a later version": changed(format_version=2),
        "a version that is text": changed(format_version="1"),
        "deep nesting": b'{"a":' * 100_000,
    }


def manifests(valid):
    """Contents of manifest.json, with the checksum that a valid one has, by what is wrong with them."""

    def with_files(files):
        return json.dumps({"format_version": 1, "files": files}).encode()

    some = next(iter(valid["files"].values()))
    return {
        "a path upwards": with_files({**valid["files"], "../outside": some}),
        "an absolute path": with_files({**valid["files"], "/etc/passwd": some}),
        "no files": with_files({}),
        "files in a list": with_files([]),
        "a size that is text": with_files({name: {**some, "size": "1"} for name in valid["files"]}),
        "a digest that is a list": with_files({name: {**some, "sha256": []} for name in valid["files"]}),
        "a name with line ends": with_files({**valid["files"], "a\n\x1b[2J": some}),
        "a later version": json.dumps({**valid, "format_version": 2}).encode(),
        "a version that is a list": json.dumps({**valid, "format_version": [1]}).encode(),
        "an infinite version": json.dumps({**valid, "format_version": 0})
        .encode()
        .replace(b": 0", b": 1e999"),
        "a key twice": b'{"format_version": 1, "format_version": 1, "files": {}}',
        "deep nesting": b'{"a":' * 100_000,
    }


SPECIAL_FILES = {
    "a pipe": os.mkfifo,
    "a link to endless zeros": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a folder": lambda path: path.mkdir(),
}
"""What may stand where a file is expected."""


LINKS = {
    "a link to a file of the user": lambda path: path.symlink_to(__file__),
    "a link to a file without end": lambda path: path.symlink_to(_sparse_file(path)),
}
"""What the digest of a manifest keeps from being read."""


def _sparse_file(path):
    big = path.with_name("big")
    big.touch()
    os.truncate(big, 2**40)
    return big


def rewrite_manifest(step_folder):
    """Write the manifest that fits what is in the folder now."""
    (step_folder / "manifest.json").unlink()
    files = {
        str(path.relative_to(step_folder)): manifest._summarize([path.read_bytes()])
        for path in sorted(step_folder.rglob("*"))
        if path.is_file()
    }
    (step_folder / "manifest.json").write_bytes(manifest.manifest_bytes(files))


def with_checksum(text):
    """A manifest's text with the sha256 of itself, as a valid one has it."""
    return manifest.append_checksum(text.rstrip().removesuffix(b"}").rstrip())
