"""What the Hub's refusals mean for a user, and keeping secrets out of messages.

Knows huggingface_hub's exceptions by name only: the releases differ in the HTTP library below
(requests, httpx, httpx2), whose exceptions come through.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from ggprune.errors import HubError

_HTTP_LIBRARIES = frozenset({"requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2"})
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{6,}"), "hf_***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s'\",]+"), r"\1 ***"),
    # A signed address lets anyone who has it read or write.
    (re.compile(r"(https?://[^\s?'\"<>]+)\?[^\s'\"<>]+"), r"\1?***"),
    (re.compile(r"(https?://)[^\s/@'\"<>]+@"), r"\1***@"),
)
#: Where huggingface_hub asks how to reach the Hub's Xet storage.
_XET = re.compile(r"/xet-(?:read|write)-token/|\bxet\b", re.IGNORECASE)
_AGAIN = "Run the same command again: it continues where it stopped."
LOGIN = "hf auth login  (or set HF_TOKEN)"
_REFUSALS = {
    401: ("it is private, or it is not there, or this needs a login", LOGIN),
    403: (
        "the token does not allow this",
        f"Use a token with write access to this owner's repositories: {LOGIN}",
    ),
    413: ("it is too large for the Hub", "Split it with llama-gguf-split."),
    429: ("the Hub asks to slow down", f"Wait. {_AGAIN}"),
}
_REFUSED = ("the Hub refused", "Check the command; https://status.huggingface.co shows outages.")


def redacted(text: str, token: str | None = None) -> str:
    """Return a text without tokens, credentials and the signatures of addresses.

    The ``token`` in use is removed whatever it looks like.
    """
    for secret in (token, os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN")):
        if secret and secret.strip():
            text = text.replace(secret.strip(), "***")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class Failure(HubError):
    """A HubError that knows what kind it is.

    Attributes:
        status: of the HTTP answer; 0 if there was none.
        transient: the same call may work later.
        missing: the repository, revision or file is not there (or not for this user).
        retry_after: seconds that the Hub asked to wait.
    """

    def __init__(
        self,
        message: str,
        *,
        remedy: str,
        status: int = 0,
        transient: bool = False,
        missing: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status
        self.transient = transient
        self.missing = missing
        self.retry_after = retry_after

    @classmethod
    def of(cls, error: Exception, action: str, *, token: bool) -> Failure | None:
        """Explain what the library raised; None for what is not the Hub's doing (a bug).

        ``action`` is what was being done ("uploading x to y"), ``token`` whether one was sent.
        """
        chain = list(_chain(error))
        names = {base.__name__ for link in chain for base in type(link).__mro__}
        if "OfflineModeIsEnabled" in names:
            return cls(f"{action}: HF_HUB_OFFLINE is set", remedy="Unset it, or use a local file.")
        xet = any(_XET.search(str(link)) for link in chain)
        if xet and any(re.search(r"\b40[45]\b", str(link)) for link in chain):
            return cls(
                f"{action}: this Hub has no Xet storage, which huggingface_hub tried to use",
                remedy="Set the environment variable HF_HUB_DISABLE_XET=1 and run it again.",
            )
        for link in chain:
            response = getattr(link, "response", None)
            if response is not None and getattr(response, "status_code", None):
                return cls._answered(response, action, names, token)
        if any(_is_network(link) for link in chain) or "LocalEntryNotFoundError" in names:
            return cls(
                f"{action}: the connection broke or could not be made ({_reason(chain)})",
                remedy="Check the network, HF_ENDPOINT and proxies. "
                + ("HF_HUB_DISABLE_XET=1 may help. " if xet else "")
                + _AGAIN,
                transient=True,
            )
        return cls._other(error, action, names)

    @classmethod
    def _other(cls, error: Exception, action: str, names: set[str]) -> Failure | None:
        """Explain what came without an answer of the server."""
        if "HFValidationError" in names:
            return cls(f"{action}: {_first_line(error)}", remedy="A repository is OWNER/NAME.")
        if isinstance(error, OSError) and "Consistency check failed" in str(error):
            return cls(
                f"{action}: fewer or more bytes came than announced", remedy=_AGAIN, transient=True
            )
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return cls(
                f"{action}: the disk is full",
                remedy="Free some space, or set HF_HUB_CACHE to a folder on another disk.",
            )
        if isinstance(error, ValueError | EnvironmentError):
            text = redacted(" ".join(str(error).split()))
            return cls(f"{action}: {text[:300]}", remedy=_AGAIN)
        return None

    @classmethod
    def _answered(cls, response: object, action: str, names: set[str], token: bool) -> Failure:
        """Explain an HTTP status."""
        status = int(getattr(response, "status_code", 0))
        headers = getattr(response, "headers", {})
        code = headers.get("X-Error-Code") or ""
        what, remedy = _explain(status, code, names, token)
        said = redacted(str(headers.get("X-Error-Message") or "")).strip()
        wait = str(headers.get("Retry-After") or "").strip()
        return cls(
            f"{action}: {what} ({status})" + (f": {said[:200]}" if said else ""),
            remedy=remedy,
            status=status,
            transient=status in _TRANSIENT,
            missing=status == 404 or (status == 401 and "RepositoryNotFoundError" in names),
            # A date is left to our own waits.
            retry_after=float(wait) if wait.isdigit() else None,
        )


def _explain(status: int, code: str, names: set[str], token: bool) -> tuple[str, str]:
    """Say what happened, and what to do about it."""
    if code == "GatedRepo" or "GatedRepoError" in names:
        return "it is gated", f"Accept its conditions on its page on the Hub, then: {LOGIN}"
    if status == 401 and token:
        return "the token was refused, or it is not there", f"Check the name, then: {LOGIN}"
    if status == 404:
        what = {"RevisionNotFound": "revision", "EntryNotFound": "file"}.get(code, "repository")
        return f"there is no such {what}", f"Check the name; if it is private: {LOGIN}"
    if status >= 500:
        return "the Hub has a problem", f"Try later. {_AGAIN}"
    return _REFUSALS.get(status, _REFUSED)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Walk from the error to what caused it."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _is_network(error: BaseException) -> bool:
    library = type(error).__module__.partition(".")[0]
    return library in _HTTP_LIBRARIES or isinstance(error, ConnectionError | TimeoutError)


def _reason(chain: list[BaseException]) -> str:
    """Quote the innermost complaint, in a few words."""
    said = [_first_line(link) for link in chain if _is_network(link) and str(link).strip()]
    return said[-1][:120] if said else "no connection"


def _first_line(error: BaseException) -> str:
    return redacted((str(error).strip().splitlines() or [type(error).__name__])[0])
