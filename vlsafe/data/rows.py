"""Training rows, in TRL's columns, and the base class of what provides them.

A supervised row has `prompt` and `completion`; a preference row has `prompt`, `chosen` and `rejected`; a labelled row, one side
of a pair, has `prompt`, `completion` and `label` (true: desirable). All are lists of chat messages
whose content is a list of parts (`{"type": "image"}`, `{"type": "text", "text": ...}`); `images` holds the pictures in the
order in which the prompt shows them, and is empty for a text row; `source` names where the row came from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, NotRequired, Self, TypedDict

from vlsafe.registry import Component
from vlsafe.settings import spec_of

Purpose = Literal["projector", "instruct", "safety", "preference", "helpful_preference"]


class Part(TypedDict, total=False):
    type: Literal["text", "image"]
    text: str


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: list[Part]


class SupervisedRow(TypedDict):
    source: str
    prompt: list[Message]
    completion: list[Message]  # from one answer to another: those of the assistant are learned, what is asked between is not
    images: list[Any]  # PIL.Image.Image, or vlsafe.data.pictures.Picture
    id: NotRequired[str]  # the data set's own


class PreferenceRow(TypedDict):
    source: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    images: list[Any]
    id: NotRequired[str]


class LabelledRow(SupervisedRow):
    label: bool


class TrainingData(Component):
    """Base of the group `data`: the rows that adaptation and safety tuning learn from."""

    def check_model(self, model: Component) -> None:
        """Raises `ConfigError` where these rows make no sense for this model: found when cells are composed."""

    def check_purposes(self, purposes: Collection[Purpose]) -> None:
        """Raises `ConfigError` where there are no rows for one of the purposes that a cell trains on."""

    def check_files(self) -> None:
        """Raises where it is seen from local files' names that they can't be read: before anything runs."""

    def used(self, purposes: Collection[Purpose] | None) -> Self:
        """The same without what has no say in the rows for these purposes (None: all of them)."""
        return self

    def padded(self, purposes: Collection[Purpose]) -> dict[str, bool]:
        """Of what brings pictures for these purposes, by its setting's name, whether they are padded to a square; empty where
        that can't be set."""
        return {}

    def spec_for(self, stage: str, joint: bool = False) -> dict[str, Any]:
        """The settings that change the rows of an `adaptation` or a `safety_tune` stage (`joint`: of both at once): the part of
        the key that is theirs."""
        spec: dict[str, Any] = spec_of(self)
        return spec

    @property
    def replays_alignment(self) -> bool:
        """Whether adaptation sees the alignment's examples again, so that it can't conflict with it: a control."""
        return False

    def fingerprints(self) -> dict[str, str]:
        """Content hashes or revisions of the files behind the rows, for the key; empty where the settings say it all."""
        return {}

    def supervised(self, purpose: Literal["projector", "instruct", "safety"], n: int, seed: int) -> Sequence[SupervisedRow]:
        """The first `n` rows of a seeded order: image-text pairs for the projector, instructions, or refusals of harmful
        requests. More rows begin with the same ones."""
        raise TypeError(f"data={self.component_name} has no rows for {purpose}")

    @property
    def helpful_is_instruct(self) -> bool:
        """Whether `helpful` gives rows of the adaptation as they are, so that a filter of the one is a filter of the other."""
        return type(self).helpful is TrainingData.helpful

    def helpful(self, n: int, seed: int) -> Sequence[SupervisedRow]:
        """`n` harmless instructions to mix into a safety tuning: those of the adaptation, unless it may hold others too."""
        return self.supervised("instruct", n, seed)

    def preferences(self, purpose: Literal["preference", "helpful_preference"], n: int, seed: int) -> Sequence[PreferenceRow]:
        """`n` pairs in a seeded order: a refusal preferred to harmful compliance, or an answer to a needless refusal."""
        raise TypeError(f"data={self.component_name} has no rows for {purpose}")
