"""S3Store on a real server."""

from __future__ import annotations

import pytest

from tests.zoo.store_contract import MakeStore, StoreContract
from zoo.store.s3 import open_s3


class TestS3Store(StoreContract):
    @pytest.fixture
    def make_store(self, s3_url: str) -> MakeStore:
        store = open_s3(s3_url.removeprefix("s3://"))
        return lambda: store
