"""Writes a model of the shape of Llama with 0.55 billion random weights of 16 bits: what is measured is arithmetic, not
answers.

    llama_shaped.py MODEL.gguf TARGET.gguf

MODEL gives the vocabulary (its first 32,000 tokens) and the chat template. The result depends on nothing else.
"""

import sys

import gguf
import numpy

source, target = sys.argv[1:]
LAYERS, HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, VOCABULARY, CONTEXT = 8, 2048, 8192, 32, 8, 32_000, 4096
NORMAL = gguf.TokenType.NORMAL
dice = numpy.random.Generator(numpy.random.PCG64(7))
fields = gguf.GGUFReader(source).fields


def field(name):
    return fields[f"tokenizer.ggml.{name}"].contents()


def matrix(rows, columns):
    """Evenly spread, with a standard deviation of 0.02: each number is a single IEEE operation on the dice's."""
    values = dice.random((rows, columns), dtype=numpy.float32)
    values -= numpy.float32(0.5)
    values *= numpy.float32(0.04 * 3 ** 0.5)
    return values.astype(numpy.float16)


tokens, kinds = field("tokens")[:VOCABULARY], field("token_type")[:VOCABULARY]
known = set(tokens)
writer = gguf.GGUFWriter(target, "llama")
writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
writer.add_block_count(LAYERS)
writer.add_context_length(CONTEXT)
writer.add_embedding_length(HIDDEN)
writer.add_feed_forward_length(FEED_FORWARD)
writer.add_head_count(HEADS)
writer.add_head_count_kv(KV_HEADS)
writer.add_rope_dimension_count(HIDDEN // HEADS)
writer.add_rope_freq_base(10_000.0)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(VOCABULARY)
writer.add_tokenizer_model(field("model"))
writer.add_tokenizer_pre(field("pre"))
writer.add_token_list(tokens)
writer.add_token_types(kinds)
writer.add_token_merges([merge for merge in field("merges") if {*merge.split(" "), merge.replace(" ", "")} <= known])
writer.add_bos_token_id(field("bos_token_id"))
writer.add_eos_token_id(field("eos_token_id"))
writer.add_chat_template(fields["tokenizer.chat_template"].contents())

embedding = matrix(VOCABULARY, HIDDEN)
# Every token of an answer is a text, and no answer ends early.
silent = [not (kind == NORMAL and text.isascii()) for text, kind in zip((text.lstrip("Ġ") for text in tokens), kinds)]
embedding[silent] = 0
writer.add_tensor("token_embd.weight", embedding)
ones = numpy.ones(HIDDEN, dtype=numpy.float32)
for layer in range(LAYERS):
    for name, rows, columns in (
            ("attn_q", HIDDEN, HIDDEN), ("attn_k", HIDDEN * KV_HEADS // HEADS, HIDDEN),
            ("attn_v", HIDDEN * KV_HEADS // HEADS, HIDDEN), ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", FEED_FORWARD, HIDDEN), ("ffn_up", FEED_FORWARD, HIDDEN), ("ffn_down", HIDDEN, FEED_FORWARD)):
        writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(rows, columns))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.{layer}.{name}.weight", ones)
writer.add_tensor("output_norm.weight", ones)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
