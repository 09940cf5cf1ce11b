"""A document is read once, in chunks; each question goes on from a copy that shares its memory.

python long_document.py [MODEL]
"""

import copy
import sys
from pathlib import Path

import kvquant
import torch
from kvquant import CompressedDynamicCache, load_model

model, tokenizer = load_model(sys.argv[1] if len(sys.argv) > 1 else "embedded")
text = Path(kvquant.find_asset("sample.txt")).read_text(encoding="utf-8")
document = tokenizer(text, return_tensors="pt").input_ids[:, :1024]

cache = CompressedDynamicCache.from_spec(model, "nuq4-1%")
with torch.no_grad():
    for chunk in document.split(256, dim=1):
        model(chunk, past_key_values=cache)
print(f"{cache.get_seq_length()} tokens in {cache.memory_bytes()} bytes")

for question in ("Who is it about?", "What happened at the end?"):
    ids = torch.cat([document, tokenizer(question, return_tensors="pt").input_ids], dim=1)
    branch = copy.deepcopy(cache)  # copy on write
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=branch,
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
    )
    print(question, "->", tokenizer.decode(out[0, ids.shape[1] :]).strip())
print(f"{cache.memory_bytes()} bytes with the last branch")
