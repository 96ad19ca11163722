"""Writes vectors of texts as llama.cpp makes them: embeddings.json.

    python embeddings.py SmolLM2-135M-Instruct.Q4_1.gguf

Needs llama-cpp-python and numpy. The model is no embedding model; it is only computed with. Vectors have length 1 and are
written as Base64 of little-endian f32.
"""

import base64
import json
import pathlib
import sys

import llama_cpp
import numpy as np

from texts import PROSE

HERE = pathlib.Path(__file__).parent
TEXTS = ["Ahoy", "A brig has two masts.", "def f(x):\n    return x + 1\n", PROSE]
POOLING = {"mean": llama_cpp.LLAMA_POOLING_TYPE_MEAN, "cls": llama_cpp.LLAMA_POOLING_TYPE_CLS, "last": llama_cpp.LLAMA_POOLING_TYPE_LAST}


def vectors(source, pooling):
    model = llama_cpp.Llama(
        source, embedding=True, pooling_type=pooling, n_ctx=512, n_batch=512, n_ubatch=512, n_threads=1, verbose=False
    )
    rows = []
    for text in TEXTS:
        tokens = model.tokenize(text.encode(), add_bos=False, special=False)
        vector = np.array(model.embed(model.detokenize(tokens).decode(), normalize=False), dtype=np.float64)
        rows.append(base64.b64encode((vector / np.linalg.norm(vector)).astype("<f4").tobytes()).decode())
    return rows


report = {"reference": f"llama-cpp-python {llama_cpp.__version__}", "texts": TEXTS}
report.update({name: vectors(sys.argv[1], pooling) for name, pooling in POOLING.items()})
(HERE / "embeddings.json").write_text(json.dumps(report, indent=1) + "\n")
