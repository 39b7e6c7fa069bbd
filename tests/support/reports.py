"""A report as `eval` writes it, for tests of tables."""

import copy

from eval.offline.baselines import BASELINES

SIZES = dict(
    zip(
        [b.name for b in BASELINES],
        (179191, 207948, 171309, 120958, 127315, 151382, 80800, 82516, 76579, 75106, 67395, 71787, 64114),
        strict=True,
    )
)
REPORT = {
    "run": "demo",
    "config_sha256": "ab" * 32,
    "data": {
        "corpus": "wiki-mini",
        "train_bytes": 5_707_324,
        "heldout_bytes": 256_000,
        "eval_split": "heldout",
        "raw_bytes": 256_000,
    },
    "online": {
        "aulc_bits": 14_496_602.0625,
        "ideal_bits": 14_496_602.0625,
        "tokens": 5_707_324,
        "bits_per_byte": 2.5400000012345,
        "above_final_bits": 2e6,
        "code_bytes": 61_234,
        "raw_bytes": 5_707_324,
    },
    "offline": {
        "method": "rl1",
        "parameters": 853_632,
        "nonzeros": 85_363,
        "model_bytes": 98_231,
        "tokenizer_bytes": 0,
        "data_bytes": 72_011,
        "header_bytes": 512,
        "checksum_bytes": 64,
        "total_bytes": 170_818,
        "bits_per_byte": 5.3380625,
        "ideal_data_bits": 576_010.25,
        "verified": True,
        "sha256": "cd" * 32,
        "encode_seconds": 31.2,
        "decode_seconds": 30.9,
    },
    "projected": {"dataset_bytes": 5_707_324, "total_bytes": 1_703_661},
    "conventions": {"paper_model_bytes": 341_452, "csr_model_bytes": 515_000, "dense_float32_bytes": 3_414_528},
    "baselines": SIZES,
}


def report(**changes) -> dict:
    """REPORT with top-level values replaced and sections updated."""
    changed = copy.deepcopy(REPORT)
    for key, value in changes.items():
        changed[key] = changed[key] | value if isinstance(value, dict) else value
    return changed
