"""Tell DVC of the store that machines share, in its local configuration, which Git does not see."""

import os
import shlex
from pathlib import Path

from configobj import ConfigObj, ConfigObjError

from diffusion_core.address import parse_s3
from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.storage import open_store

DVC = Path(".dvc")
CONFIG = DVC / "config.local"
# Secrets stand in a file, as others on the machine can read what a command is called with.
MODE = 0o600

# DVC has no option for these, but reads a file of Amazon's form.
PROFILE = DVC / "aws.local"
# The settings of one profile in it.
SETTINGS = """\
request_checksum_calculation = when_required
response_checksum_validation = when_required
s3 =
    addressing_style = path
"""
AWS_CONFIG = "AWS_CONFIG_FILE"


def run(environment: Environment) -> None:
    """Write `.dvc/config.local` for DIFFUSION_DVC_REMOTE, after a look whether the store and its bucket can be used.

    What else stands in the file stays. Who may only read is told so, and can pull.

    Raises:
        UserError: the variable is missing or no address, this is no DVC project, or the store cannot be used.
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
    config = _read()
    config.setdefault("core", {})["remote"] = "store"
    config['remote "store"'] = _remote(str(address), environment)
    if environment.dvc_cache:
        config.setdefault("cache", {})["dir"] = str(environment.dvc_cache.expanduser().absolute())
    if environment.s3_endpoint:
        _write(PROFILE, _profiles().encode())
        _tell_of_another_file()
    else:
        # A flow gives it to DVC wherever it is there.
        PROFILE.unlink(missing_ok=True)
    lines: list[bytes] = config.write()
    _write(CONFIG, b"\n".join(lines) + b"\n")
    print(f"remote: DVC shares outputs by {address} from now on, as {CONFIG} says")


def _profiles() -> str:
    """Return the settings for the default profile and for the one that the user has chosen, which must be there too."""
    # The order is botocore's.
    chosen = os.environ.get("AWS_DEFAULT_PROFILE") or os.environ.get("AWS_PROFILE")
    names = ["default"]
    if chosen and chosen != "default":
        names.append(f"profile {shlex.quote(chosen)}")
    return "".join(f"[{name}]\n{SETTINGS}" for name in names)


def _tell_of_another_file() -> None:
    """Say so where DVC will read another file than ours: the variable goes before its configuration."""
    other = os.environ.get(AWS_CONFIG)
    if other and Path(other).absolute() != PROFILE.absolute():
        print(
            f"remote: {AWS_CONFIG} is {other}, which DVC reads instead of {PROFILE}: unset it where you call dvc"
            " yourself, or set it to that file"
        )


def _read() -> ConfigObj:
    try:
        config = ConfigObj(str(CONFIG), encoding="utf-8", interpolation=False)
    except (ConfigObjError, UnicodeDecodeError):
        # Its message would show the line, which may be a secret's.
        raise UserError(f"{CONFIG} is no configuration of DVC's: correct it, or remove it") from None
    # Without a name, write() returns the lines.
    config.filename = None
    return config


def _remote(url: str, environment: Environment) -> dict[str, str]:
    keys = (environment.s3_access_key, environment.s3_secret_key)
    access, secret = (key.get_secret_value() if key else None for key in keys)
    options = {
        "url": url,
        # Else DVC takes what it fetches for what it asked for.
        "verify": "true",
        "endpointurl": environment.s3_endpoint,
        # Beside the file that names it.
        "configpath": PROFILE.name if environment.s3_endpoint else None,
        "region": environment.s3_region,
        "access_key_id": access,
        "secret_access_key": secret,
    }
    return {name: value for name, value in options.items() if value}


def _write(file: Path, content: bytes) -> None:
    """Replace the file as a whole by one that its owner alone may read."""
    temporary = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "wb") as stream:
        stream.write(content)
    temporary.replace(file)
