"""What was computed once, kept on the disk: encoded clips and text features, in a folder that processes share."""

from selva_runtime.cache.rows import Rows, RowWriter, temporary_rows
from selva_runtime.cache.store import Cache, Entry

__all__ = ["Cache", "Entry", "RowWriter", "Rows", "temporary_rows"]
