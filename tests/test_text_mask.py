"""The mask over the vocabulary that keeps generated text UTF-8, whatever the weights are."""

import pytest
import torch

from gptmini.config import GPTConfig
from gptmini.data.tokenizers import CharTokenizer, Tokenizer
from gptmini.data.tokenizers.byte_pair import BYTES, BytePairTokenizer
from gptmini.errors import UserError
from gptmini.generation.generate import generate
from gptmini.generation.streaming import generate_text, stream
from gptmini.generation.text_mask import forbidden_tokens
from gptmini.model import GPT

CPU = torch.device("cpu")
TEXT = "Größe, 日本語, naïve 😀 ½ “quoted” ελληνικά. " * 20


def random_model(vocab_size, seed=0):
    """Weights far from their initial ones, so that every token is about as likely as any other."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=vocab_size, n_layer=1, n_head=2, n_embd=16, context_length=32))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5)
    return model.eval()


def test_exactly_the_bytes_of_unicode_may_follow_every_beginning_of_a_character():
    tokenizer = Tokenizer.train("", "bytes")
    following = {}  # the beginning of a character -> the bytes that some character goes on with
    for code_point in (*range(0xD800), *range(0xE000, 0x110000)):
        encoded = chr(code_point).encode()
        for n in range(len(encoded)):
            following.setdefault(encoded[:n], set()).add(encoded[n])
    assert len(following) == 17_652
    for begun, expected in following.items():
        allowed = (~forbidden_tokens(tokenizer, 257, CPU, [begun])).nonzero().flatten().tolist()
        assert set(allowed) == expected | ({256} if begun == b"" else set())  # no end of text in a character


def test_tokens_of_several_bytes_may_end_and_begin_within_a_character():
    tokens = ["é".encode(), b"e\xcc", b"\x81 a", b"\x81\xff", b"\xed\xa0", b""]
    tokenizer = BytePairTokenizer([*BYTES, *tokens], [], {"<|endoftext|>": 261})
    for begun, allowed in (
        (
            b"",
            [True, True, False, False, False, True],
        ),  # no text begins with a continuation byte or a surrogate
        (b"\xcc", [False, False, True, False, False, False]),
        (None, [True] * 6),
    ):
        assert (~forbidden_tokens(tokenizer, 262, CPU, [begun]))[256:].tolist() == allowed


TOKENIZERS = {
    "bytes": lambda: Tokenizer.train("", "bytes"),
    "bpe": lambda: Tokenizer.train(TEXT, vocab_size=300),
    "chars": lambda: Tokenizer.train(TEXT, "chars"),
    "byte_fallback": lambda: Tokenizer.train("abc", "chars", byte_fallback=True),
}
OPTIONS = [
    {"seed": 1},
    {"temperature": 0},
    {"seed": 2, "top_k": 1, "repetition_penalty": 1.5},
    {"top_p": 0.9},
]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("padding", [0, 63])
def test_text_of_random_weights_is_utf8_and_of_the_tokenizers_ids(kind, padding):
    tokenizer = TOKENIZERS[kind]()
    model = random_model(len(tokenizer) + padding)
    for options in OPTIONS:
        for text in generate_text(model, tokenizer, "a", max_new_tokens=30, num_samples=8, **options):
            assert "\ufffd" not in text
            text.encode()  # no surrogates
    pieces = list(stream(model, tokenizer, "a", max_new_tokens=50, seed=1))
    (text,) = generate_text(model, tokenizer, "a", max_new_tokens=50, seed=1)
    assert "a" + "".join(pieces) == text


def test_a_character_that_the_last_token_cuts_is_left_out_so_fewer_tokens_give_a_beginning_of_the_text():
    tokenizer = Tokenizer.train("", "bytes")
    model = random_model(257)
    (longest,) = generate_text(model, tokenizer, "", max_new_tokens=20, temperature=0)
    lengths = set()
    for n in range(20):
        (text,) = generate_text(model, tokenizer, "", max_new_tokens=n, temperature=0)
        assert longest.startswith(text)
        lengths.add(len(text.encode()) - n)
    assert lengths >= {0, -1}  # the test can fail: some n ends within a character


def test_ids_past_the_tokenizer_are_never_sampled_in_texts_of_bytes_either():
    tokenizer, model = Tokenizer.train("", "bytes"), random_model(320)
    model.lm_head = torch.nn.Linear(16, 320)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.lm_head.bias.data = torch.arange(320.0)  # a padded id is always the likeliest
    for allow in (False, True):
        (text,) = generate_text(
            model, tokenizer, "a", max_new_tokens=5, temperature=0, allow_invalid_utf8=allow, seed=1
        )
        assert len(text) <= 6
    assert generate(model, [[97]], max_new_tokens=1, temperature=0) == [[97, 319]]  # ids, not text


def test_a_vocabulary_smaller_than_the_tokenizers_generates():
    tokenizer = CharTokenizer("ab\n")  # its end of text is not in the model, as in one imported from nanoGPT
    tokenizer.first_token = 2
    (text,) = generate_text(random_model(3), tokenizer, "", max_new_tokens=9, seed=1)
    assert text.startswith("\n")
    assert len(text) == 10


def test_special_tokens_stand_for_no_text_and_never_within_a_character():
    tokenizer = BytePairTokenizer([*BYTES, b"", b""], [], {"<|endoftext|>": 256, "<|user|>": 257})
    model = random_model(258)

    def only_specials_and_characters(logits, rows):
        logits[:, :0xC0] = -torch.inf
        logits[:, 0x80:0xC0] = 0
        logits[:, 257] += 5
        return logits

    (text,) = generate_text(
        model, tokenizer, "a", max_new_tokens=99, seed=1, logits_hook=only_specials_and_characters
    )
    assert "<" not in text
    assert "\ufffd" not in text


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_hook_that_allows_only_what_no_text_may_have_is_one_line(temperature):
    def only_continuation_bytes(logits, rows):
        banned = torch.ones(257, dtype=torch.bool)
        banned[0x80:0xC0] = False
        return logits.masked_fill(banned, -torch.inf)

    text = generate_text(
        random_model(257),
        Tokenizer.train("", "bytes"),
        "a",
        max_new_tokens=5,
        logits_hook=only_continuation_bytes,
        temperature=temperature,
    )
    with pytest.raises(UserError, match="no token is left to sample"):
        next(text)
