"""Whether W&B has a key here, found where W&B looks for it and without importing it. The key itself is never kept or shown."""

from __future__ import annotations

import configparser
import netrc
import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

DEFAULT_URL = "https://api.wandb.ai"


def there() -> bool:
    """True with a key in the environment, in netrc or in W&B's settings file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    return bool(_setting("api_key")) or _in_netrc()


def host() -> str:
    """The server, without what an address may hold of credentials."""
    parts = urlsplit(os.environ.get("WANDB_BASE_URL") or _setting("base_url") or DEFAULT_URL)
    return f"{parts.hostname or 'unknown'}" + (f":{parts.port}" if parts.port else "")


def wanted_mode() -> Literal["online", "offline", "disabled"] | None:
    """What W&B itself was told (`WANDB_MODE`, `wandb offline`): `tracking.mode=auto` keeps to it."""
    said = os.environ.get("WANDB_MODE") or _setting("mode") or ""
    if said in ("offline", "dryrun"):
        return "offline"
    return "disabled" if said == "disabled" else None


def _setting(name: str) -> str | None:
    """From W&B's own settings files, the working folder's before the user's."""
    local = Path(os.environ.get("WANDB_DIR") or ".") / "wandb" / "settings"
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser() / "settings"
    for path in (local, user):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(path, encoding="utf-8")
        except (OSError, ValueError, configparser.Error):
            continue
        if parser.has_option("default", name):
            return parser.get("default", name)
    return None


def _in_netrc() -> bool:
    given = os.environ.get("NETRC")
    candidates = [Path(given).expanduser()] if given else [Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()]
    for path in candidates:
        try:
            entry = netrc.netrc(path).authenticators(host())
        except (OSError, ValueError, netrc.NetrcParseError):
            continue
        if entry and entry[2]:
            return True
    return False
