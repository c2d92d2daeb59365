"""Messages for errors of a store, one sentence per kind of error.

The store's error codes are shown, but never its messages, which may repeat signed data. A transient error is
`Unavailable`, so that callers may retry.
"""

from diffusion_core.errors import Unavailable, UserError


class Forbidden(UserError):
    """The credentials are valid, but do not permit the request."""


ENDPOINT = "DIFFUSION_S3_ENDPOINT"
KEYS = "DIFFUSION_S3_ACCESS_KEY and DIFFUSION_S3_SECRET_KEY"

WRONG_REGION = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "301"}
WRONG_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed"}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
BUSY = {"SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "Throttling", "ThrottlingException", "503", "429"}
FULL = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "507"}
SERVER_ERRORS = 500
CHANGED = {"PreconditionFailed", "ConditionalRequestConflict", "InvalidRange", "412", "416"}

# By the names of botocore's exceptions and their base classes.
ON_THE_WAY = {
    "SSLError": "the store {store} cannot be reached by TLS ({detail}): correct {endpoint}, or name the certificate"
    " that signed the store's by AWS_CA_BUNDLE",
    "ProxyConnectionError": "the proxy before the store {store} does not answer: correct HTTPS_PROXY or HTTP_PROXY",
    "EndpointConnectionError": "the store {store} does not answer ({detail}): start it, or correct {endpoint}",
    "ConnectTimeoutError": "the store {store} does not answer (timed out): start it, or correct {endpoint}",
    "ReadTimeoutError": "the store {store} stalled while it was asked for {place}: run this again when it is well,"
    " or correct {endpoint}",
    "IncompleteReadError": "the store {store} broke off in the middle of {place}, again and again: run this again"
    " when it is well, or correct {endpoint}",
    "HTTPClientError": "the connection to the store {store} broke while {place} was asked for ({name}): run this again"
    " when it is well, or correct {endpoint}",
    "HTTPError": "the connection to the store {store} broke in the middle of {place}: run this again when it is well,"
    " or correct {endpoint}",
    "NoCredentialsError": "there are no credentials for the store {store}: set {keys}",
    "PartialCredentialsError": "half of the credentials for the store {store} are missing: set {keys}",
    "CredentialRetrievalError": "the credentials for the store {store} cannot be fetched: set {keys}",
    "ProfileNotFound": "AWS_PROFILE or AWS_DEFAULT_PROFILE names no profile of ~/.aws: correct or unset it",
}

# The transient ones.
PASSING = {
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "IncompleteReadError",
    "HTTPClientError",
    "HTTPError",
}


def refusal(code: str, status: int, message: str, place: str, store: str) -> UserError:
    """Return the error for an error response of the store.

    Args:
        code: S3's error code, or the HTTP status without one.
        status: HTTP status.
        message: the store's message; used but not shown.
        place: `s3://bucket/key` of the request.
        store: the endpoint without credentials.
    """
    is_full = code in FULL or "no space left" in message.lower()
    is_transient = not is_full and (code in BUSY | CHANGED or status in (429, 503) or status >= SERVER_ERRORS)
    sentence = (
        f"the store {store} has no room for {place}: free some, or name another store by {ENDPOINT}"
        if is_full
        else _refused(code, status, place, store)
    )
    if is_transient:
        return Unavailable(sentence)
    forbids = status == 403 and not is_full and code not in WRONG_KEYS | EXPIRED
    return Forbidden(sentence) if forbids else UserError(sentence)


def _refused(code: str, status: int, place: str, store: str) -> str:
    bucket = place.removeprefix("s3://").partition("/")[0]
    if code == "InvalidAccessKeyId":
        return f"the store {store} does not know the key id: correct DIFFUSION_S3_ACCESS_KEY"
    if code == "SignatureDoesNotMatch":
        return f"the secret is not that of the key id, says the store {store}: correct DIFFUSION_S3_SECRET_KEY"
    if code == "RequestTimeTooSkewed":
        return f"this machine's clock differs too much from that of the store {store}: set it right"
    if code in EXPIRED:
        return f"the credentials for the store {store} have expired: renew them, or set {KEYS}"
    if code == "NoSuchBucket":
        return f"the store {store} has no bucket {bucket}: create it, or correct the address {place} or {ENDPOINT}"
    if code in WRONG_REGION:
        return f"the bucket {bucket} lies in another region: correct DIFFUSION_S3_REGION"
    if code in CHANGED:
        return changed(place)
    if code in BUSY or status in (429, 503):
        return f"the store {store} is too busy for {place} ({code}): run this later, or name another by {ENDPOINT}"
    if status == 404:
        return f"the store {store} has no {place} (any more): run this again, or correct the address or {ENDPOINT}"
    if status in (401, 403):
        return f"the credentials give no right to {place} ({code}): have it granted, or set others by {KEYS}"
    if status >= SERVER_ERRORS:
        # Some stores report a full disk like this.
        return f"the store {store} fails at {place} ({code}): see whether its disk is full, and run this again"
    return f"the store {store} refuses {place} ({code}): correct the address, or {ENDPOINT}"


def interruption(error: Exception, place: str, store: str) -> UserError:
    """Return the error for an exception of botocore that is not a response of the store."""
    names = [each.__name__ for each in type(error).__mro__]
    kind = next((name for name in names if name in ON_THE_WAY), "")
    sentence = ON_THE_WAY.get(
        kind, "the store {store} cannot be used ({name}): correct {endpoint}, DIFFUSION_S3_REGION, {keys}"
    )
    text = f"{error} {getattr(error, 'kwargs', {}).get('error', '')}"
    detail = "its name is not known" if "resolve" in text else "no connection"
    if "SSLError" in names:
        detail = "no trusted certificate" if "CERTIFICATE" in text else "no TLS there"
    error_type = Unavailable if kind in PASSING else UserError
    return error_type(
        sentence.format(store=store, place=place, endpoint=ENDPOINT, keys=KEYS, name=names[0], detail=detail)
    )


def changed(place: str) -> str:
    """Return the message for an object that was replaced after it was listed."""
    return f"{place} was replaced while it was fetched: run this again, and the new one is taken"
