"""Find the smallest cache within a budget of perplexity, write it as a preset, serve with it.

python tune_and_deploy.py [MODEL]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import kvquant
from kvquant import create_cache_from_preset, load_model

name = sys.argv[1] if len(sys.argv) > 1 else "embedded"
text = kvquant.find_asset("sample.txt")  # take your own, and more of it
tune = ["tune", "-m", name, "--data", text, "--target", "kv", "--target-ppl-delta", "0.05"]
tune += ["--rank-grid", "none", "--codecs", "nuq4-1%/had+nuq4", "nuq3-1%", "--quiet"]
tune += ["-c", "512", "--samples", "4", "--windows", "2", "--test-windows", "2"]

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "mine.json")
    subprocess.run([sys.executable, "-m", "kvquant", *tune, "-o", str(file)], check=True)
    preset = kvquant.load_preset(file)
    print(f"{preset.spec}: {preset.total_compression:.2f} times smaller than fp16, ", end="")
    print(f"perplexity {preset.ppl_delta:+.2%}")

    model, tokenizer = load_model(name)
    cache = create_cache_from_preset(preset, model=model)
    inputs = tokenizer(Path(text).read_text(encoding="utf-8")[:1000], return_tensors="pt")
    out = model.generate(
        **inputs, past_key_values=cache, max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    print(tokenizer.decode(out[0, inputs.input_ids.shape[1] :]).strip())
