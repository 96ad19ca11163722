"""Reads from the header of a GGUF file how much arithmetic and memory a token takes."""

import mmap
import struct

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TEXT, ARRAY = 8, 9
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


class Header:
    """A place in a file's header."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, kind):
        value, = struct.unpack_from(f"<{kind}", self.data, self.at)
        self.at += struct.calcsize(kind)
        return value

    def text(self):
        length = self.number("Q")
        self.at += length
        return self.data[self.at - length:self.at]

    def value(self, kind):
        """Of the values only the number that says how the data lie is wanted."""
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner in SIZES:
                self.at += count * SIZES[inner]
            else:
                for _ in range(count):
                    self.value(inner)
            return None
        self.at += SIZES[kind]
        return self.data[self.at - SIZES[kind]:self.at]


def matrices(path):
    """The elements and bytes of every matrix, by its name."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = Header(data)
        if header.number("I") != int.from_bytes(b"GGUF", "little"):
            raise ValueError(f"{path} is no GGUF file")
        header.number("I")
        tensors, keys = header.number("Q"), header.number("Q")
        values = {}
        for _ in range(keys):
            name = header.text()
            values[name] = header.value(header.number("I"))
        alignment = int.from_bytes(values.get(b"general.alignment") or b"\x20", "little")
        found = []
        for _ in range(tensors):
            name = header.text().decode()
            dimensions = [header.number("Q") for _ in range(header.number("I"))]
            header.number("I")
            found.append((header.number("Q"), name, dimensions))
        end = len(data) - -(-header.at // alignment) * alignment
        found.sort()
        sizes = [later[0] - one[0] for one, later in zip(found, [*found[1:], (end,)])]
    elements = [dimensions[0] * dimensions[-1] for _, _, dimensions in found]
    return {name: (count, size) for (_, name, dimensions), count, size in zip(found, elements, sizes)
            if len(dimensions) == 2}


def weights(path):
    """The parameters that each token of a prompt is multiplied by, those of each token of an answer, and the bytes of the
    latter. The rows of the embedding are only looked up, unless they are the last matrix as well."""
    found = matrices(path)
    embedding = found.pop(EMBEDDING)
    head = found.pop(HEAD, embedding)
    body = sum(count for count, _ in found.values())
    return body, body + head[0], sum(size for _, size in found.values()) + head[1]
