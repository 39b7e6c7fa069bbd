"""An order of documents takes log2 n! bits and comes back, and bytes that are none are refused."""

import math
import struct

import brotli
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.codec.permutation import DocumentOrder, _packed, read_order


@given(st.integers(1, 60), st.integers(0, 2**32))
def test_any_order_comes_back_and_puts_the_text_in_its_own(count, seed):
    generator = np.random.default_rng(seed)
    lengths, order = generator.integers(1, 300, count), generator.permutation(count)
    given, text = DocumentOrder(order, lengths), np.arange(lengths.sum())
    documents = np.split(text, np.cumsum(lengths)[:-1])
    read = read_order(given.to_bytes(), len(text))
    assert (read.order == order).all() and (read.lengths == lengths).all()
    assert (read.in_text(np.concatenate([documents[number] for number in order])) == text).all()


def test_an_order_takes_log2_n_factorial_bits():
    for count in (1, 2, 100, 1024, 3000):
        order = np.random.default_rng(count).permutation(count)
        bits = math.lgamma(count + 1) / math.log(2)
        assert DocumentOrder(order, np.ones(count)).order_bits == pytest.approx(bits)
        assert bits <= 8 * len(_packed(order.tolist())) < bits + 8 * (1 + count // 1024)


def test_damaged_orders_are_refused():
    content = DocumentOrder(np.random.default_rng(0).permutation(40), np.full(40, 5)).to_bytes()
    assert len(read_order(content, 200).order) == 40
    for damaged in (content[:-1], content[:3], b"\xff" * len(content), content[:4] + b"\xff" * 20 + content[24:]):
        with pytest.raises(ValueError):
            read_order(damaged, 200)
    with pytest.raises(ValueError):
        read_order(content, 201)


def test_a_length_of_more_bits_than_any_text_has_is_refused_before_it_grows():
    lengths = b"\x80" * 100 + b"\x01" + b"\x01" * 39
    content = struct.pack("<I", 40) + _packed(list(range(40))) + brotli.compress(lengths)
    with pytest.raises(ValueError, match="no number"):
        read_order(content, 2**40)
