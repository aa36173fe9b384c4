"""An S3 of moto's server on 127.0.0.1."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


@contextlib.contextmanager
def s3_storage() -> Iterator[str]:
    """Yield the URI of a folder in a bucket. The environment has the credentials for the block."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in CREDENTIALS.items():
                patch.setenv(name, value)
            client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
            client.create_bucket(Bucket="wml-bucket")
            # moto keeps the content of a bucket from one server of a process to the next
            yield f"s3://wml-bucket/{uuid.uuid4().hex}?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    finally:
        server.stop()
