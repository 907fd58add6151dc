"""Tokenizer files, and the directories that hold them, against the tools that read and write them."""

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2TokenizerFast

import gptmini
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import Tokenizer, load_tokenizer
from gptmini.errors import UserError
from gptmini.model import GPT

TEXT = "".join(f"It's sentence {i}; it says: {i} times {i} is {i * i}, née Größe.\n" for i in range(100))
TOKENIZERS = {
    "bpe": Tokenizer.train(TEXT, "bpe", vocab_size=320),
    "bytes": Tokenizer.train(TEXT, "bytes"),
    "chars": Tokenizer.train(TEXT, "chars"),
    "fallback": Tokenizer.train(TEXT, "chars", byte_fallback=True),
}


@pytest.fixture(params=TOKENIZERS)
def kind(request):
    return request.param


@pytest.fixture
def directory(kind, tmp_path):
    """A model with biases, saved with its tokenizer."""
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 64}
    model = GPT(GPTConfig(vocab_size=len(TOKENIZERS[kind]), **sizes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    gptmini.save(tmp_path / "model", model, TOKENIZERS[kind])
    return tmp_path / "model"


def random_texts(alphabet, count=300):
    rng = random.Random(0)
    return ["".join(rng.choices(alphabet, k=rng.randrange(30))) for _ in range(count)]


def greedy(directory, ids, count):
    model, _ = gptmini.load(directory, device="cpu")
    tokens = gptmini.generate(model, torch.tensor([ids]), max_new_tokens=count, temperature=0.0)
    return tokens[0, len(ids) :].tolist()


# ------------------------------------------------------------------------------------------- what we write


def test_transformers_generates_the_same_text_from_what_its_tokenizer_returns(directory):
    tokenizer, model = (
        AutoTokenizer.from_pretrained(directory),
        AutoModelForCausalLM.from_pretrained(directory),
    )
    inputs = tokenizer("It's", return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    ids = inputs["input_ids"][0].tolist()
    found = model.generate(**inputs, max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    ours = greedy(directory, ids, 20)
    end = tokenizer.eos_token_id  # where they stop
    assert found[0, len(ids) :].tolist() == (ours[: ours.index(end) + 1] if end in ours else ours)


def test_no_token_type_ids_are_asked_of_any_version_of_transformers(directory):
    config = json.loads((directory / "tokenizer_config.json").read_text())
    assert config["model_input_names"] == ["input_ids", "attention_mask"]  # version 4 adds them by default


def test_truncation_knows_the_context_and_the_unknown_token_has_a_name(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.model_max_length == len(tokenizer(TEXT, truncation=True)["input_ids"]) == 64
    assert tokenizer.unk_token == tokenizer.eos_token == "<|endoftext|>"


def test_transformers_gives_the_ids_of_random_texts(directory, kind):
    theirs, ours = AutoTokenizer.from_pretrained(directory), TOKENIZERS[kind]
    alphabet = "It's né <|>;\n0" if kind == "chars" else "It's né <|>;\n\t\0你🙂\ufeff"
    for text in random_texts(
        alphabet.translate({ord(c): None for c in "<|>"}) if kind == "chars" else alphabet
    ):
        assert theirs(text)["input_ids"] == ours.encode(text)


def test_an_unknown_character_is_the_end_of_text_to_transformers(tmp_path):
    TOKENIZERS["chars"].save(tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), TOKENIZERS["chars"]
    assert theirs("s你t")["input_ids"] == [*ours.encode("s"), ours.end_of_text, *ours.encode("t")]


def test_ctranslate2_generates_the_same_tokens(directory, kind, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    ctranslate2.converters.TransformersConverter(str(directory)).convert(str(tmp_path / "ct2"))
    vocabulary = json.loads((tmp_path / "ct2" / "vocabulary.json").read_text(encoding="utf-8"))
    ids = TOKENIZERS[kind].encode("It's sentence")
    [result] = ctranslate2.Generator(str(tmp_path / "ct2"), intra_threads=1).generate_batch(
        [[vocabulary[i] for i in ids]],
        max_length=20,
        sampling_topk=1,
        include_prompt_in_result=False,
        end_token=[],
    )
    assert result.sequences_ids[0] == greedy(directory, ids, 20)


def test_lm_eval_finds_the_loss_that_we_find(directory, kind):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    context, continuation = "It's sentence 3", "; it says"
    [(found, _)] = HFLM(pretrained=str(directory), device="cpu", batch_size=1).loglikelihood(
        [Instance("loglikelihood", {}, (context, continuation), 0)]
    )
    model, tokenizer = gptmini.load(directory, device="cpu")
    ids = tokenizer.encode(context + continuation)
    start = len(tokenizer.encode(context))
    with torch.inference_mode():
        log_probs = model(torch.tensor([ids])).log_softmax(dim=-1)[0]
    expected = sum(log_probs[i - 1, ids[i]].item() for i in range(start, len(ids)))
    assert found == pytest.approx(expected, rel=1e-4)


# -------------------------------------------------------------------------------------------- what we read


def test_a_padding_token_added_and_saved_by_transformers_changes_no_ids(directory, kind, tmp_path):
    theirs = AutoTokenizer.from_pretrained(directory)
    theirs.add_special_tokens({"pad_token": "[PAD]"})
    theirs(["It's", "It's a"], padding=True, truncation=True, max_length=4)  # both are saved, and set no ids
    theirs.save_pretrained(tmp_path / "saved")
    ours = load_tokenizer(tmp_path / "saved")
    assert ours.special_tokens == TOKENIZERS[kind].special_tokens | {"[PAD]": len(TOKENIZERS[kind])}
    assert ours.end_of_text == TOKENIZERS[kind].end_of_text
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in [TEXT, *random_texts("It's né;\n0", 50)]:
        assert ours.encode(text) == again(text)["input_ids"] == TOKENIZERS[kind].encode(text)
    ours.save(tmp_path / "ours")
    assert load_tokenizer(tmp_path / "ours").digest == ours.digest


def test_special_tokens_in_a_text_get_their_ids_where_asked_for_as_in_transformers(directory, kind, tmp_path):
    names = ["<|im_start|>", "<|im_end|>", "<|im", "[PAD]"]  # one begins another
    theirs = AutoTokenizer.from_pretrained(directory)
    theirs.add_special_tokens({"additional_special_tokens": names})
    theirs.save_pretrained(tmp_path / "saved")
    ours = load_tokenizer(tmp_path / "saved")
    letters = ["It's", " ", "\n", "née", "0", ";"] + ([] if kind == "chars" else ["<|", "|>", "[", "_start"])
    for text in random_texts([*names, "<|endoftext|>", *letters]):
        assert ours.encode(text, parse_special=True) == theirs(text)["input_ids"]
        if kind != "chars":
            assert not set(ours.special_tokens.values()) & set(ours.encode(text))
    assert ours.decode(ours.encode("<|im_start|>It's<|im_end|>", parse_special=True)) == "It's"


def byte_level(**options):
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": True,
    } | options


def template(*single):
    return {"type": "TemplateProcessing", "single": list(single), "pair": [], "special_tokens": {}}


SEQUENCE, BOS = (
    {"Sequence": {"id": "A", "type_id": 0}},
    {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
)
ADDED = {"id": 320, "content": "foo", "special": True}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}}, "NFC"),
        ({"pre_tokenizer": None}, "pre_tokenizer = null"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": byte_level(add_prefix_space=True)}, '"add_prefix_space": true'),
        ({"pre_tokenizer": byte_level(use_regex=False)}, '"use_regex": false'),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, byte_level()]}},
            "Digits",
        ),
        ({"post_processor": template(BOS, SEQUENCE)}, r"post_processor = .*<\|endoftext\|>"),
        ({"post_processor": template(SEQUENCE, BOS)}, r"post_processor = .*<\|endoftext\|>"),
        ({"post_processor": template(SEQUENCE, SEQUENCE)}, "post_processor = "),
        ({"post_processor": {"type": "TemplateProcessing", "single": 7}}, "post_processor = "),
        (
            {"post_processor": {"type": "Sequence", "processors": [byte_level(), template(BOS, SEQUENCE)]}},
            "SpecialToken",
        ),
        ({"post_processor": {"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 1]}}, "<s>"),
        ({"decoder": {"type": "WordPiece"}}, "decoder = .*WordPiece"),
        ({"model": {"ignore_merges": True}}, "model.ignore_merges = true"),
        ({"model": {"byte_fallback": True}}, "model.byte_fallback = true"),
        ({"model": {"dropout": 0.1}}, "model.dropout = 0.1"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "model.end_of_word_suffix"),
        (
            {"added": ADDED | {"special": False}},
            r"'foo' \(id 320\) of added_tokens, which is not special",
        ),
        (
            {"added": ADDED | {"lstrip": True}},
            r"'foo' \(id 320\) of added_tokens, which is not special or depends",
        ),
        ({"added": ADDED | {"content": "!", "id": 0}}, "special token '!' is also a token of plain text"),
        ({"config": {"add_bos_token": True}}, "add_bos_token = true in tokenizer_config.json"),
        ({"config": {"add_eos_token": True}}, "add_eos_token = true"),
        ({"config": {"add_prefix_space": True}}, "add_prefix_space = true"),
        ({"config": {"added_tokens_decoder": {"320": {"content": "foo"}}}}, "'foo'"),
    ],
)
def test_what_would_give_other_ids_is_refused_by_name(tmp_path, changes, named):
    files = {name: json.loads(data) for name, data in TOKENIZERS["bpe"].files().items()}
    file, config = files["tokenizer.json"], files["tokenizer_config.json"]
    file["model"] |= changes.pop("model", {})
    config |= changes.pop("config", {})
    if added := changes.pop("added", None):
        file["added_tokens"].append(added)
    file |= changes
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(UserError, match=named) as refusal:
        load_tokenizer(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Sequence", "normalizers": []}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [byte_level()]}},
        {"post_processor": byte_level(add_prefix_space=True)},  # moves offsets only
        {"post_processor": template(SEQUENCE)},
        {"post_processor": {"type": "Sequence", "processors": [byte_level(), template(SEQUENCE)]}},
        {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}},
    ],
)
def test_what_changes_no_ids_is_read(tmp_path, changes):
    for name, data in TOKENIZERS["bpe"].files().items():
        values = json.loads(data) | (changes if name == "tokenizer.json" else {})
        (tmp_path / name).write_text(json.dumps(values))
    assert load_tokenizer(tmp_path).encode(TEXT) == AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"]


def test_single_characters_split_in_another_way_are_refused_by_name(tmp_path):
    values = json.loads(TOKENIZERS["chars"].files()["tokenizer.json"])
    for changes, named in [
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"decoder": None}, "decoder = null"),
    ]:
        (tmp_path / "tokenizer.json").write_text(json.dumps(values | changes))
        with pytest.raises(UserError, match=named):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize("option", ["add_bos_token", "add_prefix_space"])
def test_a_gpt2_tokenizer_that_adds_to_each_text_is_never_read_without(tmp_path, option):
    model = json.loads(TOKENIZERS["bpe"].files()["tokenizer.json"])["model"]
    vocab = model["vocab"] | {"<|endoftext|>": len(model["vocab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(model["merges"]))
    plain = GPT2TokenizerFast.from_pretrained(tmp_path)
    plain.save_pretrained(tmp_path / "plain")
    assert load_tokenizer(tmp_path / "plain").encode(TEXT) == plain(TEXT)["input_ids"]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"foo": len(vocab)}))
    with pytest.raises(UserError, match=r"'foo' \(id 320\) of added_tokens"):
        load_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    GPT2TokenizerFast.from_pretrained(tmp_path, **{option: True}).save_pretrained(tmp_path / "adds")
    with pytest.raises(UserError, match=f"{option}|post_processor"):
        load_tokenizer(tmp_path / "adds")
