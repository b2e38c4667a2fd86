"""The options of the group `tracking`: `wandb` (the default), `trackio` for those without an account, `none`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlsafe.errors import ConfigError
from vlsafe.registry import register
from vlsafe.settings import PositiveFloat, execution
from vlsafe.tracking import credentials
from vlsafe.tracking.base import Destination, Tracker, Tracking


@register("tracking", "none")
@dataclass(frozen=True)
class NoTracking(Tracking):
    """Our own records under `outputs/` are the only ones."""

    project = ""
    upload_text = False
    wait_seconds = 0.0

    def destination(self, outputs: Path) -> Destination | None:
        return None


@register("tracking", "wandb")
@dataclass(frozen=True)
class WandbTracking(Tracking):
    """Weights & Biases. The key comes from the environment, netrc or W&B's settings file, and is never asked for."""

    mode: Literal["auto", "online", "offline"] = execution("auto")  # auto: online where there is a key
    project: str = execution("vlsafe")
    entity: str | None = execution(None)  # user or team; null: the account's own
    upload_text: bool = execution(False)  # also prompts and responses
    wait_seconds: PositiveFloat = execution(20.0)  # at most, at the end of a command, for what is not sent yet

    def check(self) -> None:
        if not self.project or set(self.project) & set("/\\#?%:"):
            raise ConfigError(f"tracking.project={self.project!r}: a W&B project's name has none of / \\ # ? % :")

    def check_ready(self) -> None:
        if self.mode == "online" and not credentials.there():
            raise ConfigError(
                f"tracking.mode=online: no key for {credentials.host()}; set WANDB_API_KEY or run `wandb login`, or set "
                "tracking.mode=offline, or tracking=none"
            )

    def destination(self, outputs: Path) -> Destination | None:
        wanted = credentials.wanted_mode() if self.mode == "auto" else self.mode
        if wanted == "disabled":
            return None
        online = wanted == "online" or (wanted is None and credentials.there())
        project = f"{credentials.host()}/{self.entity or ''}/{self.project}"
        return Destination(f"wandb {'online' if online else 'offline'} {project}", f"wandb {project}", online)

    def tracker(self, outputs: Path) -> Tracker:
        from vlsafe.tracking.wandb_tracker import WandbTracker

        destination = self.destination(outputs)
        return WandbTracker(outputs, self.project, self.entity, online=destination is not None and destination.online)


@register("tracking", "trackio")
@dataclass(frozen=True)
class TrackioTracking(Tracking):
    """Trackio, in a database under `outputs/trackio`: `TRACKIO_DIR=outputs/trackio trackio show` opens it in a browser."""

    project: str = execution("vlsafe")
    upload_text: bool = execution(False)
    wait_seconds: PositiveFloat = execution(20.0)

    def check_ready(self) -> None:
        if importlib.util.find_spec("trackio") is None:
            raise ConfigError("tracking=trackio: the package is not installed; `pip install vlsafe[trackio]`, or tracking=none")

    def destination(self, outputs: Path) -> Destination | None:
        return Destination(f"trackio {self.project}", f"trackio {self.project}")

    def tracker(self, outputs: Path) -> Tracker:
        from vlsafe.tracking.trackio_tracker import TrackioTracker

        return TrackioTracker(outputs, self.project)
