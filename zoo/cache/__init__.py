"""The cache: a verified local file for a blob, whichever store it lies in.

Takes a store and a digest. Gives the path of a file with exactly those bytes. Next: `zoo.tensors`.

Read in this order: `blob_cache` (what is asked of it), `download` (parallel ranges), `partial` (what an interrupted
download leaves to the next), `lock` (who downloads while others wait), `eviction` (the size cap), `stamps` (what was
verified, and when it was last used).
"""

from zoo.cache.blob import Blob, CorruptBlob, blob_key, file_digest
from zoo.cache.blob_cache import BlobCache, default_cache_root
from zoo.cache.eviction import CacheTooSmall, InvalidCacheLimit

__all__ = [
    "Blob",
    "BlobCache",
    "CacheTooSmall",
    "CorruptBlob",
    "InvalidCacheLimit",
    "blob_key",
    "default_cache_root",
    "file_digest",
]
