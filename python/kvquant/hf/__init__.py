"""kvquant.hf: compressed caches for Hugging Face transformers. docs/huggingface.md shows it."""

from importlib.util import find_spec as _find_spec

if _find_spec("torch") is None or _find_spec("transformers") is None:
    raise ImportError("kvquant.hf needs torch and transformers: pip install 'kvquant[hf]'")

from kvquant.hf.attach import attach, detach
from kvquant.hf.cache import CompressedDynamicCache
from kvquant.hf.calibrated import load_calibrated_compressors
from kvquant.hf.collector import ActivationCollector
from kvquant.hf.compressors import Compressor, IdentityCompressor, LowRankCompressor
from kvquant.hf.loading import load_model, load_quantized_model
from kvquant.hf.presets import build_compressor_config_for_policy, create_cache_from_preset
from kvquant.hf.wrapper import QuantizedModelWrapper

__all__ = [
    "ActivationCollector",
    "CompressedDynamicCache",
    "Compressor",
    "IdentityCompressor",
    "LowRankCompressor",
    "QuantizedModelWrapper",
    "attach",
    "build_compressor_config_for_policy",
    "create_cache_from_preset",
    "detach",
    "load_calibrated_compressors",
    "load_model",
    "load_quantized_model",
]
