"""Embeddings into Parquet files; needs pyarrow."""

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trivec_client.embeddings import TextEmbedding
from trivec_client.errors import MissingExtraError
from trivec_client.models import ModelInfo
from trivec_client.records import TextRecord
from trivec_client.requests import ModeName

_ROW_GROUP_ROWS = 4096
_ROW_GROUP_BYTES = 64 << 20
"""Embeddings held before they are written as a row group."""


def _pyarrow() -> Any:
    """
    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra, loaded when asked for
        import pyarrow.parquet  # noqa: PLC0415 - the same
    except ImportError:
        raise MissingExtraError.of("Parquet", "pyarrow", "parquet") from None
    return pa


class ParquetWriter:
    """
    Columns `index` int64, `id` string, `tokens` int32, `truncated` bool, and of the parts asked for: `dense`
    fixed_size_list<float>[D], `sparse` struct<ids: list<uint32>, weights: list<float>>, `multi_vector`
    list<fixed_size_list<float>[D]>. The file's metadata name the model.
    """

    def __init__(self, file: BinaryIO, model: ModelInfo, modes: tuple[ModeName, ...]) -> None:
        """
        Raises:
            MissingExtraError: pyarrow is not installed.
        """
        self._pa = _pyarrow()
        self._modes = modes
        self._dense_type = self._pa.list_(self._pa.float32(), model.dense_dimension)
        self._row_type = self._pa.list_(self._pa.float32(), model.multi_vector_dimension)
        schema = self._schema().with_metadata(
            {
                "trivec.model": model.name,
                "trivec.version": str(model.version),
                "trivec.content_digest": model.content_digest,
            }
        )
        self._parquet = self._pa.parquet.ParquetWriter(file, schema, compression="zstd")
        self._records: list[tuple[TextRecord, TextEmbedding]] = []
        self._bytes = 0

    def _schema(self) -> Any:
        pa = self._pa
        fields = [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("id", pa.string()),
            pa.field("tokens", pa.int32(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
        ]
        sparse = pa.struct([pa.field("ids", pa.list_(pa.uint32())), pa.field("weights", pa.list_(pa.float32()))])
        types = {"dense": self._dense_type, "sparse": sparse, "multi_vector": pa.list_(self._row_type)}
        return pa.schema(fields + [pa.field(mode, types[mode]) for mode in self._modes])

    def write(self, record: TextRecord, embedding: TextEmbedding) -> None:
        """Takes one; a row group is written when enough are there."""
        self._records.append((record, embedding))
        for array in (embedding.dense, embedding.multi_vector):
            self._bytes += 0 if array is None else array.nbytes
        if len(self._records) >= _ROW_GROUP_ROWS or self._bytes >= _ROW_GROUP_BYTES:
            self._write_row_group()

    def close(self) -> None:
        """Writes the last row group and the footer."""
        if self._records:
            self._write_row_group()
        self._parquet.close()

    def _write_row_group(self) -> None:
        pa = self._pa
        embeddings = [embedding for _, embedding in self._records]
        columns = [
            pa.array([embedding.index for embedding in embeddings], pa.int64()),
            pa.array([None if record.id is None else str(record.id) for record, _ in self._records], pa.string()),
            pa.array([embedding.token_count for embedding in embeddings], pa.int32()),
            pa.array([embedding.truncated for embedding in embeddings], pa.bool_()),
        ]
        columns += [self._column(mode, embeddings) for mode in self._modes]
        self._parquet.write_table(pa.Table.from_arrays(columns, schema=self._parquet.schema))
        self._records.clear()
        self._bytes = 0

    def _column(self, mode: ModeName, embeddings: list[TextEmbedding]) -> Any:
        match mode:
            case "dense":
                rows = np.concatenate([each.dense for each in embeddings if each.dense is not None])
                return self._pa.FixedSizeListArray.from_arrays(self._pa.array(rows), type=self._dense_type)
            case "sparse":
                vectors = [each.sparse for each in embeddings if each.sparse is not None]
                ids = self._lists([vector.ids for vector in vectors])
                weights = self._lists([vector.weights for vector in vectors])
                return self._pa.StructArray.from_arrays([ids, weights], names=["ids", "weights"])
            case "multi_vector":
                arrays = [each.multi_vector for each in embeddings if each.multi_vector is not None]
                flat = self._pa.array(np.concatenate(arrays).ravel())
                rows = self._pa.FixedSizeListArray.from_arrays(flat, type=self._row_type)
                return self._pa.ListArray.from_arrays(_offsets(arrays), rows)

    def _lists(self, arrays: list[NDArray[Any]]) -> Any:
        return self._pa.ListArray.from_arrays(_offsets(arrays), self._pa.array(np.concatenate(arrays)))


def _offsets(arrays: list[NDArray[Any]]) -> NDArray[np.int32]:
    """Where each array begins among all, and where the last ends; int32 [arrays + 1]."""
    return np.cumsum([0, *map(len, arrays)], dtype=np.int32)
