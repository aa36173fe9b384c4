"""The URI of an MLflow store: the default, and checks before anything runs for it."""

from __future__ import annotations

import warnings
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from wmlsearch.errors import InputError
from wmlsearch.runs.redaction import without_password
from wmlsearch.tracking.problems import package_of

_DATABASES = ("postgresql", "mysql", "mssql")


def is_database(uri: str) -> bool:
    """Return whether `uri` is a database that clients open themselves, without an MLflow server."""
    return uri.partition(":")[0].partition("+")[0].lower() in ("sqlite", *_DATABASES)


def check_uri(uri: str) -> None:
    """Raises InputError if `uri` cannot be the URI of an MLflow store.

    Whether the store answers is not checked: a training does not wait for MLflow. A database's Python driver must be
    installed, since nothing could ever be copied without it.
    """
    scheme, colon, _ = uri.partition(":")
    scheme, fault = scheme.partition("+")[0].lower(), ""
    plugins = (plugin.name for plugin in entry_points(group="mlflow.tracking_store"))
    if scheme in ("http", "https"):
        fault = _server_fault(uri)
    elif scheme == "sqlite" and colon:
        fault = _file_fault(uri)
    elif (not colon and scheme != "databricks") or scheme == "file":
        fault = "is a folder, and MLflow no longer supports stores in folders"
    elif scheme == "postgres":
        fault = "the scheme of PostgreSQL is written postgresql://"
    elif scheme in _DATABASES and colon:
        fault = _database_fault(uri)
    elif scheme not in ("databricks", *plugins):
        fault = f"MLflow has no store of the kind {scheme!r}"
    if fault:
        shown = without_password(uri if "://" in uri else f"://{uri}").removeprefix("://")
        raise InputError(
            f"{shown}: {fault}; give --mlflow-uri (or MLFLOW_TRACKING_URI) a server or a database, "
            "such as http://127.0.0.1:5000 or sqlite:///PATH/mlflow.db"
        )


def default_uri(out: Path) -> str:
    """Return the URI of the MLflow store beside the run folders: a SQLite file."""
    return sqlite_uri(out.resolve() / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    """Return the URI of a store in a SQLite file, with its absolute path.

    The path stands in it as it is, unless SQLAlchemy would open another file: `%20` and `?` have a meaning in a URI,
    and versions before 2.1 take `%20` as it is.
    """
    absolute = path.parent.resolve() / path.name
    plain = f"sqlite:///{absolute}"
    quoted = plain.replace("%", "%25").replace("?", "%3F")
    of_sqlite = f"sqlite:///{absolute.as_uri()}?uri=true"
    return next((uri for uri in (plain, quoted, of_sqlite) if sqlite_file(uri) == absolute), plain)


def sqlite_file(uri: str) -> Path | None:
    """Return the file that SQLAlchemy opens for the URI of a store; None if that is another store, or in memory.

    Raises InputError if it is not a valid URI of a SQLite file.
    """
    if not uri.startswith("sqlite:///"):
        return None
    name, of_sqlite = uri.removeprefix("sqlite:///"), False
    if "%" in name or "?" in name:
        name, of_sqlite = _name_and_kind(uri)
    if of_sqlite and name.startswith("file:"):  # https://www.sqlite.org/uri.html
        parts = urlsplit(name)
        name = ":memory:" if "mode=memory" in parts.query.split("&") else unquote(parts.path)
    return None if name in ("", ":memory:") else Path(name)


def _name_and_kind(uri: str) -> tuple[str, bool]:
    """Return what SQLAlchemy hands to SQLite: a name, and whether SQLite takes that for a URI of its own."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
        with warnings.catch_warnings(action="ignore"):  # of options that SQLite does not know
            arguments, options = url.get_dialect()().create_connect_args(url)
    except (ArgumentError, ValueError) as error:
        raise InputError(
            f"{uri}: is not a valid URL of a SQLite file ({error}); in the path, write % as %25 and ? as %3F"
        ) from None
    return str(arguments[0]), bool(options.get("uri"))


def usual_form(uri: str) -> str:
    """Return the URI of a server with scheme and host in lower case and no slash at its end; others as they are.

    Run folders name their store, and two spellings of one server must not look like two stores.
    """
    scheme, _, rest = uri.partition("://")
    if scheme.lower() not in ("http", "https"):
        return uri
    place, slash, path = rest.partition("/")
    user, at, host = place.rpartition("@")
    return f"{scheme.lower()}://{user}{at}{host.lower()}{slash}{path}".rstrip("/")


def _database_fault(uri: str) -> str:
    """Return what is wrong with the URI of a database, or "". Raises InputError if its Python driver is missing."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    scheme = uri.partition(":")[0]
    try:
        make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        module = error.name or scheme.partition("+")[2]
        other = ", or write postgresql+psycopg2://" if scheme == "postgresql" and find_spec("psycopg2") else ""
        raise InputError(
            f"{without_password(uri)}: the Python driver of this database cannot be imported ({error}); install it "
            f"where wmlsearch runs: pip install {package_of(module)}{other}"
        ) from None
    except NoSuchModuleError:
        return f"there is no database driver {scheme!r}; leave out the + and the name after it"
    except (ArgumentError, ValueError):  # the error's text may hold a part of the password
        return (
            "is not a valid URL of a database, such as postgresql://USER:PASSWORD@HOST:5432/NAME (in a user or "
            "password, write : / ? # [ ] @ as %3A %2F %3F %23 %5B %5D %40)"
        )
    return ""


def _server_fault(uri: str) -> str:
    """Return what is wrong with the URI of a server, or ""."""
    try:
        parts = urlsplit(uri)
        if not parts.hostname or parts.port == 0:
            return "must name a host, and a port from 1 to 65535"
        if not parts.fragment and not parts.query:
            return ""
        if "@" not in parts.fragment + parts.query:
            return "is the address of a page; leave out the end, from # or ? on"
        raise ValueError("a password with # or ?")
    except ValueError as error:
        if "@" in uri:  # the error's text may hold a part of the password
            return "is not a valid URL (in a user or password, write : / ? # [ ] @ as %3A %2F %3F %23 %5B %5D %40)"
        return f"is not a valid URL ({error})"


def _file_fault(uri: str) -> str:
    """Return what is wrong with the URI of a SQLite file, or ""."""
    path = sqlite_file(uri)
    if path is None:
        return "must name a file (sqlite:///PATH); otherwise nothing would be kept"
    parent = next((folder for folder in path.absolute().parents if folder.exists()), path)
    if path.is_dir() or not parent.is_dir():
        return f"{path} is a folder" if path.is_dir() else f"{parent} is not a folder"
    if path.exists():
        with path.open("rb") as file:
            if file.read(16) not in (b"", b"SQLite format 3\0"):
                return f"{path} is not a SQLite database; it was left as it is"
    return ""
