"""``slrfast search``: an index of clips, found by a text, or of texts, found by a pose file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import slrfast
from slrfast.data import PoseBatch, load_pose, preprocess
from slrfast.data.cache import files_fingerprint
from slrfast.errors import one_line
from slrfast.tasks.finetuned import TASK
from slrfast.tasks.retrieval_index import KINDS, Match, SignTextIndex
from slrfast.tasks.retriever import Retriever, RetrieverConfig
from slrfast.tasks.row_sets import RowSets
from slrfast.train import inputs
from slrfast.train.config import (
    RunError,
    choose_device,
    keypoints_of,
    load_system,
    open_dataset,
    preprocess_options,
    read_yaml,
)
from slrfast.train.finetune import build_task, load_finetuned
from slrfast.train.finetune_retrieval import text_encoder_name, with_encoder
from slrfast.train.options import Parser
from slrfast.train.report import report_skipped, speaker
from slrfast.train.runs import RunFolder, new_file
from slrfast.train.scoring import in_batches

DESCRIPTION = """Find clips by a text, or texts by a pose file, with a network of pretrain slp or finetune retrieval.
With --data, or --captions, an index is made and written to --index; with --text or --pose it is searched."""
BATCH = 32


def search_command(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = Parser(
        "search",
        DESCRIPTION,
        [
            "search --run runs/retrieval --data poses/ --index clips.index",
            "search --index clips.index --text 'rain at night' --language en_XX",
            "search --run runs/retrieval --captions captions.csv --gallery texts --index texts.index",
            "search --index texts.index --pose clip.npz --json",
        ],
    )
    parser.add_argument("--index", type=str, required=True, help="file of the index")
    parser.add_argument("--run", type=str, help="run of pretrain slp or finetune retrieval (default: the index's)")
    parser.add_argument("--data", type=str, help="clips to make an index of")
    parser.add_argument("--split", type=str, help="rows of the index file of clips with this split")
    parser.add_argument("--captions", type=str, help="texts to make an index of: CSV or JSON, or 'glosses' of --data")
    parser.add_argument("--gallery", type=str, default="signs", help="what the index is made of: signs or texts")
    parser.add_argument("--dtype", type=str, default="float16", help="of the index: float16 or float32")
    parser.add_argument("--overwrite", action="store_true", help="replace an index that is there")
    parser.add_argument("--text", type=str, help="what is looked for among signs")
    parser.add_argument("--language", type=str, help="of --text, and of captions that do not name theirs")
    parser.add_argument("--text_encoder", type=str, help="as for pretrain slp (default: the run's)")
    parser.add_argument("--pose", type=str, help="pose file of what is looked for among texts")
    parser.add_argument(
        "--size", type=tuple[int, int] | None, help="WxH of the video in pixels, for a --pose without it"
    )
    parser.add_argument("--k", type=int, default=10, help="results")
    parser.add_argument("--candidates", type=int, help="compare so many that a coarse first stage proposes, not all")
    parser.add_argument("--coarse", type=str, default="auto", help="the first stage: faiss, topk, or auto")
    parser.add_argument("--device", type=str, default="auto", help="of the network: auto, cpu, cuda or cuda:<number>")
    parser.add_json()
    options = parser.read(argv)
    say = speaker(options.json)
    if options.text is not None and options.pose is not None:
        raise RunError("--text looks among signs and --pose among texts; give one of them")
    build = options.data is not None or options.captions is not None
    if not build and options.text is None and options.pose is None:
        raise RunError("give --data or --captions to make an index, --text or --pose to search in one")
    told: dict[str, Any] = {"index": options.index}
    if build:
        index, found = _build(options, say)
        told |= found
    else:
        index = SignTextIndex.load(options.index)
    if options.text is not None or options.pose is not None:
        matches = _search(index, options)
        told["query"] = options.pose if options.text is None else options.text
        told["results"] = [match._asdict() for match in matches]
        width = max(len(str(len(matches))), 1)
        say("\n".join(f"{i + 1:{width}}  {match.score:.4f}  {one_line(match.name)}" for i, match in enumerate(matches)))
    if options.json:
        print(json.dumps(told, ensure_ascii=False))
    return 0


def open_retriever(run: str) -> tuple[Retriever, dict[str, Any], str]:
    """The network of a run, the run's config, and a fingerprint of the weights.

    Raises:
        RunError: no run of pretrain slp or finetune retrieval. CheckpointError: its model cannot be read.
    """
    folder = RunFolder(run).existing()
    if (folder.model / TASK).is_file():
        model, weights = load_finetuned(folder.model), folder.model / "encoder" / "model.safetensors"
        if not isinstance(model, Retriever):
            raise RunError(f"{run}: was fine-tuned for {model.task}; search needs finetune retrieval or pretrain slp")
        return model, read_yaml(folder.config), files_fingerprint([weights])
    if read_yaml(folder.config).get("name") == Retriever.task:
        raise RunError(f"{run}: has no model yet; finish it with slrfast finetune retrieval --resume {run}")
    values = folder.read_config()
    if values["name"] != "slp":
        raise RunError(f"{run}: is a run of {values['name']}; search needs finetune retrieval or pretrain slp")
    system = load_system("slp", folder.model)
    retriever: Any = build_task(Retriever, RetrieverConfig.slp(temperature=system.config.temperature), system, {}, 0)
    return retriever, values, files_fingerprint([folder.model / "model.safetensors"])


def _network(options: Any, run: str | None) -> tuple[Retriever, dict[str, Any], dict[str, Any]]:
    """The network on its device, its run's config with the options that replace it, and what an index keeps of it."""
    if not isinstance(run, str) or not run:
        raise RunError("--run is needed: the run of pretrain slp or finetune retrieval that encodes signs and texts")
    model, values, fingerprint = open_retriever(run)
    if options.text_encoder:
        values["text_encoder"] = options.text_encoder
    made_by = {"run": str(Path(run).resolve()), "model": fingerprint, "slrfast": slrfast.__version__}
    return model.to(choose_device(options.device)), values, made_by


def _set_text_encoder(model: Retriever, values: dict[str, Any]) -> None:
    """Give the encoder the text encoder of the run, of whose captions a tiny one was made."""
    system: Any = model.encoder
    name, captions = text_encoder_name(values), values.get("captions")
    if not name or (name == "tiny" and not captions):
        raise RunError(f"--text_encoder is needed: {inputs.OPTIONS['slp']['text_encoder']}")
    if name != "tiny":
        system.text = inputs.open_text_encoder(name, system.config.text_dim, {})
        return
    dataset: Any = None
    if captions == "glosses":
        split = values.get("train_split") or values.get("split")
        dataset = open_dataset(values["data"], split, values.get("preprocess"), keypoints_of("slp"))
    with_encoder(dataset, {**values, "text_encoder": name}, system)


def _build(options: Any, say: Any) -> tuple[SignTextIndex, dict[str, Any]]:
    if options.gallery not in KINDS:
        raise RunError(f"--gallery must be signs or texts, got {options.gallery!r}")
    if options.dtype not in ("float16", "float32"):
        raise RunError(f"--dtype must be float16 or float32, got {options.dtype!r}")
    wanted = "data" if options.gallery == "signs" else "captions"
    if not getattr(options, wanted):
        raise RunError(f"--gallery {options.gallery} needs --{wanted}")
    path = new_file("--index", options.index, overwrite=options.overwrite)
    _skipped(options)
    model, values, made_by = _network(options, options.run)
    dtype = getattr(torch, options.dtype)
    rows, names = (_signs if options.gallery == "signs" else _texts)(model, values, options, dtype, say)
    index = SignTextIndex(
        rows, names, options.gallery, dtype=dtype, row_temperature=model.row_temperature, made_by=made_by
    )
    index.save(path)
    size = path.stat().st_size
    say(f"{path}: {len(index)} {'clips' if options.gallery == 'signs' else 'texts'}, {size / 1e6:.1f} MB")
    return index, {"gallery": options.gallery, "items": len(index), "bytes": size, "run": made_by["run"]}


def _skipped(options: Any) -> Path:
    """Where the files that are not in the index are listed."""
    return new_file("--index", f"{options.index}-skipped.txt", overwrite=options.overwrite)


def _clips(values: Mapping[str, Any], options: Any) -> Any:
    found = open_dataset(options.data, options.split, values.get("preprocess"), keypoints_of("slp"))
    got, wanted = found[0].xy.shape[1], keypoints_of("slp")
    if got != wanted:
        raise RunError(f"slp takes clips of {wanted} keypoints, these have {got}")
    return found


def _signs(model: Retriever, values: Any, options: Any, dtype: torch.dtype, say: Any) -> tuple[RowSets, list[str]]:
    clips = _clips(values, options)
    report_skipped(clips.skipped, _skipped(options), say)
    parts = []
    for batch in in_batches(model, clips, batch_size=BATCH, progress="encoding"):
        rows = model.sign_rows([batch])
        parts.append(RowSets(rows.rows.to(dtype), rows.offsets))
    return RowSets.cat(parts), clips.names


def _texts(model: Retriever, values: Any, options: Any, dtype: torch.dtype, say: Any) -> tuple[RowSets, list[str]]:
    clips = _clips(values, options) if options.captions == "glosses" and options.data else None
    if options.captions == "glosses" and clips is None:
        raise RunError("--captions glosses needs --data, whose class names they are")
    _set_text_encoder(model, values)
    wanted = {"captions": options.captions, "language": options.language or values.get("language")}
    captions = inputs.captions_of(clips, wanted)  # type: ignore[arg-type]
    distinct = dict.fromkeys(caption for caption in captions.values() if caption.text.strip())
    if not distinct:
        raise RunError(f"--captions {options.captions}: every text is empty")
    encoder: Any = model.encoder
    tokens = [_tokens(encoder.text, *caption) for caption in distinct]
    rows = model.text_rows(tokens)
    return RowSets(rows.rows.to(dtype), rows.offsets), [caption.text for caption in distinct]


def _tokens(encoder: Any, text: str, language: str) -> torch.Tensor:
    try:
        tokens: torch.Tensor = encoder.cut(text, language)[0]
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from error
    return tokens


def _search(index: SignTextIndex, options: Any) -> list[Match]:
    asked = "signs" if options.pose is None else "texts"
    if index.kind != asked:
        what = "a pose file; give --pose" if index.kind == "texts" else "a text; give --text"
        raise RunError(f"{options.index} holds {index.kind}, which are found by {what}")
    model, values, made_by = _network(options, options.run or index.made_by.get("run"))
    if index.made_by.get("model") not in (None, made_by["model"]):
        raise RunError(f"{options.index} was made with another network than that of {made_by['run']}; make it again")
    if asked == "signs":
        _set_text_encoder(model, values)
        language = (
            options.language or values.get("language") or ("en_XX" if values.get("captions") == "glosses" else None)
        )
        if not language:
            raise RunError("--language is needed: that of --text, such as de_DE")
        query = model.text_rows([_tokens(model.encoder.text, options.text, language)])
    else:
        settings = preprocess_options(values.get("preprocess"), keypoints_of("slp"))
        clip = preprocess(load_pose(options.pose, size=options.size or settings.size), settings)
        query = model.sign_rows([PoseBatch.collate([clip]).to(next(model.parameters()).device)])
    try:
        return index.search(query, options.k, candidates=options.candidates, coarse=options.coarse)[0]
    except (TypeError, ValueError, ImportError) as error:
        raise RunError(str(error)) from error
