"""Writes reference log-probabilities: logits.bin and logits.json.

    python logits.py SmolLM2-135M-Instruct.Q4_1.gguf

Needs llama-cpp-python, gguf and numpy. The reference is llama.cpp on an f32 dequantisation of the file, so that it
holds no noise of quantised arithmetic. The text is the prose of texts.py, cut at POSITIONS tokens; every position
predicts the next token from all tokens up to itself.

logits.bin, little endian:
    8 bytes "ESCREF1\\n", u32 positions, u32 top, u32 tokens[positions],
    then per position: u32 ids[top] (likeliest first), f32 log-probabilities[top], f32 log of the remaining mass.
logits.json: how far llama.cpp is from the reference when it runs the quantised file itself. Divergences are
KL(run || reference) in nats over top + 1 buckets: the ids of the reference, and all other tokens together.
"""

import ctypes
import json
import pathlib
import struct
import sys
import tempfile

import gguf
import llama_cpp
import numpy as np

from texts import PROSE

HERE = pathlib.Path(__file__).parent
POSITIONS = 200
TOP = 128
THREADS = 1


def write_f32(source, path):
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = value.types[0]
        sub_type = value.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value.contents(), kind, sub_type)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        shape = [int(size) for size in reversed(tensor.shape)]
        writer.add_tensor(tensor.name, values.reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Model:
    def __init__(self, path, f32_cache=True):
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = 512
        context.n_threads = context.n_threads_batch = THREADS
        if f32_cache:
            context.type_k = context.type_v = llama_cpp.GGML_TYPE_F32
            context.flash_attn_type = 0
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        self.width = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def encode(self, text):
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 16))()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, False)
        return list(ids[:count])

    def log_probabilities(self, tokens, chunk):
        """Logits of all positions in f64, normalised; `chunk` tokens at a time."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        rows = []
        for start in range(0, len(tokens), chunk):
            part = tokens[start : start + chunk]
            batch = llama_cpp.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for index, token in enumerate(part):
                batch.token[index] = token
                batch.pos[index] = start + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = True
            assert llama_cpp.llama_decode(self.context, batch) == 0
            for index in range(len(part)):
                row = llama_cpp.llama_get_logits_ith(self.context, index)
                rows.append(np.ctypeslib.as_array(row, shape=(self.width,)).astype(np.float64))
            llama_cpp.llama_batch_free(batch)
        rows = np.array(rows)
        top = rows.max(axis=1, keepdims=True)
        return rows - top - np.log(np.exp(rows - top).sum(axis=1, keepdims=True))


def buckets(rows, ids):
    """Log-probabilities of the given ids, and of everything else together."""
    named = np.take_along_axis(rows, ids, axis=1)
    rest = rows.copy()
    np.put_along_axis(rest, ids, -np.inf, axis=1)
    top = rest.max(axis=1, keepdims=True)
    tail = top + np.log(np.exp(rest - top).sum(axis=1, keepdims=True))
    return np.concatenate([named, tail], axis=1)


def divergence(rows, reference, ids):
    ours, theirs = buckets(rows, ids), buckets(reference, ids)
    return (np.exp(ours) * (ours - theirs)).sum(axis=1)


def distance(rows, reference, ids):
    kl = divergence(rows, reference, ids)
    full = (np.exp(rows) * (rows - reference)).sum(axis=1)
    return {
        "mean": float(kl.mean()),
        "max": float(kl.max()),
        "mean_of_all_tokens": float(full.mean()),
        "same_likeliest": int((rows.argmax(axis=1) == reference.argmax(axis=1)).sum()),
    }


def main(source):
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "f32.gguf"
        write_f32(source, path)
        exact = Model(path)
        tokens = exact.encode(PROSE)[:POSITIONS]
        assert len(tokens) == POSITIONS
        reference = exact.log_probabilities(tokens, POSITIONS)
        one_by_one = exact.log_probabilities(tokens, 1)
    ids = np.argsort(-reference, axis=1, kind="stable")[:, :TOP]
    quantised = Model(source)
    default = Model(source, f32_cache=False)
    runs = {
        "f32 weights, token by token": one_by_one,
        "quantised, one batch": quantised.log_probabilities(tokens, POSITIONS),
        "quantised, token by token": quantised.log_probabilities(tokens, 1),
        "quantised, default cache, one batch": default.log_probabilities(tokens, POSITIONS),
    }
    report = {
        "reference": f"llama-cpp-python {llama_cpp.__version__}, f32 dequantisation, f32 cache, one batch",
        "divergence_in_nats": {name: distance(rows, reference, ids) for name, rows in runs.items()},
    }
    (HERE / "logits.json").write_text(json.dumps(report, indent=2) + "\n")
    with open(HERE / "logits.bin", "wb") as out:
        out.write(b"ESCREF1\n" + struct.pack("<II", POSITIONS, TOP))
        out.write(np.array(tokens, dtype="<u4").tobytes())
        for row, names in zip(buckets(reference, ids), ids):
            out.write(names.astype("<u4").tobytes() + row.astype("<f4").tobytes())
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main(sys.argv[1])
