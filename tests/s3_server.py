"""An S3 server on loopback that can be shut and opened again; what it holds stays while it is shut."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from tests.mlflow_server import free_port

KEYS = {"AWS_ACCESS_KEY_ID": "thaw", "AWS_SECRET_ACCESS_KEY": "thaw", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "thaw"


class S3Server:
    """A server with one empty bucket, BUCKET; `variables` of the environment lead to it, and let in."""

    def __init__(self) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.variables = {**KEYS, "AWS_ENDPOINT_URL": self.uri}
        self._server: ThreadedMotoServer | None = None

    def open(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def shut(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    @property
    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.uri,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=KEYS["AWS_DEFAULT_REGION"],
        )

    def names(self, prefix: str = "") -> list[str]:
        """The keys in the bucket that begin with `prefix`."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """For as long as a test wants it."""
    server = S3Server()
    server.open()
    server.client.create_bucket(Bucket=BUCKET)
    try:
        yield server
    finally:
        server.shut()
