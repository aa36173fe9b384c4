"""What went wrong with MLflow, in one line that ends with what to change; the whole text goes into a file.

Errors of MLflow and of the stores behind it are long, and the reason often stands at their end.
"""

from __future__ import annotations

import contextlib
import html
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from wmlsearch.runs.redaction import without_password

PROBLEM_FILE = "mlflow-problem.txt"  # in a run folder: the whole text of the latest problem
OLDEST_SERVER = "2.3"  # older ones have no aliases of models
MAX_TEXT = 480  # characters of an error in a message; a longer one loses its middle
HEAD = 140  # of them before the gap

# Packages by the module that is missing, where their names differ.
PACKAGES = {
    "psycopg2": "psycopg2-binary",
    "psycopg": "'psycopg[binary]'",
    "MySQLdb": "mysqlclient",
    "google": "google-cloud-storage",
    "azure": "azure-storage-blob azure-identity",
}


@dataclass(frozen=True)
class _Remedy:
    """What to change where an error's text matches a pattern."""

    pattern: str  # a regular expression, without regard to case
    advice: str  # may name groups of the pattern, {uri}, {host} and {location}


# The first remedy that matches is taken: errors of a proxy or a certificate also look like a server that is away.
_DATABASE = (
    _Remedy(
        r"database is locked",
        "another process writes to this SQLite file; use an MLflow server if several machines or searches share it",
    ),
    _Remedy(r"can't locate revision", "this database belongs to a newer MLflow than the one installed here: update it"),
    _Remedy(
        r"password authentication failed|no password supplied|access denied for user",
        "check user and password of the URI (write : / ? # @ in them as %3A %2F %3F %23 %40)",
    ),
    _Remedy(r'database "(?P<database>[^"]+)" does not exist', "create it: createdb {database}"),
    _Remedy(
        r"permission denied for|must be owner of",
        "this database user may not change tables; give it the database, or another user in the URI",
    ),
)
_TLS = (
    _Remedy(
        r"wrong_version_number|wrong version number|record layer", "the server speaks no https there: write http://"
    ),
    _Remedy(
        r"hostname mismatch|doesn't match|ip address mismatch",
        "the server's certificate is for another name: write that name in --mlflow-uri",
    ),
    _Remedy(
        r"certificate_verify_failed|sslerror|ssl:|invalid path: .*ca|tls ca certificate",
        "if the server's certificate is of an own CA, name its file: MLFLOW_TRACKING_SERVER_CERT_PATH=/PATH/ca.pem",
    ),
    _Remedy(r"http request was sent to https port", "the server speaks https there: write https://"),
)
_PROXY = (
    _Remedy(
        r"proxyerror|tunnel connection failed|proxy authentication",
        "a proxy of the environment (http_proxy, https_proxy) does not let it through; to go there directly, add "
        "{host} to NO_PROXY",
    ),
)
_LOGIN = (
    _Remedy(r"invalid host header", "the server takes other host names only: start it with --allowed-hosts {host}"),
    _Remedy(
        r"\b401\b|unauthorized|unauthenticated|not authenticated",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (run folders keep no password), or "
        "MLFLOW_TRACKING_TOKEN",
    ),
    _Remedy(
        r"\b403\b|permission_denied|permission denied|forbidden",
        "this user may not write there: ask for the permission EDIT, give an --experiment of your own, or set another "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (run folders keep no password)",
    ),
)
_PATH = (
    _Remedy(
        r"registered-models/alias .*404",
        f"this server is older than MLflow {OLDEST_SERVER}, the oldest that wmlsearch works with: update it",
    ),
    _Remedy(
        r"error code (404|405|30\d)|404 not found|valid json",
        "no MLflow answers at this path; a path prefix of the server (--static-prefix, a reverse proxy) belongs to "
        "--mlflow-uri, such as https://HOST/mlflow",
    ),
)
_REACH = (
    _Remedy(
        r"name or service not known|nameresolution|getaddrinfo|failed to resolve|could not translate host",
        "check the name of the host, and whether this machine can reach it (VPN?)",
    ),
    _Remedy(
        r"too many 5\d\d error responses|error code 5\d\d",
        "the server or a proxy before it answers, but with an error: it may be starting; else its log says why",
    ),
    _Remedy(r"connection refused", "check that the server runs, and its host and port"),
    _Remedy(
        r"timed? ?out",
        "the server is slow, or a firewall is in the way; MLFLOW_HTTP_REQUEST_TIMEOUT=60 waits longer",
    ),
)
_SERVER = (*_DATABASE, *_TLS, *_PROXY, *_LOGIN, *_PATH, *_REACH)
_SERVED_FILES = (*_TLS, *_PROXY, *_LOGIN)
_FILES = (
    _Remedy(r"nosuchbucket|bucket does not exist", "create the bucket of {location}, or give another --experiment"),
    _Remedy(
        r"nocredentials|unable to locate credentials|invalidaccesskeyid|signaturedoesnotmatch|expiredtoken",
        "wmlsearch writes to {location} itself and needs a valid AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or "
        "~/.aws/credentials)",
    ),
    _Remedy(
        r"endpointconnection|could not connect to the endpoint|connecttimeout.*endpoint",
        "set MLFLOW_S3_ENDPOINT_URL to the address of the S3 server of {location}",
    ),
    _Remedy(
        r"accessdenied|access denied|\b403\b|forbidden",
        "allow writing to {location} (of S3: s3:PutObject), or give another --experiment",
    ),
)


def why(error: BaseException, uri: str = "", log: Path | None = None) -> str:
    """Return why MLflow at `uri` failed: one line without passwords, with what to change where that is known.

    Args:
        log: A file for the whole text, which is written and named if the line is shorter.
    """
    return _explain(error, uri, log, _SERVER, "", "")


def why_no_files(error: BaseException, uri: str, location: str, log: Path | None = None) -> str:
    """Return why files could not be written to the artifact `location` of a run, like `why`."""
    location = without_password(location)
    if location.startswith(("mlflow-artifacts:", "http:", "https:")):
        otherwise = (
            "the server stores the files itself, and its log says why it could not; check its "
            "--artifacts-destination, and start it with --serve-artifacts"
        )
        return _explain(error, uri, log, _SERVED_FILES, location, otherwise)
    otherwise = f"check that {location} can be written from this machine"
    if (folder := local_folder(location)) is not None:
        elsewhere = (
            "let the server take the files (mlflow server --serve-artifacts --artifacts-destination PLACE)"
            if uri.startswith(("http:", "https:"))
            else "set MLFLOW_DEFAULT_ARTIFACT_ROOT to a folder or bucket that all machines reach"
        )
        otherwise = (
            f"make {folder} writable on this machine, or {elsewhere} and give another --experiment, since an "
            "experiment keeps its place"
        )
        return _explain(error, uri, log, (), location, otherwise)
    return _explain(error, uri, log, _FILES, location, otherwise)


def local_folder(location: str) -> Path | None:
    """Return the folder of this machine that an artifact location names, or None: file:///A%20B, file:/x or /x."""
    if re.match(r"file:", location, re.IGNORECASE):
        return Path(unquote(urlsplit(location).path))
    return None if re.match(r"[a-z][\w+.-]*:", location, re.IGNORECASE) else Path(location)


def _explain(
    error: BaseException, uri: str, log: Path | None, remedies: Sequence[_Remedy], location: str, otherwise: str
) -> str:
    def clean(text: str) -> str:
        return without_password(text.replace(uri, without_password(uri)) if uri else text)

    line = clean(f"{type(error).__name__}: {_one_line(str(error))}")
    advice = _missing_module(error) or _advice(line, remedies, uri, location) or otherwise
    text = _without_middle(line)
    if text != line and log is not None and _write(log, clean("".join(traceback.format_exception(error)))):
        advice = f"{advice}; the whole text is in {log}" if advice else f"the whole text is in {log}"
    return f"{text}; {advice}" if advice else text


def forget(log: Path) -> None:
    """Delete the text of an earlier problem, which is solved."""
    with contextlib.suppress(OSError):
        log.unlink(missing_ok=True)


def _one_line(message: str) -> str:
    """Return a message without line breaks, HTML and SQLAlchemy's link at its end."""
    if re.search(r"<(?:!doctype|html|body|h1|title)\b", message, re.IGNORECASE):
        message = html.unescape(re.sub(r"<(?:style|script)\b.*?</(?:style|script)>|<[^>]*>", " ", message, flags=re.S))
    message = re.sub(r"\(Background on this error at: \S+\)\s*$", "", message.strip())
    return " ".join(message.split())


def _without_middle(line: str) -> str:
    """Return a line of at most MAX_TEXT characters with its beginning and its end."""
    if len(line) <= MAX_TEXT:
        return line
    return f"{line[:HEAD].rstrip()} ... {line[HEAD + 5 - MAX_TEXT :].lstrip()}"


def _missing_module(error: BaseException) -> str:
    """Return which package to install, if a Python module is missing anywhere below the error; else ""."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            return f"install it where wmlsearch runs: pip install {package_of(cause.name)}"
        cause = cause.__cause__ or cause.__context__
    return ""


def package_of(module: str) -> str:
    """Return the name of the package that has a module."""
    name = module.partition(".")[0]
    return PACKAGES.get(name, name)


def _advice(line: str, remedies: Sequence[_Remedy], uri: str, location: str) -> str:
    for remedy in remedies:
        if match := re.search(remedy.pattern, line, re.IGNORECASE):
            return remedy.advice.format(host=_host(uri), location=location, **match.groupdict())
    return ""


def _host(uri: str) -> str:
    try:
        return urlsplit(uri).hostname or "its host"
    except ValueError:
        return "its host"


def _write(log: Path, text: str) -> bool:
    """Write a text; return whether that worked."""
    try:
        log.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:  # a full disk, a folder that was removed: the message must do
        return False
    return True
