"""Writes gemma3.json: how far llama.cpp is from gemma3.bin when it runs the quantised file itself.

    python gemma3_quantised.py gemma-3-270m-q4_k_m.gguf

Needs llama-cpp-python and numpy. Divergences are KL(run || reference) in nats over the tokens that gemma3.bin names,
and all others together.
"""

import ctypes
import json
import pathlib
import sys

import llama_cpp
import numpy as np

HERE = pathlib.Path(__file__).parent
THREADS = 1


def reference():
    data = (HERE / "gemma3.bin").read_bytes()
    assert data[:8] == b"ESCREF1\n"
    words = np.frombuffer(data[8:], dtype="<u4")
    positions, top = int(words[0]), int(words[1])
    tokens, rest = words[2 : 2 + positions], words[2 + positions :].reshape(positions, 2 * top + 1)
    return tokens.tolist(), rest[:, :top].astype(np.int64), rest[:, top:].copy().view("<f4").astype(np.float64)


def run(source, tokens, chunk):
    """The logits of every position in its turn."""
    model = llama_cpp.llama_model_load_from_file(source.encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 1024
    settings.n_threads = settings.n_threads_batch = THREADS
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    settings.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, settings)
    width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        batch = llama_cpp.llama_batch_init(len(part), 0, 1)
        batch.n_tokens = len(part)
        for index, token in enumerate(part):
            batch.token[index], batch.pos[index] = token, start + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = True
        assert llama_cpp.llama_decode(context, batch) == 0
        for index in range(len(part)):
            row = llama_cpp.llama_get_logits_ith(context, index)
            yield np.ctypeslib.as_array(row, shape=(width,)).astype(np.float64)
        llama_cpp.llama_batch_free(batch)


def divergence(row, ids, logs):
    masses = np.exp(row - row.max())
    masses /= masses.sum()
    named = masses[ids]
    ours = np.append(named, max(masses.sum() - named.sum(), 1e-300))
    return float((ours * (np.log(ours) - logs)).sum())


def main(source):
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    tokens, ids, logs = reference()
    report = {"reference": f"llama-cpp-python {llama_cpp.__version__}, f32 cache", "divergence_in_nats": {}}
    for name, chunk in [("quantised, one batch", len(tokens)), ("quantised, token by token", 1)]:
        values = [divergence(*position) for position in zip(run(source, tokens, chunk), ids, logs)]
        report["divergence_in_nats"][name] = {"mean": float(np.mean(values)), "max": float(np.max(values))}
    (HERE / "gemma3.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main(sys.argv[1])
