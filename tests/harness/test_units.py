"""Nats, bits and bytes, against the numbers that the literature got wrong."""

import math

import pytest

from harness.units import bits_from_bytes, bits_from_nats, bits_per_byte, bytes_from_bits, nats_from_bits


def test_one_bit_is_ln_2_nats():
    assert bits_from_nats(math.log(2)) == 1.0
    assert nats_from_bits(bits_from_nats(3.7)) == pytest.approx(3.7, rel=1e-15)


def test_llama_65b_data_part_is_388_8_gigabytes():
    bits = bits_from_nats(1.4e12 * 1.54)
    assert bytes_from_bits(bits) / 1e9 == pytest.approx(388.8, abs=0.05)


def test_rate_of_nothing_is_zero():
    assert bits_per_byte(0.0, 0) == 0.0
    assert bits_per_byte(bits_from_bytes(10), 20) == 4.0
