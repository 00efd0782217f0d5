"""Calls on a Dask cluster: the scheduler is there already (Slurm, Kubernetes, other machines, a LocalCluster)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

RETRIES = 3


def on_cluster(address: str, function: Callable[..., Any], calls: Mapping[Any, tuple]) -> Generator:
    """(key, function(*calls[key])) for every key, as they come, from the workers of the scheduler at `address`.

    Dask starts a call again elsewhere when its worker dies, and up to three times when it raises. Workers need this
    package in the same version, and the data; results come back through the scheduler, so no disk is shared.

    address: such as "tcp://127.0.0.1:8786".

    Raises:
        ValueError: Dask is not installed, or no scheduler answers at the address.
        Whatever the function raises in its last try; calls that have not started are given up then.
    """
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise ValueError("cluster: Dask is not installed; run `pip install .[cluster]`") from None
    try:
        client = Client(address, timeout=20)
    except (OSError, ValueError) as error:
        raise ValueError(f"cluster: no Dask scheduler answers at {address!r} ({error})") from error
    with client:
        keys = {client.submit(function, *arguments, retries=RETRIES, pure=False): k for k, arguments in calls.items()}
        try:
            for future in as_completed(list(keys)):
                yield keys.pop(future), future.result()
        finally:
            client.cancel(list(keys))
