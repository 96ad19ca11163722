"""Writes the token ids that llama.cpp gives for the texts of texts.py: tokens.json.

    python tokens.py SmolLM2-135M-Instruct.Q4_1.gguf

Needs llama-cpp-python, gguf and numpy. Vocabularies of other kinds are made from this model's: the same tokens with
another value of `tokenizer.ggml.pre`, and a SentencePiece-like vocabulary of the same pieces (see `spm_vocabulary`,
which the test repeats).
"""

import ctypes
import json
import pathlib
import sys
import tempfile

import gguf
import llama_cpp

from texts import LONG, TEXTS

HERE = pathlib.Path(__file__).parent
# The pattern of `tekken` in llama.cpp stands in for another one and differs from it on letters that are not ASCII.
PRE = ["default", "gpt-2", "llama-bpe", "qwen2", "tekken"]


def field(reader, name):
    return reader.fields[f"tokenizer.ggml.{name}"].contents()


def byte_of_char():
    printable = list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def spm_vocabulary(reader):
    """<unk>, <s>, </s>, all bytes, two control tokens, one user-defined token, then the pieces that are UTF-8."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    kinds = [2, 3, 3] + [6] * 256
    tokens += ["<|im_start|>", "<|im_end|>", "<tool>"]
    kinds += [3, 3, 4]
    table = byte_of_char()
    seen = set(tokens)
    for token, kind in zip(field(reader, "tokens"), field(reader, "token_type")):
        if kind != 1:
            continue
        try:
            piece = bytes(table[char] for char in token).decode().replace(" ", "▁")
        except UnicodeDecodeError:
            continue
        # llama.cpp cuts tokens at a zero byte when it reads them.
        if piece not in seen and "\0" not in piece:
            seen.add(piece)
            tokens.append(piece)
            kinds.append(1)
    scores = [0.0 if kind != 1 else -float(index) for index, kind in enumerate(kinds)]
    return tokens, kinds, scores


def write_bpe(path, reader, pre):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(field(reader, "tokens"))
    writer.add_token_types(field(reader, "token_type"))
    writer.add_token_merges(field(reader, "merges"))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    close(writer)


def write_spm(path, reader):
    tokens, kinds, scores = spm_vocabulary(reader)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_scores(scores)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    close(writer)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Vocabulary:
    def __init__(self, path):
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def encode(self, text, parse_special):
        data = text.encode()
        size = len(data) + 16
        ids = (llama_cpp.llama_token * size)()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, size, False, parse_special)
        assert count >= 0
        return list(ids[:count])

    def encode_all(self, texts, parse_special):
        return [self.encode(text, parse_special) for text in texts]


def main(model):
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    reader = gguf.GGUFReader(model)
    own = Vocabulary(model)
    short = [text for text in TEXTS if text not in LONG]
    result = {
        "reference": f"llama-cpp-python {llama_cpp.__version__}",
        "texts": TEXTS,
        "parse": own.encode_all(TEXTS, True),
        "as_text": own.encode_all(TEXTS, False),
        "short_texts": short,
        "pre": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "vocabulary.gguf"
        for pre in PRE:
            write_bpe(path, reader, pre)
            result["pre"][pre] = Vocabulary(path).encode_all(short, True)
        write_spm(path, reader)
        spm = Vocabulary(path)
        result["spm_parse"] = spm.encode_all(short, True)
        result["spm_as_text"] = spm.encode_all(short, False)
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in result.items()]
    (HERE / "tokens.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(TEXTS)} texts")


if __name__ == "__main__":
    main(sys.argv[1])
