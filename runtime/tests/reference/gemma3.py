"""Writes reference log-probabilities of Gemma 3 270M: gemma3.bin, in the format that logits.py describes.

    python gemma3.py gemma-3-270m-q4_k_m.gguf

Needs torch, transformers and gguf. The reference is `transformers` with the f32 dequantisation of the file. The text is
the prose of texts.py, cut greedily into the longest tokens, and longer than the window of the model.
"""

import pathlib
import struct
import sys

import gguf
import numpy as np
import torch
import transformers

from texts import PROSE

HERE = pathlib.Path(__file__).parent
POSITIONS = 600
TOP = 16


def configuration(reader):
    def get(name):
        return reader.fields[f"gemma3.{name}"].contents()

    return transformers.Gemma3TextConfig(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        hidden_size=get("embedding_length"),
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=get("attention.head_count"),
        num_key_value_heads=get("attention.head_count_kv"),
        head_dim=get("attention.key_length"),
        query_pre_attn_scalar=get("attention.key_length"),
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_theta=get("rope.freq_base"),
        sliding_window=get("attention.sliding_window"),
        attn_implementation="eager",
    )


def name_of(tensor):
    fixed = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if tensor in fixed:
        return fixed[tensor]
    _, index, part, _ = tensor.split(".")
    parts = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    return f"model.layers.{index}.{parts[part]}.weight"


def load(reader):
    model = transformers.Gemma3ForCausalLM(configuration(reader)).eval().float()
    state = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        # The file has the norms' weights with 1 added.
        values = values - 1 if "norm" in tensor.name else values
        shape = [int(size) for size in reversed(tensor.shape)]
        state[name_of(tensor.name)] = torch.from_numpy(np.ascontiguousarray(values.reshape(shape)))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model


def encode(reader, text):
    pieces = {piece: index for index, piece in enumerate(reader.fields["tokenizer.ggml.tokens"].contents())}
    text = text.replace(" ", "\u2581")
    tokens = [2]
    while text:
        length = next(length for length in range(min(len(text), 24), 0, -1) if text[:length] in pieces)
        tokens.append(pieces[text[:length]])
        text = text[length:]
    return tokens


def main(source):
    torch.set_num_threads(1)
    reader = gguf.GGUFReader(source)
    tokens = encode(reader, PROSE * 3)[:POSITIONS]
    assert len(tokens) == POSITIONS
    model = load(reader)
    with torch.no_grad():
        rows = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    logs, ids = rows.topk(TOP)
    rest = torch.log1p(-logs.exp().sum(-1)).clamp(min=-100)
    with open(HERE / "gemma3.bin", "wb") as out:
        out.write(b"ESCREF1\n" + struct.pack("<II", POSITIONS, TOP))
        out.write(np.array(tokens, dtype="<u4").tobytes())
        for names, values, tail in zip(ids.numpy(), logs.numpy(), rest.numpy()):
            out.write(names.astype("<u4").tobytes() + values.astype("<f4").tobytes())
            out.write(np.float32(tail).tobytes())
    own = rows[torch.arange(POSITIONS - 1), torch.tensor(tokens[1:])]
    print(f"{POSITIONS} tokens, {-own.mean():.3f} nats per token")


if __name__ == "__main__":
    main(sys.argv[1])
