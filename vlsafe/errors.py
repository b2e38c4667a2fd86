"""The exceptions that `vlsafe` raises on purpose. Each message says what was wrong, where, and what to set instead."""

from __future__ import annotations


class VlsafeError(Exception):
    """Base of all: shown to the user as one line; any other exception is a bug and goes to the log with its traceback."""


class ConfigError(VlsafeError):
    """A composed cell names or sets something that can't be: found before anything runs."""


class RegistryError(VlsafeError):
    """A component was registered twice, or a plug-in is broken: found at import."""


class SourceError(VlsafeError):
    """A model or a data set can't be had: not there, not allowed, or not reachable from here."""


class StoreError(VlsafeError):
    """The store can't be read or written."""


class CorruptArtifactError(StoreError):
    """An artifact's files differ from its manifest. Carries `stage` and `key`, so that it can be rebuilt."""

    def __init__(self, stage: str, key: str, reason: str) -> None:
        super().__init__(f"{stage}/{key} is corrupt ({reason}): it will be rebuilt by the same command")
        self.stage, self.key, self.reason = stage, key, reason


class CheckError(VlsafeError):
    """A loud check failed: the stage would have computed something silently wrong."""


class StageInterrupted(VlsafeError):
    """A stage was asked to stop and did, at a checkpoint: the same command goes on from there."""
