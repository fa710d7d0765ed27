"""S3Store: objects are objects in a bucket, at AWS or at any server that speaks S3.

Takes `bucket/prefix`, and endpoint, keys and region as boto3 reads them. Gives an ObjectStore that calls each thing
once. Next: `zoo.store.open_store` wraps it in a RetryingStore. Importing this package doesn't import boto3.
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
