"""Configure the shared store in DVC's local configuration, which Git ignores."""

import os
import shlex
from pathlib import Path

from configobj import ConfigObj, ConfigObjError

from diffusion_core.address import parse_s3
from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.files import write_whole
from diffusion_core.storage import open_store

DVC = Path(".dvc")
CONFIG = DVC / "config.local"
# Secrets are in a file, because other users of the machine can read the arguments of a command.
MODE = 0o600

# DVC has no options for these settings, but reads a configuration file of AWS.
PROFILE = DVC / "aws.local"
# The settings of one profile.
SETTINGS = """\
request_checksum_calculation = when_required
response_checksum_validation = when_required
s3 =
    addressing_style = path
"""
AWS_CONFIG = "AWS_CONFIG_FILE"


def run(environment: Environment) -> None:
    """Check the store and bucket of DIFFUSION_DVC_REMOTE, and write `.dvc/config.local`.

    Other settings in the file do not change. If the credentials do not permit writing, print a line; `dvc pull` works.

    Raises:
        UserError: the variable is missing or not a valid address, this is not a DVC project, or the store cannot be
            used.
    """
    if not environment.dvc_remote:
        raise UserError(
            "DIFFUSION_DVC_REMOTE is not set: set it to s3://bucket/prefix, where machines share outputs; that of `make"
            " stack` is set by `set -a; . .stack/env; set +a`"
        )
    try:
        address = parse_s3(environment.dvc_remote)
    except ValueError as error:
        raise UserError(f"DIFFUSION_DVC_REMOTE: {error}") from None
    if not DVC.is_dir():
        raise UserError(f"{DVC} is missing: run the command from the project's folder, or `dvc init` there")
    store = open_store(environment)
    store.check(address.bucket)
    if not store.may_write(address.bucket, address.prefix):
        print(f"remote: these credentials can read {address} and not write to it, so that nothing can be pushed")
    config = read_config()
    config.setdefault("core", {})["remote"] = "store"
    config['remote "store"'] = remote_options(str(address), environment)
    if environment.dvc_cache:
        config.setdefault("cache", {})["dir"] = str(environment.dvc_cache.absolute())
    if environment.s3_endpoint:
        write_whole(PROFILE, _profiles(), MODE)
        _tell_of_another_file()
    else:
        # Flows use the file if it exists.
        PROFILE.unlink(missing_ok=True)
    lines: list[bytes] = config.write()
    write_whole(CONFIG, b"\n".join(lines).decode() + "\n", MODE)
    print(f"remote: DVC shares outputs by {address} from now on, as {CONFIG} says")


def _profiles() -> str:
    """Return the settings of the default profile and of the user's profile, which the file must have too."""
    # In botocore's order.
    chosen = os.environ.get("AWS_DEFAULT_PROFILE") or os.environ.get("AWS_PROFILE")
    names = ["default"]
    if chosen and chosen != "default":
        names.append(f"profile {shlex.quote(chosen)}")
    return "".join(f"[{name}]\n{SETTINGS}" for name in names)


def _tell_of_another_file() -> None:
    """Print a line if AWS_CONFIG_FILE names another file, because it takes precedence over DVC's configuration."""
    other = os.environ.get(AWS_CONFIG)
    if other and Path(other).absolute() != PROFILE.absolute():
        print(
            f"remote: {AWS_CONFIG} is {other}, which DVC reads instead of {PROFILE}: unset it where you call dvc"
            " yourself, or set it to that file"
        )


def read_config() -> ConfigObj:
    """Return DVC's local configuration; empty if there is none.

    Raises:
        UserError: it is not a configuration of DVC.
    """
    try:
        config = ConfigObj(str(CONFIG), encoding="utf-8", interpolation=False)
        if config.scalars:
            raise ValueError("a value is outside of the sections")
    except (ConfigObjError, ValueError):
        # The original message would show the line, which may include a secret.
        raise UserError(f"{CONFIG} is not a configuration of DVC: correct it, or remove it") from None
    # Without a file name, write() returns the lines.
    config.filename = None
    return config


def remote_options(url: str, environment: Environment) -> dict[str, str]:
    """Return what DVC is to know of the store, with the keys."""
    keys = (environment.s3_access_key, environment.s3_secret_key)
    access, secret = (key.get_secret_value() if key else None for key in keys)
    options = {
        "url": url,
        # Otherwise DVC does not check the hashes of downloads.
        "verify": "true",
        "endpointurl": environment.s3_endpoint,
        # Relative to the configuration file.
        "configpath": PROFILE.name if environment.s3_endpoint else None,
        "region": environment.s3_region,
        "access_key_id": access,
        "secret_access_key": secret,
    }
    return {name: value for name, value in options.items() if value}
