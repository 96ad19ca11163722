"""Writes what `transformers` computes for tiny models of every architecture.

    pip install torch==2.9.1 transformers==4.57.6
    python make.py

For each case there are two files: <case>.json has the configuration as `transformers` saves it, the shape, scale and
offset of every tensor, and the tokens; <case>.f32 has the logits of all tokens, one row after the other, as
little-endian f32. Weights are not stored: this script and the test that reads its results compute them by the same
rule (see `values`). Every tensor is random, norms and biases too, so that nothing can be left out unnoticed.
"""

import json
import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
TOKENS = 40
VOCABULARY = 128
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
}


def longrope(pairs):
    return {
        "type": "longrope",
        "short_factor": [1.0 + 0.125 * pair for pair in range(pairs)],
        "long_factor": [2.0 + 1.5 * pair for pair in range(pairs)],
    }


# Name: the class, what differs from BASE, and the context that the runtime is told to allow.
CASES = {
    "llama": ("Llama", {"rope_theta": 10000.0}, None),
    "llama3": (
        "Llama",
        {
            "rope_theta": 500000.0,
            "rope_scaling": LLAMA3,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
        },
        None,
    ),
    "mistral": ("Mistral", {"sliding_window": 8}, None),
    "mistral_small": ("Mistral", {"sliding_window": None, "head_dim": 24, "rope_theta": 1e8}, None),
    "qwen2": (
        "Qwen2",
        {"rope_theta": 1e6, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        None,
    ),
    "qwen3": ("Qwen3", {"head_dim": 24, "rope_theta": 1e6, "rope_scaling": YARN, "tie_word_embeddings": True}, None),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 24,
            "query_pre_attn_scalar": 9,
            "sliding_window": 8,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
        },
        None,
    ),
    "gemma3": (
        "Gemma3",
        {
            "num_hidden_layers": 7,
            "head_dim": 24,
            "query_pre_attn_scalar": 9,
            "sliding_window": 8,
            "rope_theta": 1e6,
            "rope_local_base_freq": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        None,
    ),
    "phi3_short": (
        "Phi3",
        {"rope_scaling": longrope(8), "original_max_position_embeddings": 64, "sliding_window": 8},
        64,
    ),
    "phi3_long": (
        "Phi3",
        {"rope_scaling": longrope(6), "original_max_position_embeddings": 32, "partial_rotary_factor": 0.75},
        None,
    ),
    "smollm3": ("SmolLM3", {"rope_theta": 2e6}, None),
}


def values(name, shape, scale, offset):
    """Numbers from the name and the index of a value: splitmix64, of which the highest 16 bits are used."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    index = np.arange(1, np.prod(shape) + 1, dtype=np.uint64)
    mixed = np.uint64(seed) + index * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    unit = (mixed >> np.uint64(48)).astype(np.float32) / np.float32(32768) - np.float32(1)
    return (unit * np.float32(scale) + np.float32(offset)).reshape(shape)


def scale_and_offset(name, shape, is_gemma):
    if "norm" in name:
        return 0.5, 0.0 if is_gemma else 1.0
    if name.endswith("bias"):
        return 0.5, 0.0
    if "embed_tokens" in name:
        return 0.5, 0.0
    if "lm_head" in name:
        return 0.375, 0.0
    # Queries and keys are larger, so that attention prefers some tokens clearly.
    return {"q_proj": 0.5, "k_proj": 0.5, "qkv_proj": 0.5}.get(name.split(".")[-2], 0.3125), 0.0


def make(name, architecture, changes, context):
    is_gemma = architecture.startswith("Gemma")
    prefix = "Gemma3Text" if architecture == "Gemma3" else architecture
    config = getattr(transformers, f"{prefix}Config")(**{**BASE, **changes}, attn_implementation="eager")
    config.architectures = [f"{architecture}ForCausalLM"]
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval().float()
    tensors = {}
    for tensor, parameter in model.named_parameters():
        scale, offset = scale_and_offset(tensor, parameter.shape, is_gemma)
        tensors[tensor] = [list(parameter.shape), scale, offset]
        parameter.data = torch.from_numpy(values(tensor, tuple(parameter.shape), scale, offset))
    model.tie_weights()
    tokens = [(7 * index * index + 11 * index + 5) % VOCABULARY for index in range(TOKENS)]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].numpy()
    assert logits.std() >= 1, f"{name}: {logits.std()}"
    saved = json.loads(config.to_json_string())
    saved.pop("transformers_version")
    case = {"config": saved, "max_context": context, "tensors": tensors, "tokens": tokens}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in case.items()]
    (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    (HERE / f"{name}.f32").write_bytes(logits.astype("<f4").tobytes())
    print(f"{name}: standard deviation {logits.std():.2f}, largest {abs(logits).max():.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, (architecture, changes, context) in CASES.items():
        make(name, architecture, changes, context)
