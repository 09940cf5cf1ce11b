"""kvquant: compressed KV caches for large language models.

The names are those of the C++ library; arrays are numpy arrays or torch CPU tensors, and results
come in the framework of what went in. docs/python.md shows them at work.
"""

from typing import TYPE_CHECKING

from kvquant._core import (
    BatchedKVQuantizer,
    BlockedCSCMatrix,
    BlockedCSRMatrix,
    CacheSpec,
    CalibrateOptions,
    CalibrationFit,
    DetailedEnergyProfiler,
    DeviceError,
    EnergyMonitor,
    EnergyReading,
    EnergyScope,
    FormatError,
    IoError,
    KeyThresholds,
    KvCache,
    KVPolicyName,
    KVQuantizerOptions,
    Model,
    OutOfMemory,
    ParetoPoint,
    PolicyModel,
    PrefillQuantizedAttention,
    Preset,
    QuantizedKVCache,
    ScaleRule,
    Session,
    Tokenizer,
    check_calibration_fits,
    check_spec_fits,
    choose_policy_for_run,
    choose_samples,
    codec_table,
    compute_nuq_codebook,
    create_heuristic_codebook,
    dequantize_from_nuq,
    estimate_scaling_factors,
    find_asset,
    find_model,
    fingerprint_of_checkpoint,
    fused_append_batch,
    fused_dequantize,
    fused_dequantize_batch,
    fused_quantize,
    fused_quantize_batch,
    get_cached_codebook,
    get_num_levels,
    get_nuq_bitwidth,
    get_sequence_lengths,
    list_presets,
    load_per_layer_codebooks,
    load_per_layer_scaling_factors,
    load_preset,
    marginal_key_bits,
    marginal_value_bits,
    parse_preset,
    parse_spec,
    policy_bytes,
    quantize_to_nuq,
    resolved,
    save_per_layer_codebooks,
    save_per_layer_scaling_factors,
    save_preset,
    score_continuations,
    spec_of_preset_name,
    spec_warnings,
    version,
    with_windows,
)
from kvquant._dispatch import (
    ActivationCollector,
    build_compressor_config_for_policy,
    get_preset_info,
)
from kvquant.calibration import calibrate, estimate_fisher, tune
from kvquant.evaluation import evaluate_perplexity

if TYPE_CHECKING:
    from kvquant.hf import CompressedDynamicCache as CompressedDynamicCache
    from kvquant.hf import IdentityCompressor as IdentityCompressor
    from kvquant.hf import QuantizedModelWrapper as QuantizedModelWrapper
    from kvquant.hf import create_cache_from_preset as create_cache_from_preset
    from kvquant.hf import load_calibrated_compressors as load_calibrated_compressors
    from kvquant.hf import load_model as load_model
    from kvquant.hf import load_quantized_model as load_quantized_model

# Of kvquant.hf, which imports torch and transformers: on first use.
_HF_NAMES = (
    "CompressedDynamicCache",
    "IdentityCompressor",
    "QuantizedModelWrapper",
    "create_cache_from_preset",
    "load_calibrated_compressors",
    "load_model",
    "load_quantized_model",
)


def __getattr__(name: str) -> object:
    if name not in _HF_NAMES:
        raise AttributeError(f"module 'kvquant' has no attribute '{name}'")
    from kvquant import hf

    value: object = getattr(hf, name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HF_NAMES])


__version__ = version().split()[0]

__all__ = [
    "ActivationCollector",
    "BatchedKVQuantizer",
    "BlockedCSCMatrix",
    "BlockedCSRMatrix",
    "CacheSpec",
    "CalibrateOptions",
    "CalibrationFit",
    "DetailedEnergyProfiler",
    "DeviceError",
    "EnergyMonitor",
    "EnergyReading",
    "EnergyScope",
    "FormatError",
    "IoError",
    "KVPolicyName",
    "KVQuantizerOptions",
    "KeyThresholds",
    "KvCache",
    "Model",
    "OutOfMemory",
    "ParetoPoint",
    "PolicyModel",
    "PrefillQuantizedAttention",
    "Preset",
    "QuantizedKVCache",
    "ScaleRule",
    "Session",
    "Tokenizer",
    "build_compressor_config_for_policy",
    "calibrate",
    "check_calibration_fits",
    "check_spec_fits",
    "choose_policy_for_run",
    "choose_samples",
    "codec_table",
    "compute_nuq_codebook",
    "create_heuristic_codebook",
    "dequantize_from_nuq",
    "estimate_fisher",
    "estimate_scaling_factors",
    "evaluate_perplexity",
    "find_asset",
    "find_model",
    "fingerprint_of_checkpoint",
    "fused_append_batch",
    "fused_dequantize",
    "fused_dequantize_batch",
    "fused_quantize",
    "fused_quantize_batch",
    "get_cached_codebook",
    "get_num_levels",
    "get_nuq_bitwidth",
    "get_preset_info",
    "get_sequence_lengths",
    "list_presets",
    "load_per_layer_codebooks",
    "load_per_layer_scaling_factors",
    "load_preset",
    "marginal_key_bits",
    "marginal_value_bits",
    "parse_preset",
    "parse_spec",
    "policy_bytes",
    "quantize_to_nuq",
    "resolved",
    "save_per_layer_codebooks",
    "save_per_layer_scaling_factors",
    "save_preset",
    "score_continuations",
    "spec_of_preset_name",
    "spec_warnings",
    "tune",
    "version",
    "with_windows",
]
