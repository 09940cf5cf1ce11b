#!/usr/bin/env python3
"""Writes the golden files of the integration tests with transformers, in float32.

    make_golden.py tiny [NAME...]   tests/golden/tiny_*/: random checkpoints with golden.json
    make_golden.py rope      tests/golden/rope.json: frequencies of all kinds of RoPE scaling
    make_golden.py smollm2   tests/golden/smollm2.json, from models/ (scripts/get-model smollm2)

Needs torch, transformers, safetensors, tokenizers, gguf and numpy from PyPI. Versions used are
written into the files. golden.json: `prompts`, each with `ids`, `logits` {position: [vocab]} and
`greedy` (12 tokens, stop tokens go on; every step is a forward pass over the whole sequence, which
matters where RoPE depends on its length);
smollm2.json: `tokenizer`, `greedy`, `perplexity`.
"""
import argparse
import json
import math
import pathlib

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

HERE = pathlib.Path(__file__).resolve().parent
VOCAB = 272  # a little more than the tokenizer's, as in many real checkpoints
MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("e", "r"), ("Ġ", "a"), ("o", "n"),
          ("a", "n"), ("in", "g"), ("Ġa", "n")]
SHAPES = {
    "tiny_untied": dict(hidden=32, ffn=32, layers=2, heads=4, kv_heads=2, head_dim=8, tied=False,
                        dtype=torch.bfloat16, theta=10000.0, eps=1e-5, shards=1),
    "tiny_tied": dict(hidden=32, ffn=24, layers=1, heads=4, kv_heads=4, head_dim=8, tied=True,
                      dtype=torch.float32, theta=500.0, eps=1e-6, shards=1),
    "tiny_mqa": dict(hidden=32, ffn=40, layers=2, heads=2, kv_heads=1, head_dim=16, tied=True,
                     dtype=torch.float16, theta=100000.0, eps=1e-5, shards=1),
    "tiny_sharded": dict(hidden=32, ffn=32, layers=1, heads=2, kv_heads=1, head_dim=24, tied=False,
                         dtype=torch.bfloat16, theta=10000.0, eps=1e-5, shards=3),
}
# Other architectures and RoPE scaling: one small shape, `config` says what is special.
COMMON = dict(hidden=32, ffn=32, layers=2, heads=4, kv_heads=2, head_dim=16, tied=True,
              dtype=torch.bfloat16, theta=10000.0, eps=1e-6, shards=1)
for _name, _config in {
    "tiny_mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 8},
    "tiny_qwen2": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False,
                   "sliding_window": 8, "max_window_layers": 1},
    "tiny_qwen3": {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": False,
                   "sliding_window": None, "max_window_layers": 2},
    # Half of the wavelengths are on either side of the blends.
    "tiny_llama3": {"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}},
    "tiny_linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    # The longest prompt and what it generates are longer than this.
    "tiny_dynamic": {"max_position_embeddings": 24,
                     "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "tiny_yarn": {"max_position_embeddings": 64, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
        "original_max_position_embeddings": 64, "beta_fast": 8.0, "beta_slow": 1.0}},
}.items():
    SHAPES[_name] = dict(COMMON, config=_config)


def write_json(path: pathlib.Path, content) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n")


def versions() -> dict:
    return {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__}


# ---- tiny random checkpoints ---------------------------------------------------------------------


def tiny_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>"] + alphabet + [a + b for a, b in MERGES]
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(tokens)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return tokenizer


def config_json(shape: dict) -> dict:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB,
        "hidden_size": shape["hidden"], "intermediate_size": shape["ffn"],
        "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"], "head_dim": shape["head_dim"],
        "max_position_embeddings": 512, "rms_norm_eps": shape["eps"], "hidden_act": "silu",
        "tie_word_embeddings": shape["tied"], "attention_bias": False, "mlp_bias": False,
        "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": str(shape["dtype"]).split(".")[1],
    }
    config.update(shape.get("config", {}))
    architecture = config["architectures"][0].removesuffix("ForCausalLM").lower()
    config["model_type"] = architecture
    if "rope_parameters" in config:
        return config
    if shape["shards"] > 1:  # the newer spelling, once
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": shape["theta"]}
    else:
        config["rope_theta"] = shape["theta"]
    return config


def random_weights(model, generator: torch.Generator) -> None:
    """Gains that keep the residual stream alive and spread the logits over several units."""
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith(".bias"):
            weight.data = noise
            if "k_proj" in name:  # as in Qwen2: far means of channels that hardly rotate
                heads = weight.data.view(-1, 16)
                heads[:, 7] += 25
                heads[:, 15] -= 40
        elif weight.dim() == 1:
            weight.data = 1 + 0.2 * noise
        else:
            gain = 1.5 if "layers" in name else 3.0
            weight.data = noise * gain / math.sqrt(weight.shape[1])


def save_checkpoint(folder: pathlib.Path, model, shape: dict) -> None:
    state = {name: tensor.to(shape["dtype"]).contiguous()
             for name, tensor in model.state_dict().items()
             if not (shape["tied"] and name == "lm_head.weight")}
    num = shape["shards"]
    if num == 1:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return
    names, weight_map = sorted(state), {}
    for i in range(num):
        file_name = f"model-{i + 1:05}-of-{num:05}.safetensors"
        part = {name: state[name] for name in names[i::num]}
        save_file(part, folder / file_name, {"format": "pt"})
        weight_map.update({name: file_name for name in part})
    size = sum(t.numel() * t.element_size() for t in state.values())
    write_json(folder / "model.safetensors.index.json",
               {"metadata": {"total_size": size}, "weight_map": weight_map})


@torch.no_grad()
def prompt_golden(model, ids: list[int], positions: list[int]) -> dict:
    logits = model(torch.tensor([ids])).logits[0]
    greedy, margins = list(ids), []
    for _ in range(12):
        best = model(torch.tensor([greedy])).logits[0, -1].topk(2)
        greedy.append(int(best.indices[0]))
        margins.append(round(float(best.values[0] - best.values[1]), 4))
    return {"ids": ids,
            "logits": {str(p): [float(f"{x:.6g}") for x in logits[p].tolist()] for p in positions},
            "greedy": greedy[len(ids):], "margins": margins}


def make_tiny(names: list[str]) -> None:
    for seed, (name, shape) in enumerate(SHAPES.items(), start=11):
        if names and name not in names:
            continue
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        config = config_json(shape)
        generator = torch.Generator().manual_seed(seed)
        write_json(folder / "config.json", config)
        tiny_tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
        model_config = transformers.AutoConfig.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_config(model_config)
        random_weights(model, generator)
        save_checkpoint(folder, model, shape)
        # Load again: the golden is what transformers computes from the files.
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager").eval()
        prompts = [torch.randint(1, VOCAB, (n,), generator=generator).tolist() for n in (1, 7, 40)]
        write_json(folder / "golden.json", {
            "made_by": versions(),
            "prompts": [prompt_golden(model, ids, sorted({len(ids) // 2, len(ids) - 1}))
                        for ids in prompts]})
        margins = [m for p in json.loads((folder / "golden.json").read_text())["prompts"]
                   for m in p["margins"]]
        print(f"{name}: least greedy margin {min(margins)}")


# ---- RoPE scaling --------------------------------------------------------------------------------

ROPE_CASES = [  # rope_scaling as config.json has it, and what is beside it
    ({"type": "linear", "factor": 2.5}, {}),
    ({"rope_type": "dynamic", "factor": 2.0}, {"length": 4096}),
    ({"rope_type": "dynamic", "factor": 2.0}, {"length": 5000}),
    ({"rope_type": "dynamic", "factor": 8.0}, {"length": 30000, "head_dim": 80}),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}, {"head_dim": 128, "theta": 500000.0}),
    ({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}, {"theta": 500000.0}),
    ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
     {"head_dim": 128, "theta": 1000000.0}),
    ({"rope_type": "yarn", "factor": 16.0, "finetuned": True}, {}),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096,
      "beta_fast": 16, "beta_slow": 2, "truncate": False, "attention_factor": 1.25}, {}),
    ({"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096,
      "mscale": 1.0, "mscale_all_dim": 0.8}, {"head_dim": 64}),
    ({"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 64}, {}),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}, {"head_dim": 16}),
]


def make_rope() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    cases = []
    for scaling, beside in ROPE_CASES:
        head_dim, theta = beside.get("head_dim", 96), beside.get("theta", 10000.0)
        fields = {"head_dim": head_dim, "rope_theta": theta, "max_position_embeddings": 4096,
                  "rope_scaling": scaling}
        config = transformers.LlamaConfig(hidden_size=head_dim * 4, num_attention_heads=4,
                                          **json.loads(json.dumps(fields)))
        kind = scaling.get("rope_type", scaling.get("type"))
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu",
                                                        seq_len=beside.get("length"))
        cases.append({"config": fields, "length": beside.get("length", 0),
                      "attention_factor": factor,
                      "frequencies": [float(f"{x:.8g}") for x in frequencies.tolist()]})
    write_json(HERE / "rope.json", {"made_by": versions(), "cases": cases})


# ---- SmolLM2 -------------------------------------------------------------------------------------

STRINGS = [
    "", "Hello, world!", " leading and trailing spaces  ",
    "It's 1984; they'll say we've won, won't they?",
    "12345 67.89 3,000,000", "a\tb\n\nc\r\nd   e", "def f(x):\n    return x ** 2  # square\n",
    "naïve café Straße Ærøskøbing", "Привет, мир", "日本語のテキスト、混ぜ書き。",
    "مرحبا بالعالم", "🙂👩‍👩‍👧‍👦 ok 🇩🇪",
    "<|im_start|>user\nHi<|im_end|>\n", "text <|endoftext|> more<|im_end|>",
    "<|im_start| > not special",
    "ALLCAPS camelCase snake_case kebab-case", "x" * 40, "…“quoted”—dash ½ ² x²", "e\u0301 vs \u00e9 \u00a0nbsp\u200b",
    "The harbour master's boat is called Marigold.\n\nQuestion: What is it called?\nAnswer:",
]
RAW_PROMPTS = [
    "The capital of France is", "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n", "Water boils at a temperature of",
    "1, 2, 3, 4, 5, 6,",
]
CHAT_PROMPTS = [
    "What is the capital of Italy?", "Write a short poem about the sea.",
    "Explain in one sentence what a lighthouse is for.", "List three colours.",
    "Who wrote Romeo and Juliet?",
]


def make_smollm2() -> None:
    import smollm2_hf

    torch.set_num_threads(2)
    model, tokenizer = smollm2_hf.load()

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    greedy = []
    for kind, prompts in (("raw", RAW_PROMPTS), ("chat", CHAT_PROMPTS)):
        for prompt in prompts:
            ids = encode(smollm2_hf.chat(prompt) if kind == "chat" else prompt)
            tokens, margins = smollm2_hf.greedy(model, ids, 24)
            greedy.append({"kind": kind, "prompt": prompt, "ids": ids, "tokens": tokens,
                           "margins": [round(m, 4) for m in margins],
                           "text": tokenizer.decode(tokens)})
            print(f"{kind} {prompt!r} -> {greedy[-1]['text']!r}", flush=True)
    ids = encode((smollm2_hf.ROOT / "assets" / "sample.txt").read_text())
    perplexities = []
    for window in (1024, 2048):
        value, scored = smollm2_hf.perplexity(model, ids, window)
        perplexities.append({"window": window, "perplexity": round(value, 6), "tokens": scored})
        print(perplexities[-1], flush=True)
    write_json(HERE / "smollm2.json", {
        "made_by": versions(), "file": smollm2_hf.GGUF_PATH.name,
        "tokenizer": [{"text": text, "ids": encode(text)} for text in STRINGS],
        "greedy": greedy,
        "perplexity": {"text": "assets/sample.txt", "num_tokens": len(ids),
                       "windows": perplexities}})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tiny", "rope", "smollm2"])
    parser.add_argument("names", nargs="*", help="of tiny: only these folders")
    arguments = parser.parse_args()
    if arguments.what == "tiny":
        make_tiny(arguments.names)
    else:
        {"rope": make_rope, "smollm2": make_smollm2}[arguments.what]()
