"""The reference tool, asked by tests and by the script that makes the project's own vectors.

Reads one JSON object per line, and answers each with a line: `ok`, or what is wrong. All in one process, since to start it
takes a second.
"""

import contextlib
import io
import json
import pathlib
import sys

from model_signing import hashing
from model_signing import signing
from model_signing import verifying


def config(request, ignored):
    """How files are hashed: `hash` is an algorithm, `shard` the length of a part."""
    settings = hashing.Config()
    algorithm = request.get("hash", "sha256")
    if "shard" in request:
        settings = settings.use_shard_serialization(hashing_algorithm=algorithm, shard_size=request["shard"])
    else:
        settings = settings.use_file_serialization(hashing_algorithm=algorithm)
    return settings.set_ignored_paths(paths=ignored)


def sign(request):
    model = pathlib.Path(request["model"])
    ignored = [model / path for path in request.get("ignore", [])]
    settings = signing.Config().set_hashing_config(config(request, ignored))
    if "certificate" in request:
        settings = settings.use_certificate_signer(
            private_key=request["key"],
            signing_certificate=request["certificate"],
            certificate_chain=request.get("chain", []),
        )
    else:
        settings = settings.use_elliptic_key_signer(private_key=request["key"])
    settings.sign(model, request["signature"])


def verify(request):
    settings = verifying.Config()
    if "ca" in request:
        settings = settings.use_certificate_verifier(certificate_chain=[request["ca"]])
    else:
        settings = settings.use_elliptic_key_verifier(public_key=request["key"])
    settings.verify(pathlib.Path(request["model"]), request["signature"])


def main():
    for line in sys.stdin:
        request = json.loads(line)
        action = {"sign": sign, "verify": verify}[request["action"]]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                action(request)
            answer = "ok"
        except BaseException as error:  # whatever it is, the tool did not accept
            answer = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
        print(answer, flush=True)


main()
