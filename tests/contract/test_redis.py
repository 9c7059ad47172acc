"""The store contract, held by the store on one Redis and on a Redis Cluster, with one hash tag and with a tag for each queue."""

from collections.abc import Iterator, Sequence

import pytest
import redis.asyncio
from msgspec.structs import replace

from asyncsched.errors import StoreError
from asyncsched.stores.redis import RedisStore
from asyncsched.testing.contract import StoreContract, Trial
from asyncsched.testing.due import job, settlement, update_of
from tests.servers.redis import RedisCluster
from tests.servers.running import Servers
