#!/usr/bin/env python3
"""Writes dequant.txt: blocks of every weight format and the floats the `gguf` package makes of them.

Needs numpy and gguf 0.19. A line is: format name, bytes of a row in hex, little-endian float32 values
in hex. Run: python3 tests/golden/make_dequant_golden.py > tests/golden/dequant.txt
"""
import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

ROWS, COLUMNS = 6, 64
CENTRED, AFFINE = (Type.Q8_0, Type.Q4_0, Type.Q5_0), (Type.Q4_1, Type.Q5_1)
SUPER_ROWS = 2
SPECIAL_HALVES = [0x0001, 0x03FF, 0x0400, 0x3C00, 0x7BFF, 0x8001, 0xFBFF, 0x0000]


def main() -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    values[1] *= 1e-6  # scales that are subnormal halves
    values[2] *= 300
    values[3] = 0
    for kind in (Type.F32, Type.F16, Type.BF16, *CENTRED, *AFFINE):
        packed = quantize(values, kind).view(np.uint8).reshape(ROWS, -1)
        if kind in CENTRED + AFFINE:  # every byte at random, then scales at the edges of half
            block = packed.shape[1] // 2
            packed[4:] = rng.integers(0, 256, packed[4:].shape, dtype=np.uint8)
            for i, half in enumerate(rng.permutation(SPECIAL_HALVES)[:4]):
                row, start = 4 + i // 2, (i % 2) * block
                packed[row, start : start + 2] = np.array([half], np.uint16).view(np.uint8)
                if kind in AFFINE:
                    other = SPECIAL_HALVES[i + 1]
                    packed[row, start + 2 : start + 4] = np.array([other], np.uint16).view(np.uint8)
        floats = dequantize(packed, kind).astype("<f4")
        for row in range(ROWS):
            print(kind.name, packed[row].tobytes().hex(), floats[row].tobytes().hex())
    # The package does not write these: every byte at random, ordinary scales and some at the edges.
    for kind, places in ((Type.Q4_K, (0, 2)), (Type.Q5_K, (0, 2)), (Type.Q6_K, (208,))):
        packed = rng.integers(0, 256, (SUPER_ROWS, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        for row in range(SUPER_ROWS):
            for place in places:
                half = rng.choice(SPECIAL_HALVES) if row else np.float16(rng.normal() * 1e-3).view(np.uint16)
                packed[row, place : place + 2] = np.array([half], np.uint16).view(np.uint8)
        floats = dequantize(packed, kind).astype("<f4")
        for row in range(SUPER_ROWS):
            print(kind.name, packed[row].tobytes().hex(), floats[row].tobytes().hex())


if __name__ == "__main__":
    main()
