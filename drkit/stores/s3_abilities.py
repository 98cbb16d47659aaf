"""What a server does beyond the contract: asked for by the probe, and by nobody else."""

from __future__ import annotations

from botocore.exceptions import ClientError

from drkit.stores.s3_connection import Connection, status_of
from drkit.stores.s3_content import Algorithm


def refuses_damage(connection: Connection, path: str, algorithm: Algorithm) -> bool:
    """Send bytes under the checksum of others, which the server should refuse; take them away if it does not.

    botocore signs what is really sent, so nothing but the checksum can give the damage away.
    """
    argument = algorithm.argument(algorithm.digest(b"what was meant"))
    try:
        answer = connection.call("put_object", Key=path, Body=b"what arrived", **argument)
    except ClientError as error:
        if status_of(error) == 400:
            return True
        raise
    version = {"VersionId": answer["VersionId"]} if "VersionId" in answer else {}
    connection.call("delete_object", Key=path, **version)
    return False


def reads_ranges(connection: Connection, path: str) -> bool:
    """Ask for the second and third byte of an object, and see whether it is those two that come."""
    answer = connection.call("get_object", Key=path, Range="bytes=1-2")
    with answer["Body"] as body:
        return str(answer.get("ContentRange", "")).startswith("bytes 1-2/") and len(body.read()) == 2
