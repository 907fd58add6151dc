"""Checkpoints in nanoGPT's format, made here; its model is written out below as the oracle."""

import io
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import gptmini
from gptmini.checkpoint.nanogpt import gelu_difference, read_meta, read_nanogpt
from gptmini.checkpoint.plain_pickle import read_pickle
from gptmini.cli.main import main
from gptmini.errors import DamagedError, UserError

ARGS = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 12,
    "bias": True,
    "vocab_size": 30,
    "dropout": 0.0,
}


def weights(args, generator):
    """A nanoGPT state dict: Linear weights as (out, in), no biases where bias is False."""
    C, shapes = args["n_embd"], {}
    for i in range(args["n_layer"]):
        block = {
            "ln_1": (C,), "attn.c_attn": (3 * C, C), "attn.c_proj": (C, C), "ln_2": (C,),
            "mlp.c_fc": (4 * C, C), "mlp.c_proj": (C, 4 * C),
        }  # fmt: skip
        for name, shape in block.items():
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[:1]}
    shapes |= {"wte.weight": (args["vocab_size"], C), "wpe.weight": (args["block_size"], C)}
    shapes |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    state = {
        f"transformer.{name}": 0.3 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
        if args["bias"] or not name.endswith("bias")
    }
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


def checkpoint(prefix="", **changes):
    args = ARGS | changes
    state = weights(args, torch.Generator().manual_seed(0))
    return {
        "model": {prefix + name: tensor for name, tensor in state.items()},
        "optimizer": {"state": {}, "param_groups": []},
        "model_args": args,
        "iter_num": 7,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "meta": None, "compile": True},
    }


def nanogpt_logits(checkpoint, tokens, gelu):
    """What nanoGPT's model gives for tokens (T,), straight from its state dict."""
    args = checkpoint["model_args"]
    w = {name.partition("transformer.")[2]: tensor for name, tensor in checkpoint["model"].items()}
    C, T = args["n_embd"], len(tokens)

    def linear(name, x):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(name, x):
        return F.layer_norm(x, (C,), w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)

    x = w["wte.weight"][tokens] + w["wpe.weight"][:T]
    for i in range(args["n_layer"]):
        q, k, v = (
            part.view(T, args["n_head"], -1).transpose(0, 1)
            for part in linear(f"h.{i}.attn.c_attn", norm(f"h.{i}.ln_1", x)).split(C, dim=1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(T, C)
        x = x + linear(f"h.{i}.attn.c_proj", y)
        x = x + linear(f"h.{i}.mlp.c_proj", gelu(linear(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", x))))
    return norm("ln_f", x) @ w["wte.weight"].T


@pytest.fixture
def save(tmp_path):
    def save(content):
        torch.save(content, tmp_path / "ckpt.pt")
        return tmp_path / "ckpt.pt"

    return save


def import_nanogpt(path):
    return read_nanogpt(path)[0]


PREFIXES = ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("bias", [True, False])
def test_the_model_is_nanogpts_with_gpt2s_gelu(save, prefix, bias):
    content = checkpoint(prefix, bias=bias)
    model = import_nanogpt(save(content))
    tokens = torch.randint(30, (12,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = nanogpt_logits(content, tokens, lambda x: F.gelu(x, approximate="tanh"))
        assert (model(tokens[None])[0] - expected).abs().max() < 1e-4


def test_how_much_the_exact_gelu_differs_is_measured(save):
    content = checkpoint()
    model = import_nanogpt(save(content))
    tokens = torch.randint(30, (1, 12), generator=torch.Generator().manual_seed(0))
    exact = torch.stack([nanogpt_logits(content, row, F.gelu) for row in tokens])
    with torch.inference_mode():
        expected = (model(tokens) - exact).abs().max().item()
    assert gelu_difference(model) == (
        pytest.approx(expected, rel=0.05),
        pytest.approx(exact.std().item(), rel=1e-3),
    )
    assert expected > 1e-4


def test_the_command_writes_a_gpt2_folder_and_tells_of_the_gelu(save, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    path = save(checkpoint("_orig_mod."))
    assert main(["import-nanogpt", str(path), str(tmp_path / "new" / "gpt2")]) == 0
    output = capsys.readouterr().out
    assert "nanoGPT computes the exact GELU" in output
    assert "no tokenizer written" in output
    model, tokenizer = gptmini.load(tmp_path / "new" / "gpt2")
    assert tokenizer is None
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "gpt2").eval()
    tokens = torch.arange(12)[None]
    with torch.inference_mode():
        assert (model(tokens) - theirs(tokens).logits).abs().max() < 1e-4
    assert main(["import-nanogpt", str(path), str(tmp_path / "new" / "gpt2")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_rows_that_pad_gpt2s_vocabulary_are_dropped(save):
    model = import_nanogpt(save(checkpoint(vocab_size=50304, n_layer=1)))
    assert model.config.vocab_size == 50257


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_would_execute_something_is_refused_and_executes_nothing(save, capsys):
    with pytest.raises(UserError, match="is not read in any other way") as refusal:
        import_nanogpt(save(checkpoint() | {"config": Harmful()}))
    assert "\n" not in str(refusal.value)
    assert capsys.readouterr().out == ""


def test_what_is_no_nanogpt_checkpoint_is_one_line(save, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        import_nanogpt(tmp_path / "nowhere.pt")
    buffer = io.BytesIO()
    torch.save(checkpoint(), buffer)
    (tmp_path / "half.pt").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"model": Harmful()}))
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for name in ("half.pt", "empty.pt", "old.pt", "junk.pt"):
        with pytest.raises(UserError, match=r"is damaged, and is not read in any other way$") as refusal:
            import_nanogpt(tmp_path / name)
        assert "\n" not in str(refusal.value)
    for content, message in [
        ({"weights": 1}, "it has no model_args and model"),
        ([1, 2], "it has no model_args and model"),
        (checkpoint() | {"model": {}}, r"tensor h\.0\.attn\.c_attn\.bias is missing"),
        (checkpoint() | {"model_args": ARGS | {"n_layer": 10**9}}, "n_layer = 1000000000"),
        (checkpoint() | {"model_args": ARGS | {"n_layer": 3}}, "is missing"),
        (checkpoint() | {"model_args": {}}, "n_layer"),
        (checkpoint() | {"model": {"module.x": torch.ones(2), "x": torch.ones(2)}}, "x is there twice, or"),
    ]:
        with pytest.raises(UserError, match=f"ckpt.pt: not a checkpoint of nanoGPT: .*{message}") as refusal:
            import_nanogpt(save(content))
        assert "\n" not in str(refusal.value)


# ------------------------------------------------------------------------------- files that lie about sizes


@pytest.fixture
def bounded():
    """Limit what a mistake may allocate, so that a failing test does not take the machine down."""
    import resource  # POSIX only

    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


BIG = {"n_layer": 1, "n_head": 1, "n_embd": 1024, "block_size": 8, "bias": False, "vocab_size": 1_500_000}


def expanded(shape):
    """A tensor of any shape that takes four bytes in a file."""
    return torch.zeros(1).expand(shape)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_small_file_that_asks_for_gigabytes_is_refused_before_they_are_taken(save, bounded):
    shapes = {name: tuple(t.shape) for name, t in weights(BIG | {"vocab_size": 2, "n_embd": 4}, None).items()}
    big = {
        name: expanded(tuple({4: 1024, 12: 3072, 16: 4096}.get(n, n) for n in s))
        for name, s in shapes.items()
    }
    big["transformer.wte.weight"] = big["lm_head.weight"] = expanded((1_500_000, 1024))
    path = save(checkpoint() | {"model_args": BIG, "model": big})
    assert path.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"its tensors would take 6,\d+,\d+,\d+ bytes, and the file has"):
        import_nanogpt(path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_views_of_one_record_take_its_memory_once(save, bounded):
    content = checkpoint()
    record = torch.zeros(2_000_000)
    content["model"] |= {f"view{i}": record[i : i + 1] for i in range(600)}
    with pytest.raises(UserError, match="tensor view0 has no place"):
        import_nanogpt(save(content))


def test_values_that_hold_one_another_twice_are_never_written_out(save):
    nested = ["x"]
    for _ in range(60):  # 2 ** 60 texts
        nested = [nested, nested]
    content = checkpoint()
    content["config"]["dataset"] = nested
    assert read_nanogpt(save(content))[1] == ""
    content["model_args"]["n_layer"] = nested
    with pytest.raises(UserError, match="n_layer"):
        import_nanogpt(save(content))
    pairs = b"K\x01" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))  # as a key, which is hashed
    with pytest.raises(UserError, match="other keys than numbers and texts"):
        read_pickle(b"\x80\x02}" + pairs + b"Ns.")


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The checkpoint with its records changed: `change` maps a name and its bytes to other bytes."""
    with zipfile.ZipFile(path) as old:
        records = {name: change(name, old.read(name)) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in records.items():
            new.writestr(name, data)
    return path


def test_records_that_are_compressed_too_short_or_damaged_are_refused(save):
    def shorter(name, data):
        return data[:-8] if "/data/" in name else data

    path = rewritten(save(checkpoint()), lambda name, data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="is compressed or longer"):
        import_nanogpt(path)
    for change, message in [
        (shorter, "is larger than its record in the file"),
        (lambda name, data: data.replace(b"wte", b"wtf"), "is missing"),
        (lambda name, data: data[:99], "no pickle, or damaged$"),
    ]:
        path = rewritten(save(checkpoint()), change)
        with pytest.raises(UserError, match=message):
            import_nanogpt(path)
    path = rewritten(save(checkpoint()), lambda name, data: data)
    data = path.read_bytes()
    central = data.index(b"PK\x01\x02")
    path.write_bytes(data[: central + 8] + b"\x01" + data[central + 9 :])  # of data.pkl: encrypted
    with pytest.raises(UserError, match="is compressed or longer"):
        import_nanogpt(path)
    path = save(checkpoint())
    whole = path.read_bytes()
    start = whole.index(checkpoint()["model"]["transformer.wpe.weight"].numpy().tobytes())
    path.write_bytes(whole[:start] + b"?" + whole[start + 1 :])
    with pytest.raises(UserError, match="is damaged, and is not read"):
        import_nanogpt(path)


@pytest.mark.filterwarnings("ignore")  # of torch, about sparse and quantized tensors
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda: torch.eye(30).to_sparse(), "_rebuild_sparse_tensor"),
        (lambda: torch.empty(30, 16, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (lambda: torch.quantize_per_tensor(torch.ones(30, 16), 1.0, 0, torch.qint8), "_rebuild_qtensor"),
        (lambda: torch.tensor(1.0), r"has shape \(\), but config\.json needs \(30, 16\)"),
        (lambda: torch.ones(30, 16, dtype=torch.int64), r"wte\.weight is there twice, or is no plain tensor"),
        (
            lambda: torch.ones(30, 16, dtype=torch.complex64),
            r"wte\.weight is there twice, or is no plain tensor",
        ),
        (lambda: torch.full((30, 16), torch.nan), "NaN"),
        (lambda: "text", r"wte\.weight is there twice, or is no plain tensor"),
    ],
)
def test_tensors_that_are_no_plain_weights_are_one_line(save, tensor, message):
    content = checkpoint()
    content["model"]["transformer.wte.weight"] = content["model"]["lm_head.weight"] = tensor()
    path = save(content)
    with pytest.raises((UserError, DamagedError), match=message) as refusal:
        import_nanogpt(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_any_strides_and_precision_and_shared_storage_are_read(save):
    content = checkpoint()
    expected = import_nanogpt(save(content))
    state = content["model"]
    state["transformer.h.0.mlp.c_fc.weight"] = state["transformer.h.0.mlp.c_fc.weight"].T.contiguous().T
    state["transformer.wpe.weight"] = state["transformer.wpe.weight"].double()
    both = torch.cat([state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]])
    state["transformer.ln_f.weight"], state["transformer.ln_f.bias"] = both[:16], both[16:]
    state["transformer.h.1.ln_1.weight"] = torch.nn.Parameter(state["transformer.h.1.ln_1.weight"])
    found = import_nanogpt(save(content))
    assert all(map(torch.equal, found.parameters(), expected.parameters()))


# ------------------------------------------------------------------------------------------ a character model

SHAKESPEARE = "First Citizen:\nBefore we proceed any further, hear me speak.\n"


def character_vocabulary(text=SHAKESPEARE):
    """What nanoGPT's data/shakespeare_char/prepare.py puts into meta.pkl."""
    chars = sorted(set(text))
    stoi = {c: i for i, c in enumerate(chars)}
    return {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": stoi}


@pytest.fixture
def nanogpt_folder(tmp_path):
    """A checkout of nanoGPT in which the first example was prepared and trained."""
    meta = character_vocabulary()
    (tmp_path / "nanoGPT" / "data" / "shakespeare_char").mkdir(parents=True)
    (tmp_path / "nanoGPT" / "out-shakespeare-char").mkdir()
    (tmp_path / "nanoGPT" / "data" / "shakespeare_char" / "meta.pkl").write_bytes(pickle.dumps(meta))
    content = checkpoint("_orig_mod.", vocab_size=meta["vocab_size"], bias=False)
    torch.save(content, tmp_path / "nanoGPT" / "out-shakespeare-char" / "ckpt.pt")
    return tmp_path / "nanoGPT"


@pytest.mark.parametrize(
    "place", ["of nanoGPT", "beside the checkpoint", "by --meta", "in the current folder"]
)
def test_a_character_model_comes_with_its_tokenizer_and_writes_the_same_text(
    nanogpt_folder, tmp_path, monkeypatch, capsys, place
):
    path, made = (
        nanogpt_folder / "out-shakespeare-char" / "ckpt.pt",
        nanogpt_folder / "data" / "shakespeare_char",
    )
    options = []
    if place == "beside the checkpoint":
        (made / "meta.pkl").rename(path.parent / "meta.pkl")
    elif place == "by --meta":
        (made / "meta.pkl").rename(tmp_path / "other.pkl")
        options = ["--meta", str(tmp_path / "other.pkl")]
    elif place == "in the current folder":
        monkeypatch.chdir(nanogpt_folder)
        path = path.rename(tmp_path / "ckpt.pt")
    assert main(["import-nanogpt", str(path), str(tmp_path / "gpt2"), *options]) == 0
    model, tokenizer = gptmini.load(tmp_path / "gpt2", device="cpu")
    meta = character_vocabulary()
    assert tokenizer.encode(SHAKESPEARE) == [meta["stoi"][c] for c in SHAKESPEARE]
    assert tokenizer.end_of_text is None
    assert len(tokenizer) == model.config.vocab_size == meta["vocab_size"]

    content = torch.load(path, weights_only=True)
    content["model"] = {name.removeprefix("_orig_mod."): t for name, t in content["model"].items()}
    ids = [meta["stoi"][c] for c in "First "]
    while len(ids) < 12:  # nanoGPT's context
        logits = nanogpt_logits(content, torch.tensor(ids), lambda x: F.gelu(x, approximate="tanh"))
        ids.append(int(logits[-1].argmax()))
    capsys.readouterr()
    greedy = ["--temperature", "0", "--max-new-tokens", "6", "--device", "cpu"]
    assert main(["generate", str(tmp_path / "gpt2"), "--prompt", "First ", *greedy]) == 0
    assert capsys.readouterr().out == "".join(meta["itos"][i] for i in ids) + "\n"
    texts = [next(gptmini.generate_text(model, tokenizer, p, max_new_tokens=9, seed=1)) for p in ("", "\n")]
    assert texts[0] == texts[1]  # without a prompt, from a line break as in nanoGPT


def test_a_dataset_name_cannot_lead_out_of_the_data_folder(save, tmp_path, capsys):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "meta.pkl").write_bytes(pickle.dumps(character_vocabulary()))
    content = checkpoint()
    content["config"]["dataset"] = "../secret"
    assert main(["import-nanogpt", str(save(content)), str(tmp_path / "gpt2")]) == 0
    assert "no tokenizer written" in capsys.readouterr().out


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_plain_values_is_read(protocol):
    shared = ["x" * 300, "é🙂", 3.5]
    value = {
        "a": shared, "b": (shared, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), -1: None, 2**70: True,
        300: -(2**40), 70_000: False, "itos": {i: chr(i) for i in range(1500)}, "empty": [{}, [], ()],
    }  # fmt: skip
    assert read_pickle(pickle.dumps(value, protocol)) == value


class Calls:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "harmful",
    [Calls(print, "executed"), Calls(eval, "print('executed')"), Path("/etc/passwd"), bytearray(3), {1, 2}],
)
def test_a_meta_file_that_is_more_than_plain_values_is_refused_and_executes_nothing(
    tmp_path, capsys, protocol, harmful
):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(character_vocabulary() | {"x": harmful}, protocol))
    with pytest.raises(
        UserError, match=r"meta\.pkl: not the characters of a nanoGPT dataset: it "
    ) as refusal:
        read_meta(tmp_path / "meta.pkl")
    assert "\n" not in str(refusal.value)
    assert capsys.readouterr().out == ""


def test_a_meta_file_of_other_values_or_none_is_one_line(tmp_path, save, capsys):
    for content in [
        [], {}, {"itos": {}}, {"itos": {0: "a", 2: "b"}}, {"itos": {0: "a", 1: "a"}}, {"itos": {0: "ab"}},
        {"itos": {0: b"a"}}, {"itos": {"a": 0}}, {"itos": ["a"]}, {"itos": {0: "\ud800"}},
    ]:  # fmt: skip
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=r"meta\.pkl: not the characters of a nanoGPT dataset: "):
            read_meta(tmp_path / "meta.pkl")
    whole = pickle.dumps(character_vocabulary())
    for data in (b"", b"text", whole[:100], whole[:-1], b"(" * 9, b"0.", b"\x80\x04h\x05.", b"\x80\x04}Ns."):
        (tmp_path / "meta.pkl").write_bytes(data)
        with pytest.raises(UserError, match=r"meta\.pkl: not the characters"):
            read_meta(tmp_path / "meta.pkl")
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "fifo.pkl")
        with pytest.raises(UserError, match=r"fifo\.pkl: not the characters .* not a regular file"):
            read_meta(tmp_path / "fifo.pkl")
    with pytest.raises(UserError, match=r"nowhere\.pkl: cannot be read: No such file"):
        read_meta(tmp_path / "nowhere.pkl")
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(character_vocabulary("".join(map(chr, range(50, 90))))))
    assert main(["import-nanogpt", str(save(checkpoint())), str(tmp_path / "gpt2")]) == 2
    assert "the tokenizer has 40 tokens, but the model's embedding only 30 rows" in capsys.readouterr().err
    assert not (tmp_path / "gpt2").exists()


KILLED = """
import os, sys
from gptmini import atomic_io
from gptmini.cli.main import main
create_file = atomic_io.create_file
def killed(path, *args, **options):
    create_file(path, *args, **options)
    os.kill(os.getpid(), int(os.environ["SIGNAL"]))
atomic_io.create_file = killed
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_import_leaves_nothing_that_the_next_one_does_not_remove(save, tmp_path, number):
    path = save(checkpoint())
    command = [sys.executable, "-c", KILLED, "import-nanogpt", str(path), str(tmp_path / "gpt2")]
    found = subprocess.run(command, env=os.environ | {"SIGNAL": str(int(number))}, capture_output=True)
    assert found.returncode == (130 if number == signal.SIGINT else -number)
    left = {entry.name for entry in tmp_path.iterdir()} - {"ckpt.pt"}
    assert len(left) == (1 if number == signal.SIGKILL else 0)
    assert main(["import-nanogpt", str(path), str(tmp_path / "gpt2")]) == 0
    assert {entry.name for entry in tmp_path.iterdir()} == {"ckpt.pt", "gpt2"}
