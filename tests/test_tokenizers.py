import errno
import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer
from transformers import AutoTokenizer, GPT2TokenizerFast

from gptmini.config import TokenizerConfig
from gptmini.data.corpus import Chunk, Corpus
from gptmini.data.datasets import cache_folder
from gptmini.data.documents import Document
from gptmini.data.tokenizers import Tokenizer, build, build_tokenizer, load_tokenizer
from gptmini.errors import DamagedError, UserError

TEXT = "The quick brown fox, the lazy dog; the end.\n\n    Don't stop: 12 345 times ünïcödé 你好 🙂\n" * 30


def text_corpus(text: str | bytes = TEXT) -> Corpus:
    data = text.encode() if isinstance(text, str) else text
    return Corpus("a text", (lambda: iter([Document("a.txt", [data])]),))


def chunk(data: bytes) -> Chunk:
    return Chunk(data, "x", 0, ends_document=True)


def built(kind, text=TEXT, vocab_size=None):
    return build_tokenizer(TokenizerConfig(kind=kind, vocab_size=vocab_size), text_corpus(text))


TOKENIZERS = {"bytes": built("bytes"), "bpe": built("bpe", vocab_size=400), "chars": built("chars")}


FALLBACK = build_tokenizer(TokenizerConfig(kind="chars", byte_fallback=True), text_corpus("abc é"))


def saved(tokenizer, folder):
    folder.mkdir(exist_ok=True)
    for name, data in tokenizer.files().items():
        (folder / name).write_bytes(data)
    return folder


# ---------------------------------------------------------------------------------------- the public class


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_is_trained_on_a_text_several_texts_or_a_file(kind, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    size = np.int64(400) if kind == "bpe" else None
    half = len(TEXT) // 2  # between two lines, so that no word is cut
    for texts in (TEXT, [TEXT[:half], TEXT[half:]], iter([TEXT]), tmp_path / "a.txt"):
        assert Tokenizer.train(texts, kind, size).digest == TOKENIZERS[kind].digest


def test_training_learns_byte_pairs_unless_told_otherwise():
    numbers = " ".join(map(str, range(5000))) * 2
    assert (Tokenizer.train(numbers).kind, len(Tokenizer.train(numbers))) == ("bpe", 1024)
    assert Tokenizer.train(["abc", " é"], "chars", byte_fallback=True).digest == FALLBACK.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "words"}, "Tokenizer.train: kind = 'words': needs"),
        ({"kind": "gpt2"}, "Tokenizer.train: kind = gpt2: has learned already"),
        ({"vocab_size": 100}, "Tokenizer.train: vocab_size = 100: needs"),
        ({"vocab_size": 300.5}, "Tokenizer.train: vocab_size = 300.5: needs"),
        ({"vocab_size": 10**12}, "vocab_size = 1000000000000: needs .* at most 1,000,000"),
        ({"kind": "chars", "vocab_size": 300}, "vocab_size = 300 is for kind bpe only"),
    ],
)
def test_training_refuses_what_the_kind_does_not_have(options, message):
    with pytest.raises(UserError, match=message):
        Tokenizer.train(TEXT, **options)


@pytest.mark.parametrize("texts", [b"bytes", None, 7, ["a", 8]])
@pytest.mark.parametrize("kind", ["bpe", "chars"])
def test_training_refuses_what_is_no_text(kind, texts):
    with pytest.raises(
        UserError, match=r"Tokenizer.train takes a text \(str\), several, or .*, not (int|None)"
    ):
        Tokenizer.train(texts, kind)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_saved_tokenizer_is_loaded_from_a_path_or_its_text_also_below_home(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    TOKENIZERS[kind].save("~/new/folder")
    for folder in ("~/new/folder", tmp_path / "new" / "folder", str(tmp_path / "new" / "folder")):
        assert Tokenizer.load(folder).digest == TOKENIZERS[kind].digest


def test_loading_from_a_folder_without_tokenizer_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"holds no tokenizer: it needs tokenizer\.json, or vocab\.json"):
            Tokenizer.load(folder)


def test_ids_are_decoded_from_lists_arrays_tensors_and_single_ids():
    tokenizer, ids = TOKENIZERS["bpe"], TOKENIZERS["bpe"].encode("the end")
    for given_ids in (ids, tuple(ids), iter(ids), np.array(ids, dtype=np.uint16), torch.tensor(ids)):
        assert tokenizer.decode(given_ids) == "the end"
    assert tokenizer.decode([np.int64(i) for i in ids]) == "the end"
    assert tokenizer.decode(list(torch.tensor(ids))) == "the end"
    first = tokenizer.decode(ids[:1])
    assert first == tokenizer.decode(ids[0]) == tokenizer.decode(np.uint16(ids[0]))
    assert first == tokenizer.decode(torch.tensor(ids[0]))
    assert tokenizer.decode([]) == tokenizer.decode(torch.tensor([], dtype=torch.int64)) == ""


@pytest.mark.parametrize(
    "ids",
    [[[1, 2]], np.array([[1, 2]]), torch.tensor([[1, 2]]), [torch.tensor([1, 2])], [1.0], 2.5, "ab", None],
)
def test_what_is_not_the_ids_of_one_text_is_refused_with_what_to_do(ids):
    with pytest.raises(UserError, match=r"one text, of shape \(T,\): decode each row by itself"):
        TOKENIZERS["bpe"].decode(ids)


@pytest.mark.parametrize("text", [b"bytes", None, 7, ["a", "b"]])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_only_a_text_can_be_encoded(kind, text):
    with pytest.raises(UserError, match=rf"encode takes a text \(str\), not {type(text).__name__}"):
        TOKENIZERS[kind].encode(text)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_is_as_long_as_its_vocabulary(kind):
    assert len(TOKENIZERS[kind]) == TOKENIZERS[kind].vocab_size == len(TOKENIZERS[kind].tokens)


# ---------------------------------------------------------------------------------------- ids and texts


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@given(text=st.text())
@example(text="<|endoftext|>")
@example(text="\x00\r\n  \u2028 a")
def test_any_text_comes_back_from_its_ids(kind, text):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_of_text not in ids


@given(text=st.text(alphabet=sorted(set(TEXT))))
def test_any_text_of_known_characters_comes_back_from_its_ids(text):
    tokenizer = TOKENIZERS["chars"]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(data=st.binary())
def test_bytes_takes_any_bytes_losslessly(data):
    tokenizer = TOKENIZERS["bytes"]
    assert tokenizer.decode_bytes(tokenizer.encode_chunk(chunk(data)).tolist()) == data


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_chunk_of_a_corpus_has_the_ids_of_its_text(kind):
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.encode_chunk(chunk(TEXT.encode())).tolist() == tokenizer.encode(TEXT)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_token_lengths_add_up_to_the_text(kind):
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.token_byte_lengths[tokenizer.encode(TEXT)].sum() == len(TEXT.encode())
    assert tokenizer.token_byte_lengths[tokenizer.end_of_text] == 0
    assert len(tokenizer.token_byte_lengths) == tokenizer.vocab_size == tokenizer.end_of_text + 1


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_saved_tokenizer_loads_and_is_the_same(kind, tmp_path):
    tokenizer = TOKENIZERS[kind]
    loaded = load_tokenizer(saved(tokenizer, tmp_path))
    assert (loaded.kind, loaded.digest, loaded.end_of_text) == (kind, tokenizer.digest, tokenizer.end_of_text)
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert loaded.files() == tokenizer.files()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_transformers_reads_the_saved_files_and_gives_the_same_ids(kind, tmp_path):
    tokenizer = TOKENIZERS[kind]
    theirs = AutoTokenizer.from_pretrained(saved(tokenizer, tmp_path))
    assert theirs(TEXT)["input_ids"] == tokenizer.encode(TEXT)
    assert theirs.decode(tokenizer.encode(TEXT)) == TEXT
    assert theirs.eos_token_id == tokenizer.end_of_text


@settings(max_examples=200)
@given(text=st.text())
def test_learned_ids_equal_hugging_face_tokenizers(text):
    theirs = HuggingFaceTokenizer.from_str(TOKENIZERS["bpe"].files()["tokenizer.json"].decode())
    theirs.encode_special_tokens = True
    assert theirs.encode(text, add_special_tokens=False).ids == TOKENIZERS["bpe"].encode(text)


@pytest.mark.parametrize(
    "text", [" " * 250_000, "\n" * 300_000 + "end", "ab" * 200_000, " \u3000\t" * 100_000 + " x"]
)
def test_long_words_and_whitespace_are_learned_and_have_the_ids_of_hugging_face_tokenizers(text):
    tokenizer = Tokenizer.train(text, vocab_size=270)
    theirs = HuggingFaceTokenizer.from_str(tokenizer.files()["tokenizer.json"].decode())
    ids = tokenizer.encode(text)
    assert len(ids) < len(text.encode()) / 8
    # theirs takes quadratic time, so the end only: behind a word, where a new word begins
    text = text[-5000:]
    assert theirs.encode("." + text).ids == tokenizer.encode("." + text)


@pytest.mark.parametrize("end", ["x", "", "\x1c", "é'"])
@pytest.mark.parametrize("last", [" ", "\n", "\u3000"])
def test_a_run_of_whitespace_of_any_length_can_be_encoded(last, end):
    tokenizer = TOKENIZERS["bpe"]
    text = "a" + " " * 150_000 + last + end  # tiktoken alone takes this long a run, but no longer one
    assert tokenizer.encode(text) == tokenizer._encoding.encode_ordinary(text)


def test_more_whitespace_than_tiktoken_takes_can_be_encoded():
    text = "a" + "\t" * 1_100_000 + " b"
    assert TOKENIZERS["bpe"].decode(TOKENIZERS["bpe"].encode(text)) == text


@pytest.mark.parametrize("returncode", [1, -6])
def test_a_tokenizer_that_cannot_be_learned_is_one_line(returncode, monkeypatch):
    def run(command, **options):
        command = [
            sys.executable,
            "-c",
            f"import os; os.kill(os.getpid(), {-returncode}) if {returncode} < 0 else 1 / 0",
        ]
        return real_run(command, **options)

    real_run = subprocess.run
    monkeypatch.setattr(subprocess, "run", run)
    reason = "ZeroDivisionError: division by zero" if returncode > 0 else "killed"
    with pytest.raises(
        MemoryError, match=rf"tokenizer.vocab_size = 300 .* from .* characters .* \({reason}\)"
    ):
        Tokenizer.train(TEXT, vocab_size=300)


def test_learning_twice_gives_the_same_tokenizer():
    assert built("bpe", vocab_size=400).digest == TOKENIZERS["bpe"].digest


def test_a_small_text_gives_as_many_tokens_as_it_can():
    assert built("bpe", "aaaa", 1000).vocab_size < 300


def test_a_hugging_face_gpt2_directory_of_vocab_and_merges_loads(tmp_path):
    trained = json.loads(TOKENIZERS["bpe"].files()["tokenizer.json"])["model"]
    vocab = trained["vocab"] | {"<|endoftext|>": len(trained["vocab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(trained["merges"]))
    loaded = load_tokenizer(tmp_path)
    assert loaded.digest == TOKENIZERS["bpe"].digest
    theirs = GPT2TokenizerFast.from_pretrained(tmp_path)
    assert theirs(TEXT)["input_ids"] == loaded.encode(TEXT)


def test_a_config_can_name_a_folder_with_a_tokenizer(monkeypatch, tmp_path):
    config = TokenizerConfig(kind="bpe", folder=str(saved(TOKENIZERS["bpe"], tmp_path / "bpe")))
    assert build_tokenizer(config, text_corpus("another text")).digest == TOKENIZERS["bpe"].digest
    as_gpt2 = TokenizerConfig(kind="gpt2", folder=config.folder)
    with pytest.raises(UserError, match="another tokenizer than GPT-2's"):
        build_tokenizer(as_gpt2, text_corpus())
    monkeypatch.setattr(build, "GPT2_DIGEST", TOKENIZERS["bpe"].digest)
    assert build_tokenizer(as_gpt2, text_corpus()).digest == TOKENIZERS["bpe"].digest


def test_a_named_folder_without_byte_pairs_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no tokenizer: it needs tokenizer\.json, or vocab\.json and"):
        build_tokenizer(TokenizerConfig(kind="bpe", folder=str(tmp_path)), text_corpus())
    saved(TOKENIZERS["chars"], tmp_path)
    with pytest.raises(UserError, match="a tokenizer of characters, not of byte pairs"):
        build_tokenizer(TokenizerConfig(kind="bpe", folder=str(tmp_path)), text_corpus())


def test_a_folder_without_tokenizer_has_none(tmp_path):
    assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.clear(),
        lambda t: t["model"].pop("vocab"),
        lambda t: t["model"].pop("merges"),
        lambda t: t["model"]["vocab"].update(x=0),
        lambda t: t["model"]["vocab"].update({"Ā": 10**9}),
        lambda t: t["model"]["vocab"].update({"你": t["model"]["vocab"].pop("a")}),
        lambda t: t["added_tokens"].append({"id": 3}),
        lambda t: t.update(added_tokens=7),
        lambda t: t["model"].update(vocab={"a": "b"}),
    ],
)
def test_a_broken_tokenizer_file_is_refused_in_one_line(tmp_path, change):
    values = json.loads(TOKENIZERS["bpe"].files()["tokenizer.json"])
    change(values)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(DamagedError, match=r"tokenizer\.json: ") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[", "[]", "\x00", "[" * 100_000])
def test_a_tokenizer_file_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DamagedError):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    values = json.loads(TOKENIZERS["bpe"].files()["tokenizer.json"])
    values["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="not a byte-level BPE"):
        load_tokenizer(tmp_path)
    values["model"]["type"] = "WordPiece"
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(
        UserError, match=r"json: not a byte-level .* because of model.type = 'WordPiece'; no "
    ):
        load_tokenizer(tmp_path)


def test_an_unknown_character_is_named():
    with pytest.raises(UserError, match=r"'ß' \(U\+00DF, LATIN SMALL LETTER SHARP S\)"):
        TOKENIZERS["chars"].encode("straße")


@pytest.mark.parametrize("kind", ["bpe", "chars"])
def test_bytes_that_are_not_utf8_are_refused_with_file_and_offset(kind):
    with pytest.raises(UserError, match=r"b\.txt: not UTF-8 text at byte 1003 \(0xff\)"):
        TOKENIZERS[kind].encode_chunk(Chunk(b"abc\xff", "b.txt", 1000, True))
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8"):
        build_tokenizer(TokenizerConfig(kind=kind), text_corpus(b"abc\xff"))


def test_an_id_outside_the_vocabulary_is_refused():
    with pytest.raises(UserError, match="token id 257 is outside"):
        TOKENIZERS["bytes"].decode([257])


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("parse_special", [False, True])
def test_half_of_a_surrogate_pair_is_refused_as_it_has_no_utf8(kind, parse_special):
    with pytest.raises(
        UserError, match=r"^the character '\\ud800' at position 1 is half of a surrogate pair"
    ):
        TOKENIZERS[kind].encode("a\ud800b", parse_special=parse_special)


def test_control_characters_do_not_break_encoding():
    assert TOKENIZERS["bpe"].decode(TOKENIZERS["bpe"].encode("a\x00")) == "a\x00"


def test_gpt2_without_its_files_and_network_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(
        UserError, match=r"6d1cbeee0f20b3d9449abfede4726ed8212e3aee .* TIKTOKEN_CACHE_DIR .* bpe"
    ):
        build_tokenizer(TokenizerConfig(kind="gpt2"), text_corpus())


def test_gpt2s_files_in_the_cache_folder_need_no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    folder = cache_folder() / "gpt2"
    folder.mkdir(parents=True)
    saved(TOKENIZERS["bpe"], folder)
    with pytest.raises(UserError, match="another tokenizer than GPT-2's"):
        build_tokenizer(TokenizerConfig(kind="gpt2"), text_corpus())
    monkeypatch.setattr(build, "GPT2_DIGEST", TOKENIZERS["bpe"].digest)
    assert build_tokenizer(TokenizerConfig(kind="gpt2"), text_corpus()).digest == TOKENIZERS["bpe"].digest


def test_a_machine_that_cannot_read_gpt2s_files_is_no_missing_download(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "vocab.bpe")

    monkeypatch.setattr(build.openai_public, "gpt2", fail)
    with pytest.raises(OSError, match="Too many open files"):
        build_tokenizer(TokenizerConfig(kind="gpt2"), text_corpus())


def test_gpt2_is_tiktokens_own_where_its_files_are_at_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing is downloaded for a test
    try:
        theirs = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError):
        pytest.skip("GPT-2's files are not at hand")
    ours = build_tokenizer(TokenizerConfig(kind="gpt2"), text_corpus())
    assert (ours.kind, ours.digest, ours.end_of_text) == ("gpt2", build.GPT2_DIGEST, 50256)
    assert ours.encode(TEXT) == theirs.encode_ordinary(TEXT)
    assert AutoTokenizer.from_pretrained(saved(ours, tmp_path))(TEXT)["input_ids"] == ours.encode(TEXT)


@given(text=st.text())
@example(text="a\x7f\x80\u07ff\u0800\uffff\U00010000 é")
def test_with_a_byte_fallback_no_character_is_unknown(text):
    ids = FALLBACK.encode(text)
    assert FALLBACK.decode(ids) == text
    assert FALLBACK.encode_chunk(chunk(text.encode())).tolist() == ids
    assert len(ids) == sum(1 if c in "abc é" else len(c.encode()) for c in text)


def test_a_byte_fallback_is_saved_and_read_by_us_and_transformers(tmp_path):
    text = "abc, é 你🙂 cab"
    loaded = load_tokenizer(saved(FALLBACK, tmp_path))
    assert (loaded.kind, loaded.digest, loaded.files()) == ("chars", FALLBACK.digest, FALLBACK.files())
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text)["input_ids"] == FALLBACK.encode(text)
    assert theirs.decode(FALLBACK.encode(text)) == text


@settings(max_examples=30)
@given(text=st.text(alphabet=st.sampled_from("ab <|>\n\u3000你🙂's1\xa0"), max_size=60))
def test_special_token_text_is_plain_text_in_a_corpus_too(text):
    text = text + "<|endoftext|>" + text
    for kind in ["bytes", "bpe"]:
        ids = TOKENIZERS[kind].encode_chunk(chunk(text.encode())).tolist()
        assert ids == TOKENIZERS[kind].encode(text)
        assert TOKENIZERS[kind].end_of_text not in ids


def random_texts(count, seed):
    """Texts of up to 40 characters: of one script each, of all scripts, or of pieces that mean something."""
    rng = np.random.default_rng(seed)
    everything = np.concatenate([np.arange(0xD800), np.arange(0xE000, 0x110000)])
    ranges = [(0x20, 0x7F), (0, 0x20), (0xA0, 0x250), (0x370, 0x700), (0x2000, 0x2070), (0x3000, 0xA000)]
    alphabets = [*(np.arange(*r) for r in ranges), np.arange(0x1F300, 0x1F900), everything]
    pieces = ["<|endoftext|>", "'s", " ", "\n\n", "the", "12", "\ufeff", "e\u0301", "\u200d", "\0"]
    while count > 0:
        for alphabet in alphabets:
            letters = rng.choice(alphabet, 10_000).astype("<u4").tobytes().decode("utf-32-le")
            ends = np.cumsum(rng.integers(0, 41, 500))
            for start, end in pairwise(ends[ends < len(letters)].tolist()):
                yield letters[start:end]
                count -= 1
        for chosen in rng.integers(0, len(pieces), (50, 8)):
            yield "".join(pieces[i] for i in chosen)
            count -= 1


@pytest.mark.parametrize("kind", ["bytes", "bpe", "chars", "fallback", "gpt2"])
def test_random_texts_come_back_from_their_ids(kind, long, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing is downloaded for a test
    try:
        tokenizer = {**TOKENIZERS, "fallback": FALLBACK}.get(kind) or built(kind)
    except UserError:
        pytest.skip("GPT-2's files are not at hand")
    if kind == "chars":
        tokenizer = build_tokenizer(
            TokenizerConfig(kind="chars"), text_corpus("".join(random_texts(40_000, 1)))
        )
    known, count = set(tokenizer.tokens), 0
    for text in random_texts(1_000_000 if long else 5_000, seed=2):
        if kind == "chars":
            text = "".join(c for c in text if c.encode() in known)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode_chunk(chunk(text.encode())).tolist() == ids
        assert tokenizer.end_of_text not in ids
        count += 1
    print(f"random texts through {kind}: {count:,}")


def test_random_bytes_come_back_from_their_ids(long):
    rng, tokenizer = np.random.default_rng(0), TOKENIZERS["bytes"]
    count = 1_000_000 if long else 20_000
    data, ends = rng.bytes(count * 21), np.cumsum(rng.integers(0, 41, count)).tolist()
    for start, end in pairwise([0, *ends]):
        piece = data[start:end]
        assert tokenizer.decode_bytes(tokenizer.encode_chunk(chunk(piece)).tolist()) == piece
    print(f"random byte strings through bytes: {count:,}")


SAMPLES = {
    "Chinese": "道可道非常道。名可名非常名。無名天地之始、有名萬物之母。" * 40,
    "emoji": "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ✊🏿\u200d\ufe0f " * 40,
    "right to left": "في البدء كانت الكلمة. \u202eארץ\u202c ١٢٣ " * 40,
    "one endless word": "abcdefghij" * 20_000,
    "control characters": "".join(map(chr, range(32))) * 60,
}


@pytest.mark.parametrize("text", SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("kind", ["bpe", "chars"])
def test_any_script_can_be_learned_saved_and_read_back(text, kind, tmp_path):
    tokenizer = built(kind, text, 320 if kind == "bpe" else None)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert load_tokenizer(saved(tokenizer, tmp_path)).encode(text) == ids
    if kind == "bpe":
        assert len(ids) < len(text.encode())


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@pytest.mark.parametrize(
    "texts", [["one  ", " two\n\n", "", "three<|endof", "text|>", "\t é"], ["<|endoftext|>", "a"]]
)
@pytest.mark.parametrize("parts", [1, 2])
def test_chunks_encoded_together_have_the_ids_of_chunks_encoded_one_by_one(kind, texts, parts):
    tokenizer = TOKENIZERS[kind]
    chunks = [Chunk(text.encode(), "x", 0, (i + 1) % parts == 0) for i, text in enumerate(texts)]
    ids = []
    for chunk in chunks:
        ids += tokenizer.encode(chunk.data.decode())
        ids += [tokenizer.end_of_text] if chunk.ends_document else []
    assert tokenizer.encode_chunks(chunks).tolist() == ids


def test_what_is_not_utf8_among_many_documents_is_named():
    chunks = [Chunk(b"good", "a.txt", 0, True), Chunk(b"bad\xff", "b.txt", 5, True)]
    with pytest.raises(UserError, match=r"b\.txt: not UTF-8 text at byte 8"):
        TOKENIZERS["bpe"].encode_chunks(chunks)


def test_saving_never_replaces_another_tokenizer(tmp_path):
    first, second = Tokenizer.train("abc", kind="chars"), Tokenizer.train("abcd", kind="chars")
    first.save(tmp_path / "tok")
    first.save(tmp_path / "tok")  # the same one again is no harm
    with pytest.raises(UserError, match="holds another tokenizer already; choose another folder"):
        second.save(tmp_path / "tok")
    assert len(Tokenizer.load(tmp_path / "tok")) == len(first)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file, but a tokenizer needs a folder"):
        first.save(tmp_path / "file")
