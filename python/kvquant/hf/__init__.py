"""kvquant.hf: compressed caches for Hugging Face transformers. docs/huggingface.md shows it."""

from kvquant.hf.attach import attach, detach
from kvquant.hf.cache import CompressedDynamicCache
from kvquant.hf.compressors import Compressor, IdentityCompressor, LowRankCompressor
from kvquant.hf.wrapper import QuantizedModelWrapper

__all__ = [
    "CompressedDynamicCache",
    "Compressor",
    "IdentityCompressor",
    "LowRankCompressor",
    "QuantizedModelWrapper",
    "attach",
    "detach",
]
