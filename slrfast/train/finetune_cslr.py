"""``slrfast finetune cslr``: continuous sign recognition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from slrfast.data.continuous_lists import Sentence, read_sentences
from slrfast.data.glosses import GlossedDataset, GlossVocabulary
from slrfast.data.wrapped import some
from slrfast.tasks.continuous import FRAMES_A_STEP, ContinuousRecognizer, steps_needed
from slrfast.tasks.finetuned import check_frames
from slrfast.tasks.word_errors import WordErrors, word_errors
from slrfast.train.config import RunError
from slrfast.train.finetune import SYNTHETIC, Data, Say, Task, hold_out, open_clips
from slrfast.train.options import Parser
from slrfast.train.report import write_sentences
from slrfast.train.runs import RunFolder
from slrfast.train.scoring import aligned, in_batches

_FOLDS = 4


def _add_options(parser: Parser) -> list[str]:
    parser.add_argument(
        "--sentences", type=str, help="folder or file with the lists of Phoenix14, Phoenix14-T or CSL-Daily"
    )
    parser.add_argument("--train_list", type=str, default="train", help="split of the list that is trained on")
    parser.add_argument("--test_list", type=str, default="test", help="split of the list that is tested on")
    return ["sentences", "train_list", "test_list"]


def open_data(values: Mapping[str, Any], system: Any, say: Say) -> Data:
    """Clips with their glosses to train and test on, and the vocabulary of the training list."""
    try:
        check_frames("finetune cslr", system)
        word_errors([["a"]], [["a"]])  # rather now than after the training
    except (ImportError, ValueError) as error:
        raise RunError(str(error)) from error
    asked: Mapping[str, Sentence]
    if values["data"] == SYNTHETIC:
        if values["test_data"] or values["sentences"]:
            raise RunError("made-up sentences bring their own glosses and test; leave out --test_data and --sentences")
        made_up: Any
        made_up, _, skipped = open_clips(values, system, sentences=True)
        clips, test_clips, note = hold_out(made_up, _FOLDS)
        asked, wanted = ({name: made_up.sentences[name] for name in part.names} for part in (clips, test_clips))
        notes = [note]
    else:
        if not values["sentences"]:
            raise RunError("--sentences is needed: the folder or file of the lists that say what is signed")
        lists = [read_sentences(values["sentences"], values[key]) for key in ("train_list", "test_list")]
        asked, wanted = (found.sentences for found in lists)
        notes = [note for found in lists for note in found.notes]
        if both := sorted(asked.keys() & wanted.keys()):
            hint = "give a folder with a list for each"
            raise RunError(f"{len(both)} sentences are in the lists of training and of the test: {some(both)}; {hint}")
        clips, found, skipped = open_clips(values, system)
        test_clips = clips if found is None else found
    try:
        vocabulary = GlossVocabulary.of(asked.values())
    except ValueError as error:
        raise RunError(f"the training list has no glosses ({error})") from error
    train, test = GlossedDataset(clips, asked, vocabulary), GlossedDataset(test_clips, wanted, vocabulary)
    for data, what in ((train, "training"), (test, "test")):
        if not any(data.references):
            raise RunError(f"no {what} clip has a gloss")
        notes += [f"{what}: {note}" for note in data.notes]
    if unlabelled := sum(not len(tokens) for tokens in train.tokens):
        train = train.subset(i for i, tokens in enumerate(train.tokens) if len(tokens))
        notes.append(f"training: {unlabelled} clips without glosses are left out")
    if short := too_short(train, getattr(system.config, "max_frames", None)):
        hint = "--preprocess.max_frames keeps more frames of long clips"
        notes.append(
            f"training: {len(short)} clips are too short for their glosses and teach nothing: {some(short)}; {hint}"
        )
    notes.append(f"{len(vocabulary)} glosses in the vocabulary")
    return Data(train, test, {"glosses": vocabulary.glosses}, notes, skipped=skipped)


def too_short(data: GlossedDataset, most: int | None) -> list[str]:
    """Names of clips that have fewer steps than CTC needs for their glosses; encoders thin longer clips to ``most``."""
    found = []
    for name, length, tokens in zip(data.names, data.lengths, data.tokens, strict=True):
        seen = min(length, most or length)
        count = tokens.new_tensor([len(tokens)])
        found += [name] if -(-seen // FRAMES_A_STEP) < int(steps_needed(tokens[None], count)) else []
    return found


def recognised(model: ContinuousRecognizer, data: GlossedDataset, beams: Sequence[int]) -> list[list[list[str]]]:
    """The glosses of all clips in order, for every beam; 0 is greedy."""
    found = [model.decode_each(batch, beams) for batch in in_batches(model, data)]
    return [[glosses for batch in found for glosses in batch[i]] for i in range(len(beams))]


def _test(model: ContinuousRecognizer, data: Data, folder: RunFolder | None) -> tuple[dict[str, Any], str]:
    test: Any = data.test
    beam = model.config.beam
    found = dict(zip(("beam", "greedy"), recognised(model, test, (beam, 0)), strict=True))
    errors = {name: word_errors(test.references, glosses) for name, glosses in found.items()}
    values = {name: {"wer": each.rate, **asdict(each)} for name, each in errors.items()}
    names = {"beam": f"prefix beam search, {beam}", "greedy": "greedy"}
    cells = [["", "WER", "sub", "del", "ins"], *([names[name], *_per_cent(each)] for name, each in errors.items())]
    text = aligned(cells, text_columns=1)
    if empty := errors["beam"].empty:
        text += f"\n{empty} of {len(test)} references have no glosses; what is recognised there is inserted"
    if folder is not None:
        text += f"\n{write_sentences(folder, test.names, test.references, found['beam'])}"
    return {"metrics": values, "glosses": len(model.vocabulary)}, text


def _per_cent(errors: WordErrors) -> list[str]:
    rates = (errors.rate, errors.substitutions / errors.words, errors.deletion_rate, errors.insertion_rate)
    return [f"{100 * rate:.1f}" for rate in rates]


TASK = Task(
    ContinuousRecognizer,
    "Recognise the glosses of signed sentences. Fine-tunes the encoder of a run of masa or slp with a temporal\n"
    "convolution, a BiLSTM and CTC; tests by a prefix beam search and greedily, by the word error rate.",
    [
        "cslr --encoder runs/slp --data poses/ --sentences phoenix2014/annotations/manual --run runs/sentences",
        "cslr --encoder runs/slp --data store/ --sentences sentence_label --test_list dev",
        "cslr --encoder slp:small --data synthetic --preset small --task.epochs 30 --task.milestones [26]",
    ],
    ("slp", "small"),
    _add_options,
    open_data,
    _test,
)
