"""DeepCABAC of nncodec on integer weights: PYTHON nncodec_worker.py WEIGHTS.npz, run by the Python that has nncodec.

nncodec wants another numpy than this project, so it has an environment of its own: `python -m venv other;
other/bin/pip install torch nncodec==2.1.3`. Each tensor is coded with the settings that make it shortest among a few:
rows skipped or not, and how many levels have contexts of their own. Prints JSON: bytes, seconds to write with the
chosen settings and to read back, and whether the same integers came back.
"""

import json
import sys
import time

import numpy as np
from nncodec.extensions import deepCABAC
from nncodec.nnc_core.hdsp.hdsp_tool import HDSP_OPTS_OFF

SETTINGS = [(skip, unary) for skip in (0, 1) for unary in (2, 4, 8, 11, 16)]


def encoded(tensor: np.ndarray, skip: int, unary: int) -> bytes:
    """A tensor as DeepCABAC writes it; the published profile with adaptive states (param_opt)."""
    encoder = deepCABAC.Encoder()
    encoder.initCtxModels(unary, 1)
    empty = (
        (~tensor.reshape(len(tensor), -1).any(axis=1)).astype(np.int32) if tensor.ndim > 1 else np.zeros(len(tensor))
    )
    encoder.encodeLayer(tensor, 0, 0, 1, 0, skip, empty.astype(np.int32), *HDSP_OPTS_OFF(), 0, 0)
    return encoder.finish().tobytes()


def decoded(stream: bytes, shape: tuple[int, ...], unary: int) -> np.ndarray:
    """What comes back."""
    decoder, tensor = deepCABAC.Decoder(), np.zeros(shape, dtype=np.int32)
    decoder.setStream(np.frombuffer(stream, dtype=np.uint8))
    decoder.initCtxModels(unary)
    decoder.decodeLayer(tensor, 0, 0, 1, 0, *HDSP_OPTS_OFF(), 0, 0)
    decoder.finish()
    return tensor


def main() -> None:
    """Code all tensors of a file of arrays."""
    tensors = [np.ascontiguousarray(tensor.astype(np.int32)) for tensor in np.load(sys.argv[1]).values()]
    chosen = [min(SETTINGS, key=lambda own, t=tensor: len(encoded(t, *own))) for tensor in tensors]
    start = time.perf_counter()
    streams = [encoded(tensor, *own) for tensor, own in zip(tensors, chosen, strict=True)]
    middle = time.perf_counter()
    verified = True
    try:
        for tensor, stream, (_, unary) in zip(tensors, streams, chosen, strict=True):
            verified = verified and np.array_equal(decoded(stream, tensor.shape, unary), tensor)
        read_seconds = time.perf_counter() - middle
    except (RuntimeError, TypeError, ValueError) as error:
        verified, read_seconds = str(error), None
    print(json.dumps({"bytes": sum(map(len, streams)), "write_seconds": middle - start, "read_seconds": read_seconds,
                      "verified": verified, "chosen": chosen}))  # fmt: skip


if __name__ == "__main__":
    main()
