"""The types of kvquant._core; `make stubs` writes this file."""

from collections.abc import Callable, Mapping, Sequence
import enum
import os
from typing import Any

import numpy

from kvquant._types import Array, ArrayT, Generation, Tokens


class FormatError(RuntimeError):
    pass

class IoError(RuntimeError):
    pass

class OutOfMemory(RuntimeError):
    pass

class DeviceError(RuntimeError):
    pass

def get_nuq_bitwidth(name: str) -> int:
    """Bits of a code: nuq3 has 3."""

def get_num_levels(name: str) -> int:
    """Levels of a codebook: nuq3 has 8."""

def create_heuristic_codebook(name: str) -> Any:
    """Levels for normal data, ascending in [-1, 1]: float32 [2^bits]."""

def get_cached_codebook(name: str) -> Any:
    """The same levels, computed once per process."""

def compute_nuq_codebook(values: ArrayT, weights: Array | None = None, bits: int = 3) -> ArrayT:
    """
    The 2^bits levels with the least weighted squared error on values [n], which are
    normalised; weights [n] or None. Weighted k-means, solved exactly.
    """

def quantize_to_nuq(x: ArrayT, codebook: str | Array) -> ArrayT:
    """
    Indices of the nearest levels, uint8 of x's shape. x is normalised float32 of any
    shape; codebook a name or levels [2^bits].
    """

def dequantize_from_nuq(codes: ArrayT, codebook: str | Array) -> ArrayT:
    """codebook[codes], float32 of the shape of codes."""

class ScaleRule:
    """Which statistic of |x| of a channel is its scale."""

    @staticmethod
    def mean_abs() -> ScaleRule:
        """The mean: the published choice."""

    @staticmethod
    def max_abs() -> ScaleRule:
        """The largest."""

    @staticmethod
    def percentile(percent: float) -> ScaleRule:
        """The ceil(n * percent / 100)-th smallest of n; percent in (0, 100]."""

def estimate_scaling_factors(x: ArrayT, attention_mask: Array | None = None, rule: ScaleRule = ...) -> ArrayT:
    """
    One scale per (head, channel), float32 [num_heads, head_dim], from x
    [batch, num_heads, seq_len, head_dim] and a mask [batch, seq_len].
    """

def save_per_layer_codebooks(dir: str | os.PathLike[str], layers: Sequence[Array]) -> None:
    """
    Writes dir/codebooks.safetensors; a layer is float32 [num_levels] or
    [num_heads, num_levels].
    """

def load_per_layer_codebooks(dir: str | os.PathLike[str]) -> list[Any]:
    """The layers that save_per_layer_codebooks wrote, as numpy arrays."""

def save_per_layer_scaling_factors(dir: str | os.PathLike[str], layers: Sequence[Array]) -> None:
    """
    Writes dir/scaling_factors.safetensors; a layer is float32 [num_heads, head_dim].
    """

def load_per_layer_scaling_factors(dir: str | os.PathLike[str]) -> list[Any]:
    """The layers that save_per_layer_scaling_factors wrote, as numpy arrays."""

class BlockedCSCMatrix:
    """
    Outliers of keys, [num_rows, num_tokens], that grow token by token; nothing that was
    appended moves.
    """

    def __init__(self, num_rows: int, block_size: int = 256, value_type: str = 'float32') -> None: ...

    def append_token(self, indices: Array, values: Array) -> None:
        """
        Appends one token: ascending indices (any integer type) and as many float32 values.
        """

    def append(self, indices: Array, values: Array) -> None:
        """
        Appends one token: ascending indices (any integer type) and as many float32 values.
        """

    def append_batch(self, offsets: Array, indices: Array, values: Array) -> None:
        """
        Appends len(offsets) - 1 tokens; token t has entries offsets[t] up to offsets[t + 1].
        """

    def batch_append(self, offsets: Array, indices: Array, values: Array) -> None:
        """
        Appends len(offsets) - 1 tokens; token t has entries offsets[t] up to offsets[t + 1].
        """

    def memory_footprint(self) -> dict[str, Any]:
        """
        Allocated bytes: offset_bytes, data_bytes, total_bytes, and num_nonzeros.
        """

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_nonzeros(self) -> int: ...

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    @property
    def num_rows(self) -> int: ...

    @property
    def num_cols(self) -> int: ...

    def to_dense(self) -> Any:
        """float32 [num_rows, num_cols]."""

    def to_standard_csc(self) -> tuple[Any, ...]:
        """
        (offsets int64 [num_tokens + 1], indices int32 [nnz], values float32 [nnz]).
        """

class BlockedCSRMatrix:
    """Outliers of values, [num_tokens, num_cols], that grow token by token."""

    def __init__(self, num_cols: int, block_size: int = 256, value_type: str = 'float32') -> None: ...

    def append_token(self, indices: Array, values: Array) -> None:
        """
        Appends one token: ascending indices (any integer type) and as many float32 values.
        """

    def append(self, indices: Array, values: Array) -> None:
        """
        Appends one token: ascending indices (any integer type) and as many float32 values.
        """

    def append_batch(self, offsets: Array, indices: Array, values: Array) -> None:
        """
        Appends len(offsets) - 1 tokens; token t has entries offsets[t] up to offsets[t + 1].
        """

    def batch_append(self, offsets: Array, indices: Array, values: Array) -> None:
        """
        Appends len(offsets) - 1 tokens; token t has entries offsets[t] up to offsets[t + 1].
        """

    def memory_footprint(self) -> dict[str, Any]:
        """
        Allocated bytes: offset_bytes, data_bytes, total_bytes, and num_nonzeros.
        """

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_nonzeros(self) -> int: ...

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    @property
    def num_rows(self) -> int: ...

    @property
    def num_cols(self) -> int: ...

    def to_dense(self) -> Any:
        """float32 [num_rows, num_cols]."""

    def to_standard_csr(self) -> tuple[Any, ...]:
        """
        (offsets int64 [num_tokens + 1], indices int32 [nnz], values float32 [nnz]).
        """

class KeyThresholds:
    """Which |key| of a channel are outliers, fixed by the first call."""

    @property
    def magnitudes(self) -> list[float]: ...

    @property
    def ties(self) -> list[int]: ...

class QuantizedKVCache:
    """
    Keys or values of a padded batch: packed codes and outliers. Views have
    the positions of the padded tensors and are made at every access.
    """

    @property
    def side(self) -> str: ...

    @property
    def batch(self) -> int: ...

    @property
    def num_heads(self) -> int: ...

    @property
    def seq_len(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def bits(self) -> int: ...

    @property
    def seq_lengths(self) -> Any:
        """Real tokens: int64 [batch]."""

    @property
    def codebook(self) -> Any:
        """Levels: float32 [2^bits]."""

    @property
    def scaling_factors(self) -> Any:
        """float32 [num_heads, head_dim]."""

    @property
    def quantized_indices(self) -> Any:
        """uint8 [batch, num_heads, seq_len, head_dim]."""

    @property
    def outlier_mask(self) -> Any:
        """bool of the same shape."""

    @property
    def outlier_values(self) -> Any:
        """float32 of the same shape, 0 where there is no outlier."""

    @property
    def key_thresholds(self) -> KeyThresholds: ...

    def memory_bytes(self) -> int:
        """Allocated bytes, exactly."""

def get_sequence_lengths(attention_mask: ArrayT) -> ArrayT:
    """Real tokens of each row of a mask [batch, seq_len]: int64 [batch]."""

class KVQuantizerOptions:
    """How keys or values of a padded batch are quantized."""

    def __init__(self, codebook: str | Array = 'nuq3', scaling_factors: Array | None = None, outlier_fraction: float = 0.01, block_size: int = 256) -> None:
        """
        codebook: a name or levels [2^bits]; scaling_factors [num_heads, head_dim], None for
        units; outlier_fraction in [0, 0.05]; block_size in tokens.
        """

    @property
    def outlier_fraction(self) -> float: ...

    @property
    def block_size(self) -> int: ...

def fused_quantize_batch(side: str, x: Array, attention_mask: Array | None, options: KVQuantizerOptions, thresholds: KeyThresholds | None = None) -> QuantizedKVCache:
    """
    Quantizes x [batch, num_heads, seq_len, head_dim], side 'keys' or 'values', mask
    [batch, seq_len] or None.
    """

def fused_quantize(side: str, x: Array, options: KVQuantizerOptions, thresholds: KeyThresholds | None = None) -> QuantizedKVCache:
    """
    Quantizes one sequence x [num_heads, seq_len, head_dim], side 'keys' or 'values'.
    """

def fused_append_batch(cache: QuantizedKVCache, x: Array, attention_mask: Array | None = None) -> None:
    """Adds tokens to every sequence; earlier bytes stay as they are."""

def fused_dequantize_batch(cache: QuantizedKVCache) -> Any:
    """
    Decoded float32 [batch, num_heads, seq_len, head_dim], zeros in padding.
    """

def fused_dequantize(cache: QuantizedKVCache) -> Any:
    """Decoded float32 [num_heads, seq_len, head_dim] of a single sequence."""

class BatchedKVQuantizer:
    """Quantizes keys or values of padded batches, with the options kept."""

    def __init__(self, codebook: str | Array = 'nuq3', scaling_factors: Array | None = None, outlier_fraction: float = 0.01, block_size: int = 256) -> None:
        """The arguments of KVQuantizerOptions."""

    @property
    def options(self) -> KVQuantizerOptions: ...

    def quantize_keys(self, x: Array, attention_mask: Array | None = None, thresholds: KeyThresholds | None = None) -> QuantizedKVCache:
        """
        x [batch, num_heads, seq_len, head_dim] float32; attention_mask [batch, seq_len], 1 for
        real tokens, which are consecutive; None: all are real.
        """

    def quantize_values(self, x: Array, attention_mask: Array | None = None) -> QuantizedKVCache:
        """As quantize_keys."""

    def append_keys(self, cache: QuantizedKVCache, x: Array, attention_mask: Array | None = None) -> None:
        """Adds tokens; earlier bytes don't change."""

    def append_values(self, cache: QuantizedKVCache, x: Array, attention_mask: Array | None = None) -> None:
        """Adds tokens; earlier bytes don't change."""

    def dequantize(self, cache: QuantizedKVCache) -> Any:
        """
        Decoded float32 [batch, num_heads, seq_len, head_dim], zeros in padding.
        """

    def extract_key_outliers_to_sparse(self, cache: QuantizedKVCache, head_idx: int) -> list[BlockedCSCMatrix]:
        """One matrix [head_dim, real tokens] for each sequence."""

    def extract_value_outliers_to_sparse(self, cache: QuantizedKVCache, head_idx: int) -> list[BlockedCSRMatrix]:
        """One matrix [real tokens, head_dim] for each sequence."""

class PrefillQuantizedAttention:
    """
    Causal attention over a padded batch whose keys and values are quantized
    from the first prompt token on. Keys and queries as attention multiplies
    them: rotated (RoPE), if at all.
    """

    def __init__(self, num_heads: int, head_dim: int, codebook: str | Array = 'nuq3', scaling_factors: Array | None = None, outlier_fraction: float = 0.01, block_size: int = 256, num_kv_heads: int | None = None, value_scaling_factors: Array | None = None, num_threads: int = 0) -> None:
        """
        codebook: a name or levels [2^bits]. scaling_factors [num_kv_heads, head_dim] of keys
        (value_scaling_factors of values, by default the same); None: estimated from the first
        prefill. num_threads 0: one for each core.
        """

    def forward(self, query: ArrayT, key: Array, value: Array, attention_mask: Array | None = None, is_prefill: bool = True) -> ArrayT:
        """
        query [batch, num_heads, seq_len, head_dim], key and value [batch, num_kv_heads,
        seq_len, head_dim], attention_mask [batch, seq_len] of these tokens. Returns float32 of
        query's shape, zeros in padding. A prefill starts new caches, else tokens are appended.
        """

    @property
    def key_cache(self) -> QuantizedKVCache: ...

    @property
    def value_cache(self) -> QuantizedKVCache: ...

    def compute_round_trip_error(self, keys: Array, attention_mask: Array | None = None) -> dict[str, Any]:
        """
        What quantizing keys [batch, num_kv_heads, seq_len, head_dim] loses: mse,
        max_abs_error, relative_error.
        """

class CacheSpec:
    """What is stored for keys and values, e.g. 'k=nuq4-1%,v=nuq3,sink=4'."""

    def __init__(self, text: str) -> None: ...

    @property
    def text(self) -> str:
        """As typed."""

    @property
    def resolved(self) -> str:
        """The long form, with every default written out."""

    @property
    def key(self) -> str: ...

    @property
    def value(self) -> str: ...

    @property
    def sink(self) -> int | None:
        """First tokens kept fp16; None: the mode decides."""

    @property
    def recent(self) -> int | None:
        """Last tokens kept fp16; None: the mode decides."""

    @property
    def block(self) -> int:
        """Tokens of a block."""

    def key_of(self, layer: int) -> str:
        """The codec of a layer's keys."""

    def value_of(self, layer: int) -> str:
        """The codec of a layer's values."""

    def __str__(self) -> str: ...

    def __repr__(self) -> str: ...

def parse_spec(text: str) -> CacheSpec:
    """
    Raises ValueError with the position of a mistake and what was expected there.
    """

def resolved(spec: str | CacheSpec) -> str:
    """The long form of a spec, with every default written out."""

def with_windows(spec: str | CacheSpec, mode: str) -> CacheSpec:
    """The spec with the windows that 'strict' or 'as-served' implies."""

def check_spec_fits(spec: str | CacheSpec, num_layers: int, head_dim: int) -> None:
    """Raises ValueError for specs no such model can use."""

def spec_warnings(spec: str | CacheSpec) -> list[str]:
    """What is unusual about a spec, a line each."""

def codec_table(head_dim: int = 128, num_kv_heads: int = 8) -> list[dict[str, Any]]:
    """
    The codecs: codec, key_bits and value_bits (marginal, per value; None where it is not
    built), built, description.
    """

def marginal_key_bits(codec: str, head_dim: int) -> float:
    """Bits per stored key of one more token; 0: not built for keys."""

def marginal_value_bits(codec: str, head_dim: int, num_kv_heads: int) -> float:
    """Bits per stored value of one more token; 0: not built for values."""

class KvCache:
    """
    Keys and values of any number of sequences, stored as a spec says, and attention over
    them. One layer after the other: append or attend, for all layers of a chunk.
    """

    def __init__(self, num_layers: int, num_kv_heads: int, head_dim: int, spec: str | CacheSpec = 'nuq4-1%', mode: str = 'as-served', rope_theta: float = 10000.0, frequencies: Sequence[float] | None = None, max_positions: int = 131072, sliding_window: int | Sequence[int] = 0, calibration: str | os.PathLike[str] | None = None, precision: str = 'auto', num_threads: int = 0, scaling_factors: Sequence[Array] | None = None) -> None:
        """
        spec: a string or CacheSpec. mode: 'as-served' (the chunk's own tokens and the tail are
        exact) or 'strict' (every token is read as it is stored). frequencies [head_dim / 2]:
        angles of RoPE between neighbouring positions, instead of those of rope_theta.
        sliding_window: tokens that a query reads, 0: all; a list says it for each layer.
        calibration: a file of kvquant calibrate. num_threads 0: one for each core.
        scaling_factors: instead of a calibration, scales of key channels, one float32
        [num_kv_heads, head_dim] per layer, of keys before RoPE, around zero points of 0.
        """

    def add_sequence(self) -> int:
        """A new, empty sequence: its id."""

    def fork(self, sequence: int) -> int:
        """
        A new sequence of the same tokens; the two share memory (copy on write).
        """

    def drop(self, sequence: int) -> None:
        """Frees what no fork shares."""

    def truncate(self, sequence: int, length: int) -> None:
        """
        Forgets the tokens from length on. Only exact ones (as served the last `recent`) can be
        forgotten: ValueError, and nothing has changed, for others.
        """

    def can_truncate(self, sequence: int, length: int) -> bool:
        """Whether truncate would do it; of a settled sequence."""

    def settle(self, sequence: int) -> None:
        """
        Ends a chunk once its last layer was attended: encodes what has left the tail.
        """

    def splice(self, sequence: int, from_sequence: int, first_token: int, num_tokens: int) -> None:
        """
        Appends whole encoded tiles of another sequence; they move to the positions behind.
        """

    def length(self, sequence: int) -> int:
        """Tokens that are in all layers."""

    def num_compressed_tokens(self, sequence: int) -> int:
        """Tokens that the last query read in compressed form."""

    def save(self, sequence: int, path: str | os.PathLike[str], tokens: Tokens, model_fingerprint: str = '') -> None:
        """
        Writes a sequence with its token ids (integers [length]); see docs/formats.md.
        """

    def load(self, path: str | os.PathLike[str], model_fingerprint: str = '') -> tuple[Any, ...]:
        """
        (id of a new sequence, token ids int32 [length]) of a file that a cache of the same
        shape, spec, mode, calibration and fingerprint wrote.
        """

    def append(self, layer: int, sequence: int, key: Array, value: Array) -> None:
        """
        Appends num_new tokens to one layer: key (before RoPE) and value, float32 [num_new,
        num_kv_heads, head_dim]. Layers are appended in step: layer 0 first, the next one with
        the same number of tokens.
        """

    def attend(self, layer: int, sequence: int, query: ArrayT, key: Array | None = None, value: Array | None = None, is_rotated: bool = False, scale: float | None = None) -> ArrayT:
        """
        Appends key and value, when they are given, and attends with query [num_new,
        num_q_heads, head_dim] of these tokens to all that the layer holds, causally. Query
        before RoPE, or after it with is_rotated; scale of the scores, 1 / sqrt(head_dim) by
        default. Returns float32 of query's shape. Before the next layer is appended.
        """

    def read(self, layer: int, sequence: int) -> tuple[Any, ...]:
        """
        (keys after RoPE, values), float32 [num_tokens, num_kv_heads, head_dim] each, as the
        last query reads them: decoded, in the framework of the last append. Costs what the
        sequence takes in float32; low-rank sides are expanded. Before the next layer is appended.
        """

    def memory_bytes(self, sequences: Sequence[int] | None = None) -> int:
        """
        Allocated bytes, of these sequences as if they shared nothing; by default of all.
        """

    def scratch_bytes(self) -> int: ...

    def peak_bytes(self) -> int:
        """The most that memory and scratch were at a time, since reset_peak."""

    def reset_peak(self) -> None: ...

    def set_max_bytes(self, max_bytes: int) -> None:
        """From now on OutOfMemory above it; 0: no limit."""

    @property
    def spec(self) -> CacheSpec:
        """With the windows that the mode implies."""

    @property
    def mode(self) -> str: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

def version() -> str:
    """Version and commit of the engine."""

class Tokenizer:
    """Byte-pair tokenizer of a model."""

    def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """
        Token ids. add_special_tokens: BOS in front, where the model is configured so.
        parse_special: '<|im_end|>' in the text is a token, not ten letters.
        """

    def decode(self, ids: Tokens, skip_special_tokens: bool = True) -> str:
        """Text of token ids; half a character becomes U+FFFD."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos_token_id(self) -> int: ...

    @property
    def eos_token_id(self) -> int: ...

class Model:
    """A checkpoint ready to run on the CPU."""

    @staticmethod
    def load(path: str | os.PathLike[str], num_threads: int = 0, precision: str = 'auto', weights: str = 'auto', context: int = 0, calibration: str | os.PathLike[str] | None = None) -> Model:
        """
        path: a GGUF file, a Hugging Face directory, 'smollm2' or 'embedded'.
        num_threads 0: one for each core. precision 'auto', 'f32', 'bf16'; weights
        'auto', 'bf16', 'int8'. context: tokens, for dynamic RoPE scaling only.
        calibration: a file of kvquant calibrate.
        """

    @property
    def path(self) -> str: ...

    @property
    def config(self) -> dict[str, Any]:
        """Its hyperparameters."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def eos_token_ids(self) -> list[int]: ...

    @property
    def chat_template(self) -> str:
        """Jinja text; '' when the model has none."""

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], name: str = '') -> str:
        """
        Messages of 'role' and 'content' as a prompt that ends where the answer begins. name:
        of a template instead of the model's own, as --chat-template of kvquant chat.
        """

    @property
    def num_parameters(self) -> int: ...

    @property
    def weight_bytes(self) -> int: ...

class ActivationCollector:
    """
    Keys (before RoPE) and values of a model's layers, gathered while sessions
    run it between install_hooks and remove_hooks.
    """

    def __init__(self, model: Model, max_samples: int = 16) -> None: ...

    def install_hooks(self) -> None: ...

    def remove_hooks(self) -> None: ...

    def increment_sample_count(self) -> None:
        """Ends the samples that have begun."""

    @property
    def num_samples(self) -> int: ...

    def get_keys(self, layer_idx: int) -> Any:
        """float32 [num_samples, num_kv_heads, seq_len, head_dim], before RoPE."""

    def get_queries(self, layer_idx: int) -> Any:
        """float32 [num_samples, num_q_heads, seq_len, head_dim], before RoPE."""

    def get_values(self, layer_idx: int) -> Any:
        """float32 [num_samples, num_kv_heads, seq_len, head_dim]."""

def find_model(name: str = '') -> str:
    """
    Where a model lies: a path, 'smollm2', 'embedded', or '' for the better of the two.
    """

def find_asset(name: str) -> str:
    """Where a file of assets/ lies."""

class Session:
    """One conversation with a model over a compressed cache."""

    def __init__(self, model: Model, kv: str | CacheSpec = 'fp16', mode: str = 'as-served', context: int = 0, ubatch: int = 512) -> None:
        """
        kv: a spec. context: most tokens, 0 for the model's. ubatch: tokens that go through the
        layers at once.
        """

    def forward(self, tokens: str | Tokens) -> numpy.ndarray[Any, Any]:
        """
        Feeds text or token ids; the logits after the last one, float32 [vocab_size].
        """

    def feed(self, tokens: str | Tokens) -> numpy.ndarray[Any, Any]:
        """The same as forward."""

    def score(self, tokens: str | Tokens) -> numpy.ndarray[Any, Any]:
        """
        Feeds text or token ids; the log-likelihood in nats of each token but the first,
        float64 [num_tokens - 1].
        """

    def generate(self, prompt: str | Tokens, max_tokens: int = 128, temperature: float = 0.0, top_k: int = 40, top_p: float = 0.95, min_p: float = 0.05, repeat_penalty: float = 1.0, seed: int = 42, stop_tokens: Sequence[int] | None = None, on_token: Callable[[int], bool] | None = None) -> Generation:
        """
        Feeds the prompt (text, or token ids) and samples until a stop token (by default those of
        the model), max_tokens, the end of the context, or on_token(id) returns False. temperature
        0 is greedy. Returns tokens, text, stop ('stop_token', 'max_tokens', 'context_full',
        'caller'), num_prompt_tokens, prompt_s, generation_s.
        """

    def truncate(self, length: int) -> None:
        """Forgets the last tokens until length are left; as KvCache.truncate."""

    def restart(self) -> None:
        """Forgets everything."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the cache and its tokens."""

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on from a file of the same model, spec, mode and calibration."""

    def memory_bytes(self) -> int:
        """Allocated bytes of the cache."""

    @property
    def length(self) -> int: ...

    @property
    def context(self) -> int: ...

    @property
    def num_compressed_tokens(self) -> int: ...

    @property
    def tokens(self) -> list[int]: ...

    @property
    def spec(self) -> CacheSpec: ...

def score_continuations(model: Model, requests: Sequence[tuple[Tokens, Tokens]], kv: str | CacheSpec = 'fp16', mode: str = 'strict', ubatch: int = 512, on_progress: Callable[[int, int], None] | None = None) -> list[tuple[float, bool, int]]:
    """
    Likelihoods of continuations, requests of (context, continuation) as token ids: for each
    the sum of its tokens' log-likelihoods in nats, whether each was the most likely one, and
    how many compressed tokens were read. A context that several share is read once.
    on_progress(done, total) counts requests.
    """

def evaluate_tokens(model: Model, tokens: Tokens, specs: Sequence[str | CacheSpec], window: int, stride: int, max_windows: int, mode: str, ubatch: int) -> list[dict[str, Any]]:
    """
    What evaluate_perplexity does with the tokens of a text: a dict for each spec.
    """

class CalibrateOptions:
    """What is fitted and to how much; the options of kvquant calibrate."""

    def __init__(self, samples: int = 16, seq_len: int = 2048, rank: int = 0, seed: int = 42, ubatch: int = 512, recipe: str = 'error-saved', outliers: str = '', feedback: str = '', codebook: str = '', codebook_weights: str = '', codebook_per: str = 'layer', bases: str = 'outputs', fisher: str | os.PathLike[str] | None = None) -> None:
        """
        seq_len: tokens of a sample. rank 0: head_dim. What is '' is as the recipe says; see
        kvquant calibrate --help.
        """

    @property
    def samples(self) -> int: ...

    @property
    def seq_len(self) -> int: ...

    @property
    def ubatch(self) -> int: ...

class CalibrationFit:
    """
    Fits a calibration to activations that came from another runtime, layer by
    layer, as kvquant calibrate fits them to the engine's own.
    """

    def __init__(self, num_layers: int, num_q_heads: int, num_kv_heads: int, head_dim: int, fingerprint: str, options: CalibrateOptions, texts: Sequence[tuple[str, int, int, str]], frequencies: Sequence[float], score_scale: float | None = None, sliding_window: int = 0, num_threads: int = 0) -> None:
        """texts: of choose_samples. frequencies [head_dim / 2]: of RoPE."""

    def add_layer(self, queries: Array, keys: Array, values: Array, output_weight: Array) -> None:
        """
        The next layer: queries and keys before RoPE, values, [num_samples * seq_len, heads,
        head_dim], sample after sample; the weight of its output projection [hidden,
        num_q_heads * head_dim].
        """

    def save(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Writes the file of all layers; returns what it says of itself."""

def calibrate_tokens(model: Model, texts: Sequence[tuple[str, Tokens]], options: CalibrateOptions, output: str | os.PathLike[str], on_progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """What calibrate does with the tokens of texts."""

def choose_samples(texts: Sequence[tuple[str, Tokens]], bos: int, options: CalibrateOptions) -> tuple[list[list[int]], list[tuple[str, int, int, str]]]:
    """
    Samples of texts, with bos in front unless it is -1, as kvquant calibrate takes them; and
    where they come from.
    """

def fingerprint_of_checkpoint(path: str | os.PathLike[str]) -> str:
    """Model.fingerprint of a file or folder, without loading it."""

def name_of_checkpoint(path: str | os.PathLike[str]) -> str:
    """What presets call the model of a file or folder."""

def check_calibration_fits(calibration: str | os.PathLike[str], fingerprint: str, num_layers: int, num_q_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """ValueError when a calibration file was made for another model."""

class ParetoPoint:
    """A setting that no other beats in bytes and KL."""

    @property
    def spec(self) -> str: ...

    @property
    def true_bits(self) -> float: ...

    @property
    def ppl_delta(self) -> float: ...

    @property
    def kl_divergence(self) -> float: ...

class Preset:
    """A spec that was tuned for a model, with its figures."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def model_fingerprint(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def spec(self) -> str: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def rank(self) -> int: ...

    @property
    def target(self) -> str:
        """Which sides are compressed: 'v', 'k' or 'kv'."""

    @property
    def bits(self) -> int: ...

    @property
    def pareto(self) -> list[ParetoPoint]: ...

    @property
    def calibration_file(self) -> str: ...

    @property
    def calibration_path(self) -> str:
        """Where it lies; '' when there is none."""

    @property
    def path(self) -> str:
        """Where it was loaded from."""

    def to_json(self) -> str:
        """What save_preset writes."""

    def __repr__(self) -> str: ...

    @property
    def compression_ratio(self) -> float:
        """Of keys and values to fp16."""

    @property
    def side_compression(self) -> float:
        """Of the compressed sides alone."""

    @property
    def total_compression(self) -> float:
        """The same as compression_ratio."""

    @property
    def baseline_ppl(self) -> float | None: ...

    @property
    def compressed_ppl(self) -> float | None: ...

    @property
    def ppl_delta(self) -> float | None:
        """Relative; None where it was not measured."""

    @property
    def ppl_delta_low(self) -> float | None: ...

    @property
    def ppl_delta_high(self) -> float | None: ...

    @property
    def kl_divergence(self) -> float | None:
        """Nats, a mean over tokens."""

    @property
    def top1_agreement(self) -> float | None: ...

    @property
    def true_bits(self) -> float | None: ...

    @property
    def target_ppl_delta(self) -> float | None: ...

    @property
    def window(self) -> int: ...

    @property
    def eval_tokens(self) -> int: ...

    @property
    def eval_text_sha256(self) -> str: ...

def load_preset(path: str | os.PathLike[str]) -> Preset:
    """A preset's file."""

def parse_preset(text: str, path: str = 'preset') -> Preset:
    """A preset's JSON; path stands in messages."""

def save_preset(preset: Preset, path: str | os.PathLike[str]) -> None:
    """Atomically."""

def list_presets() -> list[Preset]:
    """All presets that come with kvquant."""

def get_preset_info(model: str, name: str) -> Preset:
    """
    A preset of a model ('smollm2', 'embedded' or a path): a file, a name such as
    'balanced', or 'r120-vonly' and the like, which need no file.
    """

def spec_of_preset_name(name: str) -> CacheSpec | None:
    """
    The spec that 'r120-vonly' or 'r96-kv-int8' stands for; None when it is no such name.
    """

class TuneTexts:
    """What tuning calibrates on, selects on and tests on: no two share text."""

    def __init__(self, texts: Sequence[tuple[str, Tokens]], test: Sequence[tuple[str, Tokens]], calibration: str | os.PathLike[str] | None, window_tokens: int, windows: int, test_windows: int, calibration_tokens: int) -> None:
        """
        texts: token ids with the names of their files; test: one of its own, or none.
        calibration: a file that is there already. window_tokens, calibration_tokens: of a
        window and of a sample, without BOS.
        """

    @property
    def calibration(self) -> list[tuple[str, list[int]]]:
        """
        (name, token ids) of what a calibration is to be made from; [] where there is one.
        """

    def made(self, calibration: str | os.PathLike[str], fingerprint: str, options: CalibrateOptions, num_bos: int) -> bool:
        """Whether a file is what calibrating on these texts would give."""

def tune_with(measure: Callable[[list[int], list[CacheSpec]], list[dict[str, Any]]], texts: TuneTexts, specs: Sequence[CacheSpec], *, model: str, fingerprint: str, shape: tuple[int, int, int], name: str, target_ppl_delta: float, window: int, num_bos: int, run: str, calibration: str | os.PathLike[str] | None, log: str | os.PathLike[str], output: str | os.PathLike[str]) -> Preset:
    """
    kvquant tune of a model that another program runs: measure gives the results of specs on
    the tokens of one window, without BOS, strict, with the names of evaluate_perplexity.
    shape: (num_layers, num_kv_heads, head_dim); run: what else decides figures; log: what is
    measured already. Writes the preset and its calibration; ValueError where none is found.
    """

def tune_candidates(num_layers: int, head_dim: int, target: str, ranks: Sequence[int], bits: Sequence[int], codecs: Sequence[str], specs: Sequence[str], sink: int | None = None, recent: int | None = None) -> list[CacheSpec]:
    """
    The specs that kvquant tune would try. ranks []: its grid; bits []: no low-rank ones.
    """

def round_calibration(path: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """A calibration with the numbers that the file of a preset has."""

def check_preset_fits(preset: Preset, name: str, fingerprint: str, num_layers: int, head_dim: int) -> None:
    """ValueError when a preset was made for another model."""

class KVPolicyName(enum.Enum):
    """From the least to the most compressed."""

    default = 0

    high_compression = 1

    memory_emergency = 2

    DEFAULT = 0

    HIGH_COMPRESSION = 1

    MEMORY_EMERGENCY = 2

class PolicyModel:
    """What of a model decides the size of its cache."""

    def __init__(self, num_layers: int, num_kv_heads: int, head_dim: int, max_context: int = 0, sliding_window: int = 0, weight_bytes: int = 0) -> None:
        """
        max_context in tokens, 0: not known; sliding_window 0: none; weight_bytes in memory.
        """

    @property
    def num_layers(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def max_context(self) -> int: ...

    @property
    def sliding_window(self) -> int: ...

    @property
    def weight_bytes(self) -> int: ...

def build_compressor_config_for_policy(config: PolicyModel | Model, model_id: str, policy_name: KVPolicyName | str) -> dict[str, Any]:
    """
    What a policy stores for a model: policy, model_id, spec, ppl_budget, key_codec,
    value_codec, sink_tokens, recent_tokens, use_hadamard_v, use_ln_nullspace_v.
    """

def policy_bytes(config: PolicyModel | Model, policy_name: KVPolicyName | str, batch: int, max_context: int) -> int:
    """
    Bytes of weights and of the caches of `batch` sequences of max_context tokens each.
    """

def choose_policy_for_run(config: PolicyModel | Model, memory: int, batch: int, max_context: int, ppl_budget: float = float('inf')) -> KVPolicyName:
    """
    The least compressed policy that fits into `memory` bytes and whose ppl_budget (relative)
    is within the one given. ValueError when none is.
    """

class EnergyReading:
    """
    Energy of the whole machine over a time; None where it was neither
    measured nor assumed.
    """

    @property
    def duration_s(self) -> float: ...

    @property
    def energy_joules(self) -> float | None: ...

    @property
    def avg_power_watts(self) -> float | None: ...

    @property
    def carbon_kg(self) -> float | None: ...

    @property
    def idle_joules(self) -> float | None:
        """Of them, what an idle machine takes; after measure_idle."""

    @property
    def kind(self) -> str:
        """'measured', 'assumed' or 'not measured'."""

    @property
    def note(self) -> str:
        """By what, or why not."""

    def __repr__(self) -> str: ...

class EnergyMonitor:
    """A stopwatch of energy."""

    def __init__(self, gpu_id: int = 0, assume_power_watts: float | None = None, carbon_kg_per_kwh: float | None = None, powercap: str | os.PathLike[str] = ..., nvml: str | os.PathLike[str] = ...) -> None:
        """
        gpu_id -1: no GPU. A power is assumed only where no counter can be read. The carbon
        intensity is the world's where none is given.
        """

    def start(self) -> None: ...

    def stop(self) -> EnergyReading:
        """What was taken since start."""

    def measure_idle(self, seconds: float) -> float | None:
        """Watts of the idle machine; None without counters."""

    @property
    def counters(self) -> list[str]: ...

    @property
    def missing(self) -> list[str]:
        """What can't be read, and why."""

class EnergyScope:
    """What DetailedEnergyProfiler.profile returns."""

    def __enter__(self) -> EnergyScope: ...

    def __exit__(self, exc_type: object | None = None, exc_value: object | None = None, traceback: object | None = None) -> None: ...

    def set_tokens(self, count: int) -> None: ...

class DetailedEnergyProfiler:
    """Energy per named operation."""

    def __init__(self, output_dir: str | os.PathLike[str], gpu_id: int = 0, assume_power_watts: float | None = None, carbon_kg_per_kwh: float | None = None, powercap: str | os.PathLike[str] = ..., nvml: str | os.PathLike[str] = ...) -> None:
        """As EnergyMonitor; makes the folder."""

    def profile(self, operation: str) -> EnergyScope:
        """with profiler.profile('prefill') as scope: …"""

    def save_summary(self) -> None:
        """
        energy_summary.json and energy_measurements.csv (energy_assumed.csv where the power
        was assumed) in output_dir.
        """
