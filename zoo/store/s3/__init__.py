"""S3Store: objects are objects in a bucket, at AWS or at any server that speaks S3.

Takes `bucket/prefix`, and endpoint, keys and region as boto3 reads them. Gives an ObjectStore that calls each thing
once. Next: `zoo.store.open_store` wraps it in a RetryingStore. Importing this package doesn't import boto3.

    client    the boto3 client: which settings, and why
    store     the methods, a request each
    upload    files larger than a chunk: parallel parts, each sent again alone, aborted as a whole
    ordering  code point order from servers that list folder by folder
    errors    the one table from what servers and botocore say to our error tree

Measured on two cores that SeaweedFS 4.48 shares with the client: opening a store takes 0.25 s for importing boto3 and
0.2 s for the first client, 0.02 s for each further one. Signing the known SHA-256 of a part leaves 0.5 s of CPU for
sending 1 GiB. Up, 2 to 4 parts at once are best (8: 6 % slower); with the hash pass it is 0.90 of boto3's
best `upload_file`, which is the hash pass itself. Figures of the day: `scripts/bench_transfer.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.store.s3.store import S3Store


def open_s3(location: str) -> S3Store:
    """The store at `bucket` or `bucket/prefix`; the server isn't asked yet.

    Raises InvalidStoreUrl, BadSettings.
    """
    from zoo.store.s3.client import connect, parse_location
    from zoo.store.s3.store import S3Store

    return S3Store(connect(parse_location(location)))
