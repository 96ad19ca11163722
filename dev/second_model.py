"""Writes a model again with every quantised weight as Q8_0: another file with another digest that answers as well.

    second_model.py MODEL.gguf TARGET.gguf

The result depends on nothing but the model: every step is a single IEEE operation on each number.
"""

import sys

import gguf
from gguf import GGMLQuantizationType as Type, GGUFValueType as Kind

source, target = sys.argv[1:]
reader = gguf.GGUFReader(source)
fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}

writer = gguf.GGUFWriter(target, fields.pop("general.architecture").contents())
for name, field in fields.items():
    value = field.contents()
    if name == "general.file_type":
        value = gguf.LlamaFileType.MOSTLY_Q8_0.value
    if field.types[0] == Kind.ARRAY:
        writer.add_key_value(name, value, Kind.ARRAY, sub_type=field.types[-1])
    else:
        writer.add_key_value(name, value, field.types[0])
for tensor in reader.tensors:
    kind, data = tensor.tensor_type, tensor.data
    if kind not in (Type.F32, Type.Q8_0):
        data = gguf.quants.quantize(gguf.quants.dequantize(data, kind), Type.Q8_0)
        kind = Type.Q8_0
    writer.add_tensor(tensor.name, data, raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
