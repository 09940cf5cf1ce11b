"""SmolLM2 in transformers, from the GGUF file: the oracle that kvquant is compared with.

Weights are dequantised to float32 by the gguf package, query and key rows go back to Hugging
Face's order, and the tokenizer is put together from the file's metadata. Nothing of kvquant is
used here.
"""
import math
import pathlib

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
GGUF_PATH = ROOT / "models" / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

HF_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name: str) -> str:
    """"blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{HF_NAMES[part]}.weight"


def unpermuted(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """GGUF interleaves the halves that RoPE rotates together; Hugging Face keeps them apart."""
    rows, num_in = weight.shape
    return (weight.reshape(num_heads, rows // num_heads // 2, 2, num_in)
            .swapaxes(1, 2).reshape(rows, num_in))


def load_model(reader: gguf.GGUFReader) -> LlamaForCausalLM:
    def field(key: str):
        return reader.fields[key].contents()

    config = LlamaConfig(
        vocab_size=field("llama.vocab_size"), hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"),
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=1e-5, tie_word_embeddings=True, attn_implementation="sdpa",
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")})
    state = {}
    for tensor in reader.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if "attn_q." in tensor.name:
            weight = unpermuted(weight, config.num_attention_heads)
        if "attn_k." in tensor.name:
            weight = unpermuted(weight, config.num_key_value_heads)
        state[hf_name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(weight))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config).float().eval()
    model.load_state_dict(state)
    return model


def load_tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in reader.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    control = int(gguf.TokenType.CONTROL)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)
                                  for text, kind in zip(tokens, types) if kind == control])
    return tokenizer


def load() -> tuple[LlamaForCausalLM, Tokenizer]:
    reader = gguf.GGUFReader(GGUF_PATH)
    return load_model(reader), load_tokenizer(reader)


def chat(user: str) -> str:
    """The model's ChatML template around one message of the user."""
    return (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
            "<|im_start|>assistant\n")


@torch.no_grad()
def greedy(model: LlamaForCausalLM, ids: list[int], num_tokens: int,
           past=None) -> tuple[list[int], list[float]]:
    """Tokens and, for each, the margin of its logit over the runner-up's."""
    tokens, margins = [], []
    feed = torch.tensor([ids])
    for _ in range(num_tokens):
        out = model(feed, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = out.past_key_values
        best = out.logits[0, -1].topk(2)
        tokens.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        feed = best.indices[:1].view(1, 1)
    return tokens, margins


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, ids: list[int], window: int) -> tuple[float, int]:
    """Windows of `window` tokens side by side, a last shorter one included, the first token of
    each not scored. Returns the perplexity and the number of tokens scored."""
    total, scored = 0.0, 0
    for begin in range(0, len(ids), window):
        part = torch.tensor([ids[begin:begin + window]])
        if part.shape[1] < 2:
            break
        logits, targets = model(part).logits[0, :-1], part[0, 1:]
        for rows, row_targets in zip(logits.split(256), targets.split(256)):  # bounds memory
            log_p = rows.double().log_softmax(-1)
            total -= float(log_p.gather(1, row_targets[:, None]).sum())
        scored += part.shape[1] - 1
    return math.exp(total / scored), scored
