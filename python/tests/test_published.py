"""Lines that were published as examples of the package run as they are, in a new interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# What the lines take as given.
GIVEN = """
import torch
from kvquant import ActivationCollector, BatchedKVQuantizer, BlockedCSCMatrix
from kvquant import CompressedDynamicCache, IdentityCompressor, KVPolicyName
from kvquant import PrefillQuantizedAttention, QuantizedModelWrapper
from kvquant import build_compressor_config_for_policy, create_cache_from_preset
from kvquant import evaluate_perplexity, get_preset_info, load_calibrated_compressors, load_model

torch.manual_seed(0)
keys = torch.randn(2, 4, 300, 64)
attention_mask = torch.ones(2, 300, dtype=torch.long)
attention_mask[1, 200:] = 0
q = torch.randn(1, 32, 20, 128)
k, v = torch.randn(1, 32, 20, 128), torch.randn(1, 32, 20, 128)
mask = torch.ones(1, 20)
rows, values = torch.tensor([3, 77]), torch.tensor([2.5, -4.0])
path = name = "embedded"
"""

# Each published line, and what has to hold behind it.
LINES = [
    (
        'cache = BatchedKVQuantizer(codebook="nuq3", outlier_fraction=0.01)'
        ".quantize_keys(keys, attention_mask)",
        "cache.memory_bytes() < keys.numel() * 2",
    ),
    (
        'out = PrefillQuantizedAttention(num_heads=32, head_dim=128, codebook="nuq3")'
        ".forward(q, k, v, mask, is_prefill=True)",
        "out.shape == q.shape and bool(out.isfinite().all())",
    ),
    (
        "BlockedCSCMatrix(num_rows=128, block_size=256).append_token(rows, values)",
        "True",
    ),
    ("model, tokenizer = load_model(path)", "model.config.num_hidden_layers == 6"),
    (
        'ids = tokenizer("The lighthouse stood at the end of the pier.", return_tensors="pt")'
        ".input_ids\n"
        "with torch.no_grad():\n"
        "    before = model(ids).logits\n"
        'wrapper = QuantizedModelWrapper(model, codebook="nuq3")\n'
        "wrapper.patch()\n"
        "with torch.no_grad():\n"
        "    patched = model(ids).logits\n"
        "wrapper.unpatch()\n"
        "with torch.no_grad():\n"
        "    after = model(ids).logits",
        "torch.equal(before, after) and not torch.equal(before, patched)",
    ),
    (
        "collector = ActivationCollector(model, max_samples=16)\n"
        "collector.install_hooks()\n"
        "with torch.no_grad():\n"
        "    model(ids)\n"
        "collector.increment_sample_count()\n"
        "collector.remove_hooks()\n"
        "collected = collector.get_keys(layer_idx=0)",
        "tuple(collected.shape) == (1, model.config.num_key_value_heads, ids.shape[1], 64)",
    ),
    # One window: the whole of the sample text takes longer than a test should.
    (
        "perplexity = evaluate_perplexity("
        'model, tokenizer, max_seq_len=2048, stride=512, max_windows=1)["perplexity"]',
        "1 < perplexity < 1000",
    ),
    (
        'preset = get_preset_info(name, "r48-vonly")\n'
        "cache = create_cache_from_preset(preset)\n"
        "ids_out = model.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)",
        "ids_out.shape[1] == ids.shape[1] + 4 and cache.get_seq_length() == ids.shape[1] + 3",
    ),
    (
        "path = preset.calibration_path\n"
        'k_comp, v_comp, meta = load_calibrated_compressors(path, device="cpu", quantize_bits=8)\n'
        "k_comp[0] = IdentityCompressor()\n"
        "cache = CompressedDynamicCache(k_comp, v_comp, num_layers=6)\n"
        "ids_out = model.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)",
        'ids_out.shape[1] == ids.shape[1] + 4 and meta["quantize_bits"] == 8',
    ),
    (
        "null_space = build_compressor_config_for_policy(model.config, model_id=name, "
        'policy_name=KVPolicyName.MEMORY_EMERGENCY)["use_ln_nullspace_v"]',
        "null_space is True",
    ),
]


def test_published_lines_run_as_written(tmp_path: Path) -> None:
    checks = [f"{line}\nassert {check}, {check!r}" for line, check in LINES]
    script = tmp_path / "published.py"
    script.write_text("\n".join([GIVEN, *checks, 'print("all", flush=True)']), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout.strip()) == (0, "all"), done.stderr
