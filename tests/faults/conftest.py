"""The digits of the stages' tests, and the store of the storage's."""

from tests.stages.conftest import digits, environment, project
from tests.storage.conftest import admin, bucket, proxy, server

__all__ = ["admin", "bucket", "digits", "environment", "project", "proxy", "server"]
