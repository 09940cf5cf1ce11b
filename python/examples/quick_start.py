"""A compressed cache under generate(): what it says, and what it weighs.

python quick_start.py [MODEL]    a Hugging Face directory, a GGUF file, smollm2 or embedded
"""

import sys

import torch
from kvquant import CompressedDynamicCache, load_model
from transformers import DynamicCache

model, tokenizer = load_model(sys.argv[1] if len(sys.argv) > 1 else "embedded")
prompt = "The lighthouse stood at the end of the pier. " * 20
inputs = tokenizer(prompt, return_tensors="pt")
options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}

plain = DynamicCache(config=model.config)
cache = CompressedDynamicCache.from_spec(model, "nuq3-1%")
with torch.no_grad():
    expected = model.generate(**inputs, past_key_values=plain, **options)
    out = model.generate(**inputs, past_key_values=cache, **options)

length = inputs.input_ids.shape[1]
print("plain:     ", tokenizer.decode(expected[0, length:]))
print("compressed:", tokenizer.decode(out[0, length:]))
fp16_bytes = sum(layer.keys.numel() + layer.values.numel() for layer in plain.layers) * 2
print(
    f"{cache.get_seq_length()} tokens, {cache.num_compressed_tokens()} of them compressed: ", end=""
)
print(f"{cache.memory_bytes()} bytes instead of {fp16_bytes} in fp16")
