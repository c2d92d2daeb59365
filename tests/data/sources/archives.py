"""Two images as a file of each format."""

import io
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.sources.reading import png

PIXELS = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)


def as_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("cat/a.png", png(1))
        target.writestr("dog/b.png", png(2, side=200))
    return file.getvalue()


def as_tar(mode: str = "w:gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as target:
        for name, content in {"cat/a.png": png(1), "dog/b.png": png(2)}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
    return file.getvalue()


def as_parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array([png(1), png(2)])}), file)
    return file.getvalue()


def as_array(save=np.save) -> bytes:
    file = io.BytesIO()
    save(file, PIXELS)
    return file.getvalue()
