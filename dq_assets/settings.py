"""Every setting, once: default, meaning and bounds. Frozen, comparable, and hashed into code versions.

A registered dataset is a `Dataset`: a name, a source and its `Settings`; it lives in $DQ_HOME/datasets/<name>.yaml.
Users set one with `--set section.name=value` or in that file. docs/settings.md is generated from here.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import math
import os
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]*")


CLEANLAB_FILTERS = (
    "prune_by_noise_rate",
    "prune_by_class",
    "both",
    "confident_learning",
    "predicted_neq_given",
    "low_self_confidence",
    "low_normalized_margin",
)
"""Values of cleanlab's `filter_by`; the first is its default."""

CLEANLAB_SCORES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
"""cleanlab's label quality scores, all in [0, 1] with 0 worst."""


class UserError(Exception):
    """What the user can mend. The message is one line and ends with what to do."""


def setting(
    default: Any, doc: str, *, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = (), pattern: str = ""
) -> Any:
    """A dataclass field with its meaning, its bounds (inclusive), and what a text may be: one of choices, or all of a pattern."""
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "choices": choices, "pattern": pattern})


@dataclass(frozen=True)
class Images:
    """Reading of files."""

    max_pixels: int = setting(
        178_956_970, "Most pixels of a decoded image. A JPEG with more is decoded at 1/2, 1/4 or 1/8; others are too_large.", low=1
    )
    memory_mb: int = setting(
        920,
        "Megabytes that decoding may hold, all threads together. An image that alone needs more has too many pixels.",
        low=64,
    )
    max_bytes: int = setting(
        256_000_000, "Most bytes of a file in a bucket, archive or table or on the web; one with more is too_large and not read.", low=1
    )
    threads: int = setting(0, "Threads that read and decode; 0 is one per core.", low=0)
    connections: int = setting(16, "Remote files that are asked for at once.", low=1, high=256)


@dataclass(frozen=True)
class Quality:
    """Thresholds of the image quality checks."""

    dark_below: float = setting(0.32, "dark_score below this is an issue.", low=0, high=1)
    light_below: float = setting(0.05, "light_score below this is an issue.", low=0, high=1)
    blurry_below: float = setting(0.29, "blurry_score below this is an issue.", low=0, high=1)
    low_information_below: float = setting(0.3, "low_information_score below this is an issue.", low=0, high=1)
    odd_aspect_ratio_below: float = setting(0.35, "odd_aspect_ratio_score below this is an issue.", low=0, high=1)


@dataclass(frozen=True)
class Encoder:
    """The network that turns an image into a vector."""

    model: str = setting(
        "tf_efficientnet_lite0",
        "Name of a timm model, or auto: the one of the candidates that suits the images. The default's weights come with the installation.",
    )
    candidates: str = setting(
        "", "For auto: names of timm models, separated by commas; empty for all whose weights are on this machine. None is fetched."
    )
    choice: int = setting(1, "What auto chose is kept. Raise this number to let it choose anew.", low=1)
    backend: str = setting(
        "auto",
        "What runs the network: auto takes a GPU, else OpenVINO if it is installed, else PyTorch; openvino needs the extra [openvino].",
        choices=("auto", "torch", "openvino"),
    )
    precision: str = setting(
        "auto", "auto is float32, on every machine; bfloat16 gives other vectors.", choices=("auto", "float32", "bfloat16")
    )
    batch_size: int = setting(0, "Images decoded and handed over together; 0 is by memory. Does not change the vectors.", low=0)
    block_size: int = setting(512, "Images per commit: what a killed run may lose.", low=1)


@dataclass(frozen=True)
class Neighbors:
    """The nearest-neighbour graph."""

    k: int = setting(20, "Neighbours kept per image; duplicates are sought among the nearest 10.", low=1, high=1000)
    exact_up_to: int = setting(20_000, "Up to this many images the search is by brute force; beyond it an index is used.", low=0)
    recall: float = setting(0.95, "Share of the true neighbours that the index has to find for a sample of images.", low=0.5, high=1)


@dataclass(frozen=True)
class Duplicates:
    """Which images count as the same picture."""

    phash_distance: int = setting(10, "Pairs of perceptual hashes at most this many bits apart are looked at.", low=0, high=32)
    cosine_distance: float = setting(0.25, "Neighbours at most this far apart are looked at (nearest 3: twice that).", low=0, high=2)
    min_correlation: float = setting(0.9, "Least correlation of the aligned pixels for a near-duplicate.", low=0, high=1)
    mirrored: bool = setting(True, "Whether a mirror image is a copy; say false where left and right matter (text, digits, signs).")


@dataclass(frozen=True)
class Folds:
    """Cross-validation."""

    n_folds: int = setting(5, "Number of folds.", low=2, high=100)
    min_components: int = setting(5, "A class with fewer independent images is reported as not learnable.", low=2)


@dataclass(frozen=True)
class Labels:
    """Out-of-fold model and label issues."""

    flag_above: float = setting(0.5, "error_probability above this is a label issue.", low=0, high=1)
    ambiguous_ratio: float = setting(
        0.1, "A flagged image whose given label has at least this share of the suggestion's probability is ambiguous.", low=0, high=1
    )
    multi_label_rate: float = setting(
        0.005,
        "An ambiguous image is multi_label if at most this share of the unflagged looks as mixed; 0 calls none.",
        low=0,
        high=0.2,
    )
    candidate_ratio: float = setting(0.25, "Classes with at least this share of the top probability are candidate labels.", low=0, high=1)
    filter_by: str = setting(
        "ours",
        "Which labels are flagged: ours (error_probability above flag_above), or as cleanlab does with this value of its filter_by.",
        choices=("ours", *CLEANLAB_FILTERS),
    )
    quality_score: str = setting("self_confidence", "label_score where filter_by is one of cleanlab's.", choices=CLEANLAB_SCORES)
    adjust_pred_probs: bool = setting(False, "cleanlab's option of that name, for quality_score; not for confidence_weighted_entropy.")


@dataclass(frozen=True)
class Outliers:
    """Outliers."""

    false_alarm_rate: float = setting(
        0.003, "Share of the regular images that the flag names, besides evident outliers.", low=1e-6, high=0.05
    )


@dataclass(frozen=True)
class Curation:
    """What the policy does with findings."""

    relabel_above: float = setting(0.95, "Relabel a flagged image when p_suggested is above this; otherwise review.", low=0, high=1)
    label_issues: str = setting("relabel", "What to do with label issues that are sure.", choices=("relabel", "review", "drop", "keep"))
    exact_duplicates: str = setting("drop", "What to do with exact and pixel copies but the keeper.", choices=("drop", "review", "keep"))
    near_duplicates: str = setting(
        "keep", "What to do with near-duplicates but the keeper, within one split.", choices=("drop", "review", "keep")
    )
    outliers: str = setting("review", "What to do with outliers.", choices=("drop", "review", "keep"))


@dataclass(frozen=True)
class Gates:
    """Limits that hold training when they are passed."""

    max_unreadable_share: float = setting(0.01, "Highest share of files that could not be read.", low=0, high=1)
    min_class_images: int = setting(5, "Fewest images that a class may have in the curated data.", low=0)
    max_noise_rate: float = setting(0.2, "Highest estimated share of wrong labels in the data as given.", low=0, high=1)
    max_leaks: int = setting(0, "Most duplicate groups that may stand in two splits of the curated data.", low=0)


@dataclass(frozen=True)
class Training:
    """The probe of trained_model."""

    include_review: bool = setting(True, "Whether images with action review are trained on, with their given label.")
    bootstrap: int = setting(1000, "Resamples for the interval of the gain.", low=100)


@dataclass(frozen=True)
class Store:
    """The lake."""

    memory_limit: str = setting("2GB", "DuckDB's memory limit.", pattern=r"\d+(\.\d+)? ?[KMGT]i?B")
    threads: int = setting(0, "DuckDB's threads; 0 is one per core.", low=0)
    matrices_kept: int = setting(3, "neighbors and oof_probs are kept for this many audits, and for pinned or tagged ones.", low=1)


@dataclass(frozen=True)
class Automation:
    """Schedule and sensor."""

    schedule: str = setting("0 2 * * *", "Cron expression of the full audit; empty for none.", pattern=r"|@[a-z]+|\S+( \S+){4}")
    sensor_seconds: int = setting(30, "Least seconds between two looks at the source.", low=5)
    owner: str = setting(
        "team:data-quality", "Owner of the assets in Dagster: an e-mail address, or team:<name>.", pattern=r"team:[\w-]+|[^@\s]+@[^@\s]+"
    )


@dataclass(frozen=True)
class Settings:
    """All settings of one dataset."""

    images: Images = Images()
    quality: Quality = Quality()
    encoder: Encoder = Encoder()
    neighbors: Neighbors = Neighbors()
    duplicates: Duplicates = Duplicates()
    folds: Folds = Folds()
    labels: Labels = Labels()
    outliers: Outliers = Outliers()
    curation: Curation = Curation()
    gates: Gates = Gates()
    training: Training = Training()
    store: Store = Store()
    automation: Automation = Automation()

    def with_values(self, values: dict[str, str]) -> Settings:
        """A copy with `{"section.name": "text"}` parsed, checked and set. Raises UserError naming what is wrong."""
        known = all_settings()
        changed = self
        for dotted, text in values.items():
            if dotted not in known:
                raise UserError(f"Unknown setting {dotted!r}. Known: {', '.join(sorted(known))}.")
            section_name, name = dotted.split(".")
            section: Any = dataclasses.replace(getattr(changed, section_name), **{name: _parse(dotted, text, known[dotted])})
            changed = dataclasses.replace(changed, **{section_name: section})
        return changed

    def changed(self) -> dict[str, dict[str, Any]]:
        """The values that are not the defaults, by section: what a registration holds, so that better defaults reach it."""
        now, default = dataclasses.asdict(self), dataclasses.asdict(Settings())
        found = {section: {k: v for k, v in values.items() if v != default[section][k]} for section, values in now.items()}
        return {section: values for section, values in found.items() if values}

    def digest(self, *sections: str) -> str:
        """Hash of the named sections, 16 hex digits. Fields that only change speed are left out.

        So are backend and precision of the encoder: where they change vectors, the encoder's identity, which is hashed beside, says so.
        """
        neutral = {"threads", "connections", "batch_size", "block_size", "backend", "precision"}
        chosen = {s: {k: v for k, v in dataclasses.asdict(getattr(self, s)).items() if k not in neutral} for s in sections}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def all_settings() -> dict[str, dataclasses.Field[Any]]:
    """Every setting by its dotted name."""
    return {
        f"{section.name}.{f.name}": f
        for section in dataclasses.fields(Settings)
        for f in dataclasses.fields(typing.cast(Any, section.default))
    }


def _parse(dotted: str, text: str, spec: dataclasses.Field[Any]) -> Any:
    kind = type(spec.default)
    try:
        value = _PARSERS[kind](text)
    except (ValueError, KeyError):
        what = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{dotted}={text!r} is not {what}. Give one, such as {dotted}={spec.default}.") from None
    low, high, choices = spec.metadata["low"], spec.metadata["high"], spec.metadata["choices"]
    if choices and value not in choices:
        raise UserError(f"{dotted}={value!r} is not one of {', '.join(choices)}. Choose one of them.")
    if spec.metadata["pattern"] and not re.fullmatch(spec.metadata["pattern"], value):
        raise UserError(f"{dotted}={value!r} is not valid. {spec.metadata['doc']} Give one such as {spec.default!r}.")
    if (low is not None and value < low) or (high is not None and value > high):
        raise UserError(f"{dotted}={value!r} is out of range. Give a value from {low} to {'any' if high is None else high}.")
    return value


def _finite(text: str) -> float:
    """NaN passes every bound, and JSON has no word for infinity."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


_PARSERS: dict[type, Callable[[str], Any]] = {
    bool: lambda word: {"true": True, "false": False}[word.lower()],
    int: int,
    float: _finite,
    str: str,
}


def _slug(name: str) -> str:
    return name.replace("-", "_")


@dataclass(frozen=True)
class Dataset:
    """A registered dataset: what is audited, under which name, how."""

    name: str
    path: str
    labels: str | None = None
    splits: str | None = None
    groups: str | None = None
    pred_probs: str | None = None
    settings: Settings = Settings()

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise UserError(f"Dataset name {self.name!r} does not match [a-z0-9][a-z0-9_-]*. Choose another with --name.")

    @property
    def slug(self) -> str:
        """The name in Dagster's groups, jobs, schedules and sensors, which refuse hyphens."""
        return _slug(self.name)


@dataclass(frozen=True)
class Home:
    """The folder that holds everything: lake/, datasets/, dagster/, cache/, demo/."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """$DQ_HOME, else ./data, made absolute."""
        return cls(Path(os.environ.get("DQ_HOME") or "data").expanduser().absolute())

    @property
    def lake(self) -> Path:
        return self.root / "lake"

    @property
    def dagster(self) -> Path:
        return self.root / "dagster"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def registration(self, name: str) -> Path:
        return self.root / "datasets" / f"{name}.yaml"

    def is_registered(self, name: str) -> bool:
        """Whether there is a registration of this name, valid or not."""
        return NAME_PATTERN.fullmatch(name) is not None and self.registration(name).exists()

    def register(self, dataset: Dataset) -> Path:
        """Write the registration whole or not at all. Refuses a name that collides in Dagster's names."""
        file = self.registration(dataset.name)
        # By their file names alone: that another registration is damaged is no reason to refuse this one.
        for other in sorted(p.stem for p in file.parent.glob("*.yaml")):
            if other != dataset.name and _slug(other) == dataset.slug:
                raise UserError(f"Dataset name {dataset.name!r} collides with {other!r} in Dagster. Choose another with --name.")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise UserError(f"Cannot write to {self.root} ({error.strerror}). Set DQ_HOME to a folder that you can write to.") from error
        draft = file.with_suffix(f".{os.getpid()}.tmp")
        entries = {**dataclasses.asdict(dataset), "settings": dataset.settings.changed()}
        draft.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")
        draft.replace(file)
        return file

    def dataset(self, name: str) -> Dataset:
        """Read one registration. Raises UserError if there is none or it is not valid."""
        file = self.registration(name)
        if not NAME_PATTERN.fullmatch(name) or not file.exists():
            known = ", ".join(sorted(p.stem for p in (self.root / "datasets").glob("*.yaml"))) or "none"
            raise UserError(f"No dataset {name!r} under {self.root}. Registered: {known}. Run `dq-assets audit PATH --name {name}` first.")
        try:
            raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is not valid YAML ({' '.join(str(error).split())}). Mend it or audit again.") from error
        return _dataset_from(raw, file)

    def datasets(self) -> list[Dataset]:
        """All valid registrations, by name. A damaged one is a warning: it must not stop the audits of all others."""
        found = []
        for name in sorted(p.stem for p in (self.root / "datasets").glob("*.yaml")):
            try:
                found.append(self.dataset(name))
            except UserError as error:
                logging.getLogger(__name__).warning("Not loaded: %s", error)
        return found


def _dataset_from(raw: Any, file: Path) -> Dataset:
    if not isinstance(raw, dict) or not raw.get("name") or not raw.get("path"):
        raise UserError(f"{file} is not a dataset registration (name and path are required). Mend it or audit again.")
    entries = {key: None if value is None else str(value) for key, value in raw.items() if key != "settings"}
    name, path = str(raw["name"]), str(raw["path"])
    if name != file.stem:
        raise UserError(f"{file} registers {name!r}. Name the file {name}.yaml.")
    unknown = sorted(map(str, entries.keys() - {f.name for f in dataclasses.fields(Dataset)}))
    if unknown:
        raise UserError(f"{file} has unknown entries: {', '.join(unknown)}. Remove them.")
    try:
        settings = Settings().with_values(_setting_texts(raw.get("settings")))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    files = {role: entries.get(role) for role in ("labels", "splits", "groups", "pred_probs")}
    return Dataset(name, path, **files, settings=settings)


def _setting_texts(sections: Any) -> dict[str, str]:
    """{"section.name": text} of the settings in a registration; an entry without a value is an empty text."""
    if not isinstance(sections or {}, dict) or not all(isinstance(entries or {}, dict) for entries in (sections or {}).values()):
        raise UserError("settings is not a mapping of sections to mappings. Write section: {name: value}.")
    return {
        f"{section}.{name}": "" if value is None else str(value)
        for section, entries in (sections or {}).items()
        for name, value in (entries or {}).items()
    }
