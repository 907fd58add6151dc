"""The engine in the page against PyTorch: the same ids, logits, texts and views, in Chromium, offline."""

import json
import math
import random
import unicodedata

import pytest
import torch

from gptmini.checkpoint.gpt2_directory import save
from gptmini.checkpoint.store import load_model
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import CharTokenizer, Tokenizer, load_gpt2
from gptmini.errors import UserError
from gptmini.generation.attention import record_attention
from gptmini.generation.generate import window_start
from gptmini.generation.sampling import Sampling
from gptmini.generation.streaming import StreamDecoder, continue_texts
from gptmini.generation.text_mask import forbidden_tokens
from gptmini.model import GPT
from gptmini.report.one_file import import_map, read_source
from gptmini.web.export import embed, read_model

TEXT = "".join(f"It's {i}; it says: {i} times {i} is {i * i}, née Größe, 日本 😀.\n" for i in range(200))
MODULES = ("model.js", "sampling.js", "tokenizers.js", "weights.js", "local_engine.js")
KINDS = ("bytes", "bpe", "chars", "fallback", "gpt2")


def build_tokenizer(kind):
    if kind == "fallback":
        return Tokenizer.train("It's 7; it says", "chars", byte_fallback=True)
    if kind == "gpt2":
        try:
            return load_gpt2()
        except UserError:
            pytest.skip("needs GPT-2's vocabulary, from the network or TIKTOKEN_CACHE_DIR")
    return Tokenizer.train(TEXT, kind, 400 if kind == "bpe" else None)


def random_model(tokenizer, **sizes):
    """Weights as far from each other as in a trained model, so that no two tokens tie."""
    torch.manual_seed(0)
    shape = {"n_layer": 3, "n_head": 4, "n_embd": 64, "context_length": 64, **sizes}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


class Page:
    """A page that holds a model and nothing but the engine; `run` computes there."""

    def __init__(self, chromium, folder, model, tokenizer, dtype="float16"):
        save(folder, model, tokenizer)
        self.model, self.tokenizer = model, tokenizer
        modules = import_map({name: read_source(name, "gptmini.web") for name in MODULES})
        head = f'<!doctype html><meta charset="windows-1252"><script type="importmap">{modules}</script>'
        file = folder / "page.html"
        file.write_bytes(head.encode("ascii") + b"".join(embed(*read_model(folder, dtype))))
        context = chromium.new_context(offline=True)
        context.set_default_timeout(0)  # a busy machine takes its time
        self.page = context.new_page()
        self.page.goto(file.as_uri())
        self.run(
            'window.engine = await (await import("gptmini/local_engine.js")).openEngine();'
            "window.all = async (steps) => { const found = [];"
            "for await (const step of steps) found.push(step); return found; }; return null;"
        )

    def run(self, code, argument=None):
        """What `code` returns, the body of an asynchronous function of `argument`."""
        # as JSON, for Playwright takes seconds for some thousand objects
        function = (
            f"async (text) => JSON.stringify(await (async (argument) => {{ {code} }})(JSON.parse(text)))"
        )
        return json.loads(self.page.evaluate(function, json.dumps(argument)) or "null")

    def generate(self, ids, max_new_tokens, **options):
        options = {"max_new_tokens": max_new_tokens, **options}
        return self.run("return all(engine.generate(null, ...argument));", [ids, options])


@pytest.fixture
def open_page(chromium, tmp_path):
    pages = []

    def make(kind="bpe", dtype="float16", **sizes):
        tokenizer = kind if isinstance(kind, Tokenizer) else build_tokenizer(kind)
        model = random_model(tokenizer, **sizes)
        pages.append(Page(chromium, tmp_path / str(len(pages)), model, tokenizer, dtype))
        model.half().float()  # in place: what the page computes with
        return pages[-1]

    yield make
    for page in pages:
        page.page.context.close()


def continue_ids(page, ids, max_new_tokens, **options):
    steps = continue_texts(page.model, [ids], [StreamDecoder(page.tokenizer)], max_new_tokens, **options)
    return [token for _, token, _ in steps]


@torch.no_grad()
def logits_of(page, ids):
    return page.model(torch.tensor([ids]))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_200_greedy_tokens_and_all_logits_are_those_of_pytorch(open_page, kind):
    page = open_page(kind)
    ids = page.tokenizer.encode("It's 7; it says")
    steps = page.generate(ids, 200, temperature=0)
    found = [step["token"]["id"] for step in steps]
    assert found == continue_ids(page, ids, 200, temperature=0.0)  # through three windows of the context
    assert len(set(found)) > 5
    logits = page.run("return [...(await engine.logits(argument))];", ids)
    torch.testing.assert_close(torch.tensor(logits), logits_of(page, ids)[-1], atol=1e-5, rtol=1e-5)
    # each step: what the model itself gave the token, and the 20 likeliest
    probabilities = logits_of(page, ids)[-1].softmax(-1)
    assert math.isclose(steps[0]["probability"], probabilities[found[0]], rel_tol=1e-4)
    top = [(token["id"], p) for token, p in steps[0]["top"]]
    assert [token for token, _ in top] == probabilities.topk(20).indices.tolist()
    assert [p for _, p in top] == pytest.approx(probabilities.topk(20).values.tolist(), rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3},
    ],
)
def test_the_same_seed_gives_the_same_tokens_as_gptmini_generate(open_page, options):
    page = open_page("bpe", bias=False)
    ids = page.tokenizer.encode("It's")
    for seed in (0, 2**53 - 1):
        found = [step["token"]["id"] for step in page.generate(ids, 90, seed=seed, **options)]
        assert found == continue_ids(page, ids, 90, seed=seed, **options), seed


def test_each_filter_is_that_of_sampling_py(open_page):
    page = open_page("bytes")
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        logits = 3 * torch.randn(1, 50, generator=generator)
        logits[0, 7] = logits[0, 3]  # a tie
        ids = torch.randint(50, (9,), generator=generator).tolist()
        for name, option, value in (
            ("keep_top_k", "top_k", 5),
            ("keep_top_k", "top_k", 99),
            ("keep_top_p", "top_p", 0.6),
            ("keep_min_p", "min_p", 0.1),
            ("penalize_repetition", "repetition_penalty", 1.7),
        ):
            arguments = [ids, value] if name == "penalize_repetition" else [value]
            call = """
                const sampling = await import("gptmini/sampling.js"), [name, logits, rest] = argument;
                const kept = sampling[name](Float32Array.from(logits), ...rest);
                return Array.from(kept, (logit) => (logit > -Infinity ? logit : "-inf"));"""
            found = page.run(call, [name, logits[0].tolist(), arguments])
            found = torch.tensor([[float(logit) for logit in found]])
            assert torch.equal(found, Sampling(**{option: value}).filter(logits, [ids])), name


def test_random_numbers_are_pythons(open_page):
    page = open_page("bytes")
    for seed in (0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1):
        code = 'const { Random } = await import("gptmini/sampling.js"); const random = new Random(argument);'
        found = page.run(f"{code} return Array.from({{ length: 700 }}, () => random.random());", str(seed))
        theirs = random.Random(seed)
        assert found == [theirs.random() for _ in range(700)], seed


def random_texts(count, alphabet):
    """Texts of words, spaces and signs of many scripts, of one part of Unicode, or of the alphabet alone."""
    rng = random.Random(0)
    common = (
        "  \t\n\r'sdt1290.,-éßñ日本語한글عربية😀👩½²٣_\u00a0\u2003\u3000\u0085\u200b\u200d\ufeff\u001c\u0000"
    )
    assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    for i in range(count):
        letters = (
            alphabet
            if i % 3 == 0
            else common + alphabet
            if i % 3 == 1
            else rng.sample(assigned, 20) + [" "] * 5
        )
        yield "".join(rng.choices(letters, k=rng.randrange(60)))


@pytest.mark.parametrize("kind", KINDS)
def test_texts_get_the_ids_of_the_tokenizer(open_page, kind, long):
    page = open_page(kind)
    texts = list(random_texts(10_000 if long else 300, "It's 7; it says"))
    texts += ["", "a" * 3000, " " * 500 + "x" + " " * 300, "we'll've'S it'd 'tis x\u0301", "<|endoftext|>"]
    if kind == "chars":
        texts = ["".join(c for c in text if c in page.tokenizer.characters) for text in texts]
    code = """
        const ids = async (text) => (await engine.tokenize(null, text)).map(({ id }) => id);
        return Promise.all(argument.map(ids));"""
    assert page.run(code, texts) == [page.tokenizer.encode(text) for text in texts]


def test_tokens_are_described_and_an_unknown_character_is_named(open_page):
    page = open_page("chars")
    code = "try { return await engine.tokenize(null, argument) } catch (error) { return error.message }"
    assert page.run(code, "日!").startswith('the character "!" (U+0021) is not among the ')
    assert page.run(code, "日") == [{"id": page.tokenizer.encode("日")[0], "text": "日", "special": False}]
    page = open_page("bytes")
    parts = page.run(code, "é")
    assert [(part["text"], part["bytes"]) for part in parts] == [("\ufffd", [0xC3]), ("\ufffd", [0xA9])]
    end = page.run("return engine.tokenizer.describe(256);")
    assert end == {"id": 256, "text": "<|endoftext|>", "special": True}


def test_tokens_that_would_break_utf8_are_masked_out_as_in_text_mask(open_page):
    page = open_page("bpe")
    inside = [token for token in page.tokenizer.tokens if len(token) > 1 and not token.isascii()]
    assert any(b"\x80" <= token < b"\xc0" for token in inside), "a token that begins within a character"
    byte_ids = [page.tokenizer.tokens.index(bytes([byte])) for byte in range(256)]
    beginnings = (
        b"",
        *(bytes([byte]) for byte in b"\xc3\xe0\xe2\xed\xf0\xf1\xf4"),
        b"\xe2\x82",
        b"\xf0\x9f\x98",
    )
    for begun in beginnings:
        for before in (b"", b"a", "é€😀".encode()):
            ids = [byte_ids[byte] for byte in before + begun]
            found = page.run("return [...engine.tokenizer.forbidden(argument)];", ids)
            expected = forbidden_tokens(page.tokenizer, 400, torch.device("cpu"), [begun])
            assert found == expected.int().tolist(), (before, begun)


def test_a_text_starts_and_ends_as_documents_do(open_page):
    page = open_page("bytes")
    page.run("engine.gpt.lm_head.bias = new Float32Array(257).fill(-50); engine.gpt.lm_head.bias[256] = 50;")
    # end of text is never chosen behind end of text, nor within a character; elsewhere it ends the text
    ids = [step["token"]["id"] for step in page.generate([], 9, temperature=0)]
    assert ids[-1] == 256
    assert ids[:-1] == continue_ids(page, [256], len(ids) - 1, temperature=0.0)
    assert len(page.tokenizer.decode(ids)) == 1
    tokenizer = CharTokenizer("abc")
    tokenizer.first_token = 1
    page = open_page(tokenizer)
    first, *others = page.generate([], 5, temperature=0)
    assert (first["token"]["text"], first["probability"], len(others)) == ("b", None, 5)
    assert [step["token"]["id"] for step in others] == continue_ids(page, [1], 5, temperature=0.0)


def test_computations_side_by_side_and_repeated_ones_do_not_disturb_each_other(open_page):
    page = open_page("bpe")
    ids = page.tokenizer.encode("It's 5; it says: 5 times 5 is")
    page.run("engine.chunk = 3;")  # so that the others have their turns within a prompt
    alone = page.generate(ids, 40, seed=1)
    next_alone = page.run("return engine.next(null, argument);", ids)
    assert next_alone["top"] == alone[0]["top"]
    code = """
        const [ids, options] = argument, other = ids.slice(2);
        const together = await Promise.all([
          all(engine.generate(null, ids, options)), all(engine.generate(null, other, options)),
          engine.next(null, ids), engine.inspect(null, ids), all(engine.generate(null, ids, options)),
        ]);
        return [together[0], together[4], together[2]];"""
    assert page.run(code, [ids, {"max_new_tokens": 40, "seed": 1}]) == [alone, alone, next_alone]


def test_an_aborted_text_stops(open_page):
    page = open_page("bpe")
    code = """
        const stop = new AbortController(), found = [];
        for await (const step of engine.generate(null, [5], { max_new_tokens: 1e6, signal: stop.signal })) {
          found.push(step.token.id);
          if (found.length === 3) stop.abort();
        }
        return found.length;"""
    assert page.run(code) == 3
    stopped = "try { await engine.next(null, [5], AbortSignal.abort()) } catch (error) { return error.name }"
    assert page.run(stopped) == "AbortError"


def test_the_views_show_what_pytorch_computes(open_page):
    page = open_page("bpe", context_length=256)
    ids = page.tokenizer.encode(TEXT)[:140]
    page.run("engine.chunk = 48;")  # in three turns
    code = """
        const found = await engine.inspect(null, argument);
        const attention = [], maps = [...(await found.attention_maps())];
        for (let i = 0; i < 12; i++) attention.push([...(await found.attention(Math.floor(i / 4), i % 4))]);
        return { ...found, attention, maps };"""
    found, ids = page.run(code, ids), ids[-128:]
    assert [token["id"] for token in found["tokens"]] == ids
    residual = []
    for block in page.model.blocks:
        block.register_forward_hook(lambda block, given, x: residual.append(x))
    with record_attention(page.model) as weights:
        logits = logits_of(page, ids)
    attention = torch.tensor(found["attention"]).view(3, 4, 128, 128)
    assert (attention.sum(-1) - 1).abs().max() < 1e-5
    assert (attention - torch.cat(weights)).abs().max() < 1e-5
    assert found["maps"] == (attention.flatten() * 255).to(torch.uint8).tolist()
    bits = -logits.log_softmax(-1)[range(127), ids[1:]] / math.log(2)
    assert found["surprisal"][0] is None
    assert found["surprisal"][1:] == pytest.approx(bits.tolist(), abs=1e-4)
    embedded = page.model.token_embedding.weight[ids] + page.model.position_embedding.weight[:128]
    for layer, x in enumerate([embedded, *(x[0] for x in residual)]):
        with torch.no_grad():
            top = page.model.lm_head(page.model.ln_f(x)).softmax(-1).topk(5)
        shown = [[(token["id"], p) for token, p in position] for position in found["lens"][layer]]
        assert [[token for token, _ in five] for five in shown] == top.indices.tolist(), layer
        assert torch.tensor([[p for _, p in five] for five in shown]).allclose(top.values, atol=1e-5)


def test_neighbors_have_the_largest_cosine(open_page):
    page = open_page("bpe")
    found = page.run("return engine.neighbors(null, 42);")
    table = page.model.token_embedding.weight.detach()
    cosines = torch.cosine_similarity(table, table[42], dim=-1)
    cosines[42] = -2
    assert [token["id"] for token, _ in found] == cosines.topk(20).indices.tolist()
    assert [cosine for _, cosine in found] == pytest.approx(cosines.topk(20).values.tolist(), abs=1e-5)


def test_int8_rounds_each_row_and_computes_with_what_it_rounded(open_page, tmp_path):
    page = open_page("bpe", dtype="int8")
    exact, _ = load_model(tmp_path / "0")
    ids = page.tokenizer.encode("It's 5; it says: 5")
    logits = page.run("return [...(await engine.logits(argument))];", ids)
    for name, values in exact.state_dict().items():
        if values.dim() == 2 and name != "position_embedding.weight":
            scales = values.abs().amax(dim=1, keepdim=True) / 127
            rounded = (values / scales).round() * scales
        else:
            rounded = values.half().float()
        page.model.state_dict()[name].copy_(rounded)
    torch.testing.assert_close(torch.tensor(logits), logits_of(page, ids)[-1], atol=1e-4, rtol=1e-4)
    found = [step["token"]["id"] for step in page.generate(ids, 50, temperature=0)]
    assert found == continue_ids(page, ids, 50, temperature=0.0)
    nearest = page.run("return engine.neighbors(null, 42);")
    table = page.model.token_embedding.weight.detach()
    cosines = torch.cosine_similarity(table, table[42], dim=-1)
    assert [cosine for _, cosine in nearest] == pytest.approx(cosines.topk(21).values[1:].tolist(), abs=1e-5)


def test_the_window_jumps_as_in_generate_py(open_page):
    page = open_page("bytes")
    code = """
        const { window_start } = await import("gptmini/local_engine.js");
        return argument.map(([length, context]) => window_start(length, context));"""
    cases = [[length, context] for context in (1, 2, 7, 64) for length in range(1, 200)]
    assert page.run(code, cases) == [window_start(length, context) for length, context in cases]
