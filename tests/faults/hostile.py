"""Files that would run a program, take all memory or end in a traceback, if they were read in the usual way."""

import io
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MARKER = "touched"
DEEP = b"[" * 100_000 + b"]" * 100_000
# A header of 2^63 bytes.
HEADER = (2**63).to_bytes(8, "little") + b"{}"


class Touch:
    """Unpickled, it makes a folder in the current one."""

    def __reduce__(self):
        return os.mkdir, (MARKER,)


PICKLE = pickle.dumps(Touch())


def objects():
    """A NumPy file of an object."""
    file = io.BytesIO()
    np.save(file, np.array([Touch()], dtype=object), allow_pickle=True)
    return file.getvalue()


def header(shape, kind="|u1"):
    """A NumPy file whose header says more than the file has."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)


def extension():
    """A Parquet file with a type that pyarrow unpickled before its version 14 (CVE-2023-47248)."""
    meta = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": PICKLE}
    file = io.BytesIO()
    schema = pa.schema([pa.field("source", pa.binary(), metadata=meta)])
    pq.write_table(pa.table({"source": [b"x"]}, schema=schema), file)
    return file.getvalue()


def sentence(code, output):
    """Return what a command has said, which must be one sentence."""
    assert code == 2, output[-2000:]
    assert "Traceback" not in output
    (said,) = [line for line in output.splitlines() if line.startswith("error: ")]
    return said
