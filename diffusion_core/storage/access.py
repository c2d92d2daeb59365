"""The address and the credentials of the object store, from the environment."""

from urllib.parse import urlsplit

from botocore.utils import is_valid_endpoint_url, is_valid_ipv6_endpoint_url

from diffusion_core.address import without_userinfo
from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError


def credentials(environment: Environment) -> tuple[str, str] | tuple[None, None]:
    """Return key id and secret, or (None, None) to use boto3's own search.

    Raises:
        UserError: only one of the two is set.
    """
    keys = {
        "DIFFUSION_S3_ACCESS_KEY": environment.s3_access_key and environment.s3_access_key.get_secret_value(),
        "DIFFUSION_S3_SECRET_KEY": environment.s3_secret_key and environment.s3_secret_key.get_secret_value(),
    }
    access, secret = keys.values()
    if access and secret:
        return access, secret
    if access or secret:
        given, missing = sorted(keys, key=lambda name: not keys[name])
        raise UserError(f"{given} is set and {missing} is not: set both, or neither where boto3 finds its own")
    return None, None


def shown_endpoint(endpoint: str | None) -> str:
    """Return the name of the store in messages.

    Raises:
        UserError: the endpoint is not a valid address, or includes a user or a password.
    """
    if endpoint is None:
        return "of Amazon"
    shown = without_userinfo(endpoint)
    try:
        parts = urlsplit(endpoint)
        # urllib or botocore would raise a ValueError for these later, without the variable's name.
        is_address = (
            parts.scheme in ("http", "https")
            and parts.port != 0
            and (is_valid_endpoint_url(endpoint) or is_valid_ipv6_endpoint_url(endpoint))
        )
    except ValueError:
        parts, is_address = urlsplit(""), False
    if parts.username is not None or parts.password is not None:
        raise UserError(
            f"DIFFUSION_S3_ENDPOINT ({shown}) holds a user or a password: set DIFFUSION_S3_ACCESS_KEY and"
            " DIFFUSION_S3_SECRET_KEY instead"
        )
    if not is_address:
        raise UserError(
            f"DIFFUSION_S3_ENDPOINT is {shown}, which is not an address: write http://host:port or https://"
        )
    return shown
