"""The same GGUF model with other types of weights, so that every peer runs with the type that suits it best."""

from __future__ import annotations

from pathlib import Path

from klype.errors import KlypeError

KINDS = ("Q4_0", "Q4_1", "Q8_0", "BF16")


def requantised(file: Path, kind: str, folder: Path) -> Path:
    """A copy of ``file`` in ``folder`` with its matrices in this type, except for those that cannot be converted."""
    import gguf
    import numpy as np

    target = gguf.GGMLQuantizationType[kind]
    file_type = gguf.LlamaFileType[f"MOSTLY_{kind}"]
    out = folder / f"model-{kind}.gguf"
    try:
        reader = gguf.GGUFReader(file)
        writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
        for name, field in reader.fields.items():
            if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
                continue
            kinds = field.types
            inner = kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kinds[0], sub_type=inner)
        writer.add_file_type(file_type)
        for tensor in reader.tensors:
            data = gguf.dequantize(tensor.data, tensor.tensor_type)
            matrix = data.ndim == 2 and data.shape[-1] % 32 == 0
            if matrix:
                writer.add_tensor(tensor.name, gguf.quantize(data, target), raw_dtype=target)
            else:
                writer.add_tensor(tensor.name, data.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise KlypeError(f"{file} cannot be written as {kind}: {error}.") from error
    return out
