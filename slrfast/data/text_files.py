"""The files of a text encoder, from a folder or the hub. They come from strangers, and no code of theirs is run.

Numbers are read from ``config.json``, weights from safetensors (or by torch's weights-only reader), the vocabulary from
sentencepiece's or tokenizers' own format.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slrfast.errors import SlrfastError, one_line

# mBART's languages in the order of their tokens: the first 25 are those of mBART-25
LANGUAGES = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX "
    "ro_RO ru_RU si_LK tr_TR vi_VN zh_CN af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN "
    "pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
).split()
CONFIG, PIECES, _TOKENIZER = "config.json", "sentencepiece.bpe.model", "tokenizer.json"
SAFE, _SAFE_INDEX, _TORCH = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_LIMITS = {
    "vocab_size": 1 << 21, "d_model": 1 << 13, "encoder_layers": 96, "encoder_attention_heads": 256,
    "encoder_ffn_dim": 1 << 16, "max_position_embeddings": 1 << 16,
}  # fmt: skip
PREFIXES = ("model.encoder.", "encoder.")
EMBEDDING = "embed_tokens.weight"
SHARED = ("model.shared.weight", "shared.weight")
_LANGUAGE = re.compile(r"[a-z]{2,3}_[A-Z]{2}")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class TextEncoderError(SlrfastError, ValueError):
    """A text encoder cannot be used; the message is one sentence with what to do."""


class Vocabulary(Protocol):
    path: Path
    languages: dict[str, int]
    eos: int

    def encode(self, text: str) -> list[int]: ...


class _Pieces:
    """sentencepiece.bpe.model with the numbering of mBART: <s> <pad> </s> <unk>, the pieces, languages, <mask>."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        import sentencepiece

        self.path, self.eos = path, 2
        self._model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        pieces = self._model.get_piece_size()
        count = vocab_size - pieces - 2
        if count not in (25, len(LANGUAGES)):
            raise ValueError(f"{pieces} pieces and {vocab_size} tokens leave {count} languages, mBART has 25 or 52")
        self.languages = {code: pieces + 1 + i for i, code in enumerate(LANGUAGES[:count])}
        self._unknown = self._model.unk_id()

    def encode(self, text: str) -> list[int]:
        return [3 if piece == self._unknown else piece + 1 for piece in self._model.encode(text)]


class _Fast:
    """tokenizer.json of the package tokenizers; what a sentence says is never taken for a special token."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        from tokenizers import Tokenizer

        self.path, self._tokenizer = path, Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        known = self._tokenizer.get_vocab(with_added_tokens=True)
        self.languages = {
            code: known[code] for code in sorted(known, key=known.__getitem__) if _LANGUAGE.fullmatch(code)
        }
        if not self.languages or "</s>" not in known:
            raise ValueError("it has no </s> or no languages such as en_XX")
        if max(known.values()) >= vocab_size:
            raise ValueError(f"it has tokens up to {max(known.values())}, config.json only {vocab_size}")
        self.eos, self._unknown = known["</s>"], known.get("<unk>", 3)
        self._controls = {
            known[token] for token in ("<s>", "<pad>", "</s>", "<mask>", *self.languages) if token in known
        }

    def encode(self, text: str) -> list[int]:
        pieces = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._unknown if piece in self._controls else piece for piece in pieces]


def find(path: str | os.PathLike) -> Path:
    """The folder with the encoder's files, fetched from the hub if the path is a name there."""
    folder = Path(path)
    recipe = (
        f"give a folder with {CONFIG}, {SAFE} and {PIECES} of an mBART model, or its name on the hub where that can "
        "be reached (facebook/mbart-large-50); for a trial, tiny_text_encoder(folder, sentences) makes one"
    )
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise TextEncoderError(one_line(f"{path}: there is no text encoder in this folder; {recipe}"))
        return folder
    if folder.exists() or not _HUB_NAME.fullmatch(os.fspath(path)):
        raise TextEncoderError(one_line(f"{path}: there is no such folder with a text encoder; {recipe}"))
    from huggingface_hub import HfApi, snapshot_download

    try:
        wanted = [CONFIG, PIECES, _TOKENIZER, SAFE, _SAFE_INDEX, "model-*.safetensors"]
        folder = Path(snapshot_download(os.fspath(path), allow_patterns=wanted))
        if not any((folder / name).is_file() for name in (SAFE, _SAFE_INDEX, _TORCH)):
            if HfApi().file_exists(os.fspath(path), _TORCH):
                snapshot_download(os.fspath(path), allow_patterns=[_TORCH])
    except Exception as error:  # whatever stands between here and there
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
        raise TextEncoderError(one_line(f"{path}: cannot be had from the hub ({why}); {recipe}")) from error
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        told = json.loads(path.read_bytes())
    except OSError as error:
        raise TextEncoderError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError):
        raise TextEncoderError(f"{path}: is damaged, it is no JSON") from None
    return checked(path, told)


def checked(path: Path, told: Any) -> dict[str, Any]:
    """The numbers of a config that an encoder is built from; nothing else of it is used."""
    if not isinstance(told, dict) or told.get("model_type") != "mbart":
        kind = str(told.get("model_type") if isinstance(told, dict) else None)[:40]
        raise TextEncoderError(one_line(f"{path}: describes a model of type {kind}, the text encoder must be mbart"))
    config: dict[str, Any] = {}
    for name, most in _LIMITS.items():
        value = told.get(name)
        if type(value) is not int or not 1 <= value <= most:
            raise TextEncoderError(one_line(f"{path}: {name} must be in [1, {most}], got {value!r:.40}"))
        config[name] = value
    pad, scale, activation = (
        told.get("pad_token_id", 1),
        told.get("scale_embedding", False),
        told.get("activation_function", "gelu"),
    )
    if (
        type(pad) is not int
        or not 0 <= pad < config["vocab_size"]
        or config["d_model"] % config["encoder_attention_heads"]
    ):
        raise TextEncoderError(f"{path}: pad_token_id must be a token, and d_model a multiple of the attention heads")
    if type(scale) is not bool or activation not in ("gelu", "relu", "gelu_new", "silu", "tanh"):
        raise TextEncoderError(one_line(f"{path}: has the activation_function {activation!r:.40}, such is not known"))
    return config | {"pad_token_id": pad, "scale_embedding": scale, "activation_function": activation}


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    for name, kind in ((PIECES, _Pieces), (_TOKENIZER, _Fast)):
        if (folder / name).is_file():
            try:
                return kind(folder / name, vocab_size)
            except Exception as error:  # both packages raise what they like
                why = one_line(" ".join(str(error).split())[:160])
                raise TextEncoderError(f"{folder / name}: cannot be used as a vocabulary ({why})") from error
    raise TextEncoderError(f"{folder}: has no vocabulary; it must hold {PIECES} or {_TOKENIZER}")


def weight_files(folder: Path) -> list[Path]:
    if (folder / SAFE).is_file():
        return [folder / SAFE]
    index = folder / _SAFE_INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            if all(isinstance(name, str) and Path(name).name == name and (folder / name).is_file() for name in names):
                return [folder / name for name in names]
        except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError):
            pass
        raise TextEncoderError(f"{index}: is damaged or names files that are not there")
    if (folder / _TORCH).is_file():
        return [folder / _TORCH]
    raise TextEncoderError(f"{folder}: has no weights; it must hold {SAFE} or {_TORCH}")


def read_weights(folder: Path, files: Sequence[Path]) -> dict[str, Tensor]:
    """The encoder's tensors by their names in it; those of a decoder are not read."""
    found: dict[str, Tensor] = {}
    try:
        for path in files:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    found |= {new: file.get_tensor(old) for old in file.keys() if (new := _renamed(old))}  # noqa: SIM118
            else:
                tensors = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
                found |= {new: tensor for old, tensor in tensors.items() if (new := _renamed(old))}
    except (SafetensorError, OSError) as error:
        raise TextEncoderError(f"{folder}: the weights cannot be read ({one_line(str(error))[:160]})") from error
    except Exception as error:  # what torch's reader refuses
        why = one_line(" ".join(str(error).split())[:160])
        raise TextEncoderError(f"{files[0]}: is refused, it holds more than tensors or is damaged ({why})") from error
    shared = found.pop("shared", None)
    if shared is not None:
        found.setdefault(EMBEDDING, shared)
    return found


def _renamed(name: str) -> str:
    if name in SHARED:
        return "shared"
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), "")


def build(config: dict[str, Any]) -> torch.nn.Module:
    from transformers import MBartConfig
    from transformers.models.mbart.modeling_mbart import MBartEncoder

    return MBartEncoder(MBartConfig(**config, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0))
