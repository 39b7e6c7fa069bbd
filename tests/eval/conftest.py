"""A tokenizer of symbols that are not bytes."""

import pytest

from harness.data.tokenizer import TokenizerConfig, train_tokenizer
from tests.support.archives import TEXT


@pytest.fixture(scope="session")
def sentencepiece():
    """A tokenizer of 300 symbols."""
    config = TokenizerConfig(kind="sentencepiece", vocab_size=300)
    return train_tokenizer(config, iter([TEXT, b"another document, with other words in it"]))
