"""Every byte string survives both tokenizers, and a tokenizer is rebuilt from its model bytes alone."""

from functools import cache

import brotli
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from harness.corpus.config import CorpusConfig, read_documents
from harness.data.tokenizer import SentencePieceTokenizer, TokenizerConfig, from_model_bytes, train_tokenizer
from harness.errors import UsageError

NASTY = [
    b"",
    b"\0",
    b"a\0\0b",
    b"\r\n \r \n\n",
    b" leading, trailing and  double   spaces  ",
    b"\xff\xfe\x80 invalid \xc3",
    "\u2581 \u2581the\u2581 ".encode(),
    "\ud800\udfff".encode("utf-8", "surrogatepass"),
    "\u0378\U000e0fff\U0010ffff".encode(),
    "e\u0301 \ufb01 \uff21 \u00a0\u3000\u200b\ufeff".encode(),
    b"<unk><s></s><0x41><pad>",
    bytes(range(256)) * 20,
    b"the " * 5000,
    ("é" * 3_000_000).encode()[1:],
]


def texts() -> list[bytes]:
    return list(read_documents(CorpusConfig(subset_bytes=300_000), "train"))


@cache
def sentencepiece_tokenizer():
    return train_tokenizer(TokenizerConfig(kind="sentencepiece", vocab_size=1000), iter(texts()))


def tokenizers():
    return [train_tokenizer(TokenizerConfig(), iter([])), sentencepiece_tokenizer()]


def assert_round_trip(tokenizer, data: bytes) -> None:
    tokens = tokenizer.encode(data)
    assert tokenizer.decode(tokens) == data
    assert tokenizer.decode(tokens.astype(np.int64)) == data
    assert tokenizer.token_bytes[tokens].sum() == len(data)
    assert not len(tokens) or tokens.max() < tokenizer.vocab_size == len(tokenizer.token_bytes)


@pytest.mark.parametrize("data", NASTY, ids=range(len(NASTY)))
def test_every_byte_string_round_trips(data):
    for tokenizer in tokenizers():
        assert_round_trip(tokenizer, data)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode), st.sampled_from(NASTY[:11]))))
def test_random_mixtures_of_bytes_and_text_round_trip(parts):
    for tokenizer in tokenizers():
        assert_round_trip(tokenizer, b"".join(parts))


def test_token_types_are_as_narrow_as_the_vocabulary():
    byte_tokenizer, subword = tokenizers()
    assert (byte_tokenizer.kind, byte_tokenizer.vocab_size, byte_tokenizer.model_bytes()) == ("bytes", 256, b"")
    assert (subword.kind, subword.vocab_size) == ("sentencepiece", 1000)
    assert byte_tokenizer.encode(b"ab").dtype == np.uint8
    assert subword.encode(b"ab").dtype == np.uint16
    assert byte_tokenizer.encode(b"ab").tolist() == [97, 98]


def test_subwords_shorten_text_they_were_trained_on():
    data = b"".join(texts())
    assert len(sentencepiece_tokenizer().encode(data)) < 0.55 * len(data)


def test_ordinary_text_is_not_spelt_in_bytes():
    # Round trips alone would pass if every span fell back to bytes.
    for text in ("the cat and  the dog\n", "the cat\u2581 and\0 the dog"):
        assert len(sentencepiece_tokenizer().encode(text.encode())) < 17


def test_earlier_pieces_are_merged_first():
    for pieces, expected in ((["bc", "ab", "a", "b", "c"], ["a", "bc"]), (["ab", "bc", "a", "b", "c"], ["ab", "c"])):
        tokens = SentencePieceTokenizer(pieces).encode(b"abc")
        assert [pieces[token - 257] for token in tokens] == expected


def test_training_twice_gives_the_same_model():
    config = TokenizerConfig(kind="sentencepiece", vocab_size=1000)
    again = train_tokenizer(config, iter(texts()))
    assert again.model_bytes() == sentencepiece_tokenizer().model_bytes()


def test_a_tokenizer_is_rebuilt_from_its_model_bytes():
    data = b"".join(texts()) + b"".join(NASTY[:11])
    for tokenizer in tokenizers():
        rebuilt = from_model_bytes(tokenizer.kind, tokenizer.model_bytes())
        assert np.array_equal(rebuilt.encode(data), tokenizer.encode(data))
        assert np.array_equal(rebuilt.token_bytes, tokenizer.token_bytes)
    # The texts of 743 pieces; the serialised sentencepiece model would be about ten times as large.
    assert len(sentencepiece_tokenizer().model_bytes()) < 2500


@pytest.mark.parametrize(
    ("kind", "data"), [("bytes", b"x"), ("sentencepiece", b"not a model"), ("sentencepiece", b""), ("other", b"")]
)
def test_foreign_model_bytes_are_refused(kind, data):
    with pytest.raises(UsageError, match=f"tokenizer.kind={kind}"):
        from_model_bytes(kind, data)


def test_a_vocabulary_too_large_for_the_corpus_names_the_largest_possible_one():
    corpus = [b"hello world, hello all the world"]
    with pytest.raises(UsageError, match=r"tokenizer.vocab_size=60000: too large .* at most [0-9]+$") as caught:
        train_tokenizer(TokenizerConfig(kind="sentencepiece", vocab_size=60000), iter(corpus))
    largest = int(str(caught.value).split()[-1])
    tokenizer = train_tokenizer(TokenizerConfig(kind="sentencepiece", vocab_size=largest), iter(corpus))
    assert tokenizer.vocab_size == largest


def test_a_vocabulary_too_small_for_the_characters_names_the_smallest_possible_one():
    with pytest.raises(UsageError, match=r"tokenizer.vocab_size=258: too small .* at least [0-9]+$"):
        train_tokenizer(TokenizerConfig(kind="sentencepiece", vocab_size=258), iter(texts()))


def test_a_corpus_without_text_cannot_train_subwords():
    with pytest.raises(UsageError, match="no text"):
        train_tokenizer(TokenizerConfig(kind="sentencepiece"), iter([b"\xff\xfe\0"]))


def test_the_config_lists_every_problem_and_is_an_omegaconf_schema():
    assert TokenizerConfig().problems() == []
    assert "tokenizer.kind=foo" in TokenizerConfig(kind="foo").problems()[0]
    for vocab_size in (257, 65537):
        assert "258 to 65536" in TokenizerConfig(kind="sentencepiece", vocab_size=vocab_size).problems()[0]
    assert OmegaConf.to_object(OmegaConf.structured(TokenizerConfig)) == TokenizerConfig()


def test_a_model_that_decompresses_without_end_is_refused_at_once():
    bomb = brotli.compress(b"a" * 10**8)
    with pytest.raises(UsageError, match="sentencepiece"):
        from_model_bytes("sentencepiece", bomb)


def test_a_model_with_a_piece_that_sentencepiece_refuses_is_refused():
    with pytest.raises(UsageError, match="sentencepiece"):
        from_model_bytes("sentencepiece", brotli.compress(b"x" * 200_000))
