"""Training that starts from GPT-2 weights: transformers' folders, our checkpoints, names on the Hub."""

import errno
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import gptmini
from gptmini.checkpoint.state import Checkpoint, TrainingState
from gptmini.checkpoint.store import CheckpointStore
from gptmini.cli.main import main
from gptmini.config import Config, TokenizerConfig, load_config
from gptmini.data.batching import WindowSampler
from gptmini.data.corpus import open_corpus
from gptmini.data.prepare import prepare
from gptmini.data.tokenizers import build_tokenizer, load_tokenizer
from gptmini.errors import UserError
from gptmini.training.log_files import read_metrics
from gptmini.training.optim import learning_rate_factor
from gptmini.training.run import train

ROOT = Path(__file__).parent.parent


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"Sentence {i} says that {i} times {i} is {i * i}.\n" for i in range(300)))
    return path


@pytest.fixture
def gpt2(tmp_path, corpus):
    """A small GPT-2 directory, model and tokenizer written by transformers."""
    tokenizer = build_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), open_corpus(str(corpus)))
    (tmp_path / "ours").mkdir()
    for name, data in tokenizer.files().items():
        (tmp_path / "ours" / name).write_bytes(data)
    AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "gpt2")
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32}
    config = GPT2Config(**sizes, bos_token_id=299, eos_token_id=299)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def config_of(corpus, init_from, name="run", model=None, tokenizer=None, **changes):
    train = {
        "init_from": str(init_from), "out_dir": str(corpus.parent / name), "max_steps": 2, "batch_size": 4,
        "log_interval": 1, **changes,
    }  # fmt: skip
    return Config.model_validate(
        {
            "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 32, **(model or {})},
            "data": {"corpus": str(corpus)},
            **({"tokenizer": tokenizer} if tokenizer else {}),
            "optim": {"lr": 1e-3, "weight_decay": 0.1, "warmup_steps": 5},
            "train": train,
            "runtime": {"device": "cpu", "precision": "fp32", "threads": 1},
        }
    )


def checkpoint_folder(config):
    store = CheckpointStore(Path(config.train.out_dir), keep=1)
    return store.path(store.steps()[-1])


@pytest.mark.parametrize(
    ("n_layer", "n_head"), [(12, 12), (24, 16), (36, 20), (48, 25)], ids=["small", "medium", "large", "xl"]
)
def test_each_gpt2_goes_in_and_out_with_transformers_logits(n_layer, n_head, gpt2, tmp_path):
    """The four sizes in layers and heads, each head four wide: load, compare, save, load back."""
    torch.manual_seed(1)
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": 4 * n_head}
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=32, **sizes)).eval()
    theirs.save_pretrained(gpt2)
    model, tokenizer = gptmini.load(gpt2)
    tokens = torch.randint(300, (2, 32))
    with torch.inference_mode():
        expected = theirs(tokens).logits
        assert (model(tokens) - expected).abs().max() < 1e-5
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    state = TrainingState(
        step=1, tokens=1, config={}, data_digest="d", tokenizer_digest=tokenizer.digest, environment={}
    )
    store = CheckpointStore(tmp_path / "run", keep=1)
    saved = store.save(Checkpoint(1, weights, {}, state), model.config, tokenizer)
    back, same_tokenizer = gptmini.load(saved)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    assert same_tokenizer.digest == tokenizer.digest
    reloaded = GPT2LMHeadModel.from_pretrained(saved).eval()
    with torch.inference_mode():
        assert torch.equal(reloaded(tokens).logits, expected)


def test_twenty_steps_match_a_transformers_loop_step_for_step(gpt2, corpus):
    """The oracle: transformers' model, torch's AdamW, clipping by torch, the same batches and rates."""
    config = config_of(corpus, gpt2, max_steps=20, batch_size=4, eval_interval=20)
    train(config, quiet=True)
    found = [m for m in read_metrics(Path(config.train.out_dir) / "metrics.jsonl") if m["split"] == "train"]

    theirs = GPT2LMHeadModel.from_pretrained(gpt2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0).train()
    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    windows = WindowSampler(prepare(config.data, load_tokenizer(gpt2), 32).train, 32, seed=0)
    for step in range(1, 21):
        inputs, targets = windows.batch(windows.starts(step - 1, 4))
        loss = F.cross_entropy(theirs(inputs).logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * learning_rate_factor(config.optim, step, 20)
        optimizer.step()
        assert found[step - 1]["loss"] == pytest.approx(loss.item(), abs=2e-5), step
        assert found[step - 1]["grad_norm"] == pytest.approx(norm.item(), rel=1e-3), step
    assert found[-1]["loss"] < found[0]["loss"] - 0.1
    ours = GPT2LMHeadModel.from_pretrained(checkpoint_folder(config))
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # AdamW divides by the gradient's size, so rounding moves a weight whose gradient is near zero by up
        # to the rate: 20 steps of at most 1e-3 bound that, and all others agree far better
        assert (a - b).abs().mean() < 2e-5, name


def test_our_own_checkpoint_reads_a_new_text_with_its_own_tokenizer(gpt2, corpus, tmp_path):
    first = config_of(corpus, gpt2, "first")
    train(first, quiet=True)
    new = tmp_path / "new.txt"
    new.write_text("".join(f"{i} bottles of milk on the wall, take {i % 7} down.\n" for i in range(300)))
    second = config_of(new, first.train.out_dir, "second", model={"context_length": 16}, max_steps=1)
    train(second, quiet=True)
    _, tokenizer = gptmini.load(second.train.out_dir)
    assert tokenizer.digest == load_tokenizer(gpt2).digest
    saved = load_config(Path(second.train.out_dir) / "config.yaml")
    assert (saved.tokenizer.kind, saved.tokenizer.vocab_size) == ("bpe", 300)
    train(saved.model_copy(update={"train": saved.train.model_copy(update={"max_steps": 2})}), resume=True)


def test_the_shipped_finetuning_config_trains_from_a_folder(gpt2, corpus, tmp_path):
    torch.manual_seed(0)
    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 24, "n_positions": 1024, "vocab_size": 300}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(gpt2)
    changes = {
        "data.corpus": str(corpus), "train.init_from": str(gpt2), "train.out_dir": str(tmp_path / "run"),
        "model.n_embd": 24, "model.context_length": 64, "train.max_steps": 1, "train.eval_tokens": 64,
    }  # fmt: skip
    train(load_config(ROOT / "configs" / "finetune_gpt2.yaml", changes), quiet=True)
    assert gptmini.load(tmp_path / "run")[0].config.context_length == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": {"n_layer": 3, "n_embd": 8}},
            r"^model\.n_layer = 3, model\.n_embd = 8, but train\.init_from = .* has 2, 16$",
        ),
        ({"model": {"bias": False}}, r"^model\.bias = False, but train\.init_from"),
        ({"model": {"context_length": 33}}, r"context_length = 33: .* positions for 32 tokens only$"),
        (
            {"tokenizer": {"kind": "chars"}},
            r"^tokenizer\.kind = chars, but train\.init_from = .* brings a tokenizer with kind = bpe",
        ),
        (
            {"tokenizer": {"kind": "bpe", "vocab_size": 400}},
            r"^tokenizer\.vocab_size = 400, but .* with vocab_size = 300",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_one_line(gpt2, corpus, change, message):
    with pytest.raises(UserError, match=message):
        train(config_of(corpus, gpt2, **change), quiet=True)
    assert not (corpus.parent / "run").exists()


def test_weights_without_tokenizer_and_with_another_vocabulary_are_one_line(gpt2, corpus):
    for file in gpt2.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"^the tokenizer's vocab_size = 257, but train\.init_from = .* 300$"):
        train(config_of(corpus, gpt2, tokenizer={"kind": "bytes"}), quiet=True)


def test_embeddings_padded_past_the_tokenizer_are_taken_and_saved_without_padding(gpt2, corpus, capsys):
    """As many models on the Hub have them: 300 tokens, and rows up to a multiple of 64."""
    padded = GPT2LMHeadModel.from_pretrained(gpt2)
    padded.resize_token_embeddings(pad_to_multiple_of=64)
    assert padded.config.vocab_size == 320
    padded.save_pretrained(gpt2)
    model, tokenizer = gptmini.load(gpt2, device="cpu")
    assert model.config.vocab_size == len(tokenizer) == 300
    assert gptmini.evaluate(model, tokenizer, corpus.read_text()).loss > 0
    gptmini.save(corpus.parent / "again", model, tokenizer)
    assert GPT2LMHeadModel.from_pretrained(corpus.parent / "again").config.vocab_size == 300
    assert main(["evaluate", str(gpt2), "--corpus", str(corpus)]) == 0
    assert main(["export", str(gpt2), "--output", str(corpus.parent / "m.gguf")]) == 0
    # the padding is gone, in the resumed run too
    train(config_of(corpus, gpt2, max_steps=1), quiet=True)
    trained, _ = gptmini.load(corpus.parent / "run", device="cpu")
    assert torch.allclose(trained.token_embedding.weight, model.token_embedding.weight[:300], atol=1e-3)
    train(config_of(corpus, gpt2, max_steps=2), resume=True, quiet=True)
    assert gptmini.load(corpus.parent / "run", device="cpu")[0].config.vocab_size == 300


@pytest.fixture
def hub(gpt2):
    """A server on this machine that answers as the Hub does, for one model: someone/tiny-gpt2."""
    commit = "0" * 39 + "1"
    files = {path.name: path.read_bytes() for path in gpt2.iterdir()} | {"pytorch_model.bin": b"a pickle"}
    requested = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            requested.append(self.path)
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/someone/tiny-gpt2"):
                entries = [{"type": "file", "path": n, "size": len(d), "oid": n} for n, d in files.items()]
                siblings = [{"rfilename": name} for name in files]
                about = {"id": "someone/tiny-gpt2", "sha": commit, "siblings": siblings}
                self.answer(json.dumps(entries if "/tree/" in path else about).encode())
            elif path.startswith("/someone/tiny-gpt2/resolve/") and path.rpartition("/")[2] in files:
                self.answer(files[path.rpartition("/")[2]])
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def answer(self, body):
            self.send_response(200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{self.path}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", requested
        server.shutdown()
        thread.join()


def train_from_the_hub(tmp_path, corpus, endpoint, name, out_dir):
    args = f"--train.init-from {name} --train.out-dir {tmp_path / out_dir} --data.corpus {corpus}"
    args += " --model.n-layer 2 --model.n-head 2 --model.n-embd 16 --model.context-length 16"
    args += " --train.max-steps 1 --train.batch-size 2 --runtime.device cpu --quiet"
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *args.split()]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


def test_a_name_on_the_hub_is_fetched_once_and_never_its_pickles(hub, tmp_path, corpus, gpt2):
    endpoint, requested = hub
    done = train_from_the_hub(tmp_path, corpus, endpoint, "someone/tiny-gpt2", "run")
    assert (done.returncode, done.stderr) == (0, "")
    assert any(path.endswith("model.safetensors") for path in requested)
    assert not any("pytorch_model" in path for path in requested if "/resolve/" in path)
    _, tokenizer = gptmini.load(tmp_path / "run")
    assert tokenizer.digest == load_tokenizer(gpt2).digest
    offline = "http://127.0.0.1:9"  # no server listens there
    reloaded = train_from_the_hub(tmp_path, corpus, offline, "someone/tiny-gpt2", "again")
    assert (reloaded.returncode, reloaded.stderr) == (0, "")


def test_a_name_that_cannot_be_fetched_is_one_line_that_says_what_to_do(tmp_path, corpus):
    done = train_from_the_hub(tmp_path, corpus, "http://127.0.0.1:9", "someone/tiny-gpt2", "run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "someone/tiny-gpt2: no such folder" in done.stderr
    assert "hf download someone/tiny-gpt2" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "setting",
    ["HF_ENDPOINT=garbage", "HF_ENDPOINT=ftp://x", "https_proxy=socks5://x:1"],
)
def test_whatever_the_hub_and_its_client_raise_is_one_line(tmp_path, setting):
    code = "import gptmini, gptmini.errors\ntry: gptmini.load('someone/tiny-gpt2')\n"
    code += "except gptmini.errors.UserError as error: print(error)"
    name, _, value = setting.partition("=")
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), name: value}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith(
        "someone/tiny-gpt2: no such folder, and the Hugging Face Hub gives no model"
    )


def test_a_full_disk_while_downloading_is_not_blamed_on_the_name(monkeypatch):
    import huggingface_hub

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/blob")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(OSError, match="No space left on device: '/cache/blob'"):
        gptmini.load("someone/tiny-gpt2")
