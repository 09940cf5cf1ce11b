"""Different formats for different layers and sides, compared by perplexity and size.

python per_layer_mix.py [MODEL]
"""

import sys

import kvquant
from kvquant import load_model

name = sys.argv[1] if len(sys.argv) > 1 else "embedded"
model, tokenizer = load_model(name)
specs = [
    "fp16",
    "nuq4-1%",
    "nuq3-1%",
    "k=nuq4-1%,v=nuq3",  # keys finer than values
    "nuq3-1%,layers=0-1:fp16",  # the first two layers as they are
    "nuq3-1%,sink=4,recent=64",  # the first and the last tokens as they are
]
results = kvquant.evaluate_perplexity(
    model, tokenizer, max_seq_len=512, stride=512, kv=specs, max_windows=2
)
print(f"{'spec':28} {'perplexity':>10} {'KL, nats':>9} {'bits':>6}")
for result in results:
    print(
        f"{result['spec']:28} {result['perplexity']:10.2f} {result['kl_mean']:9.5f} "
        f"{result['true_bits']:6.2f}"
    )
