import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from slrfast.data.cache import HEADER, INDEX, VALUES, CacheError
from slrfast.data.text import TextEncoder, TextEncoderError, tiny_text_encoder

pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

SENTENCES = [
    "am mittwoch hier und da nieselregen in der nordwesthälfte .",
    "größere wolkenlücken finden sich vor allem im nordwesten .",
    "This word is apple.",
    "und nun die wettervorhersage für morgen freitag den sechsten mai .",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    tiny_text_encoder(folder, SENTENCES)
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    """The encoder's files, to be damaged."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def batch(encoder, sentences=SENTENCES, language="de"):
    tokens = [
        encoder.tokenize(sentence, language) if sentence else torch.zeros(0, dtype=torch.int64)
        for sentence in sentences
    ]
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True), torch.tensor([len(t) for t in tokens])


def test_tokens_are_the_sentences_then_eos_then_language(folder):
    encoder = TextEncoder(folder)
    tokens = encoder.tokenize(SENTENCES[0], "de_DE").tolist()
    assert tokens[-2] == 2 and len(encoder.languages) == 52
    english = encoder.tokenize(SENTENCES[0], "en_XX").tolist()
    assert english[:-1] == tokens[:-1] and english[-1] == tokens[-1] + 1  # en_XX follows de_DE
    assert 3 not in tokens and encoder.tokenize("  am\nmittwoch ", "de").equal(encoder.tokenize("am mittwoch", "de"))
    first = TextEncoder(folder, language_first=True).tokenize(SENTENCES[0], "de").tolist()
    assert first == [tokens[-1], *tokens[:-1]]


def test_tokens_equal_those_of_transformers(folder):
    from transformers import MBart50Tokenizer

    theirs, ours = MBart50Tokenizer.from_pretrained(folder), TextEncoder(folder)
    assert [ours._vocabulary.languages[code] for code in ours.languages] == theirs.convert_tokens_to_ids(
        list(ours.languages)
    )
    for sentence in SENTENCES:
        assert ours.tokenize(sentence, "de")[:-2].tolist() == theirs(sentence, add_special_tokens=False).input_ids


def test_features_equal_those_of_transformers_clip_by_clip(folder):
    from transformers import MBartConfig
    from transformers.models.mbart.modeling_mbart import MBartEncoder

    encoder = TextEncoder(folder)
    tokens, lengths = batch(encoder)
    features = encoder(tokens, lengths)
    theirs = MBartEncoder(MBartConfig.from_pretrained(folder)).eval()
    weights = load_file(folder / "model.safetensors")
    shared = weights.pop("model.shared.weight")
    theirs.load_state_dict(
        {"embed_tokens.weight": shared} | {k.removeprefix("model.encoder."): v for k, v in weights.items()}
    )
    for row, (ids, length) in enumerate(zip(tokens, lengths, strict=True)):
        with torch.no_grad():
            alone = theirs(input_ids=ids[None, :length]).last_hidden_state[0]
        torch.testing.assert_close(features[row, :length], alone, rtol=1e-4, atol=1e-5)
        assert not features[row, length:].any()
    assert features.dtype == torch.float32 and not features.requires_grad and features.shape[2] == encoder.dim == 32


def test_features_do_not_depend_on_autocast_or_gradient_mode(folder):
    encoder = TextEncoder(folder)
    given = batch(encoder)
    plain = encoder(*given)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(*given).equal(plain)


def test_it_adds_no_parameters_to_a_module(folder):
    system = torch.nn.Linear(2, 2)
    system.text = TextEncoder(folder).to("cpu")
    assert len(list(system.parameters())) == 2 and len(system.state_dict()) == 2


def test_texts_that_are_empty_long_or_of_another_language(folder):
    encoder = TextEncoder(folder, max_tokens=8)
    for empty in ("", "  \n\t"):
        with pytest.raises(ValueError, match="^TextEncoder: sentence must not be empty, got"):
            encoder.tokenize(empty, "de")
    whole = TextEncoder(folder).tokenize(SENTENCES[0], "de").tolist()
    with pytest.warns(UserWarning, match=f"{len(whole) - 8} of a text's {len(whole)} tokens were left"):
        cut = encoder.tokenize(SENTENCES[0], "de").tolist()
    assert cut == whole[:6] + whole[-2:]
    for code in ("xx", "el_GR", "", 3, "de_AT"):
        with pytest.raises(ValueError, match="^TextEncoder: language must be one of ar_AR, .*sl_SI, got"):
            encoder.tokenize("regen", code)
    with pytest.raises(TypeError, match="sentence must be a text, got int"):
        encoder.tokenize(3, "de")
    assert len(encoder.tokenize("a\ud800b", "de")) > 2  # broken UTF-8 is a text with an unknown piece
    assert TextEncoder(folder).tokenize("</s> de_DE", "de").tolist().count(2) == 1


def test_batches_without_texts_need_no_weights(folder):
    encoder = TextEncoder(folder)
    assert encoder(torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)).shape == (3, 0, 32)
    assert not encoder(torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)).any()
    assert "_encoder" not in encoder.__dict__
    mixed = batch(encoder, [SENTENCES[0], "", SENTENCES[2]])
    features = encoder(*mixed)
    assert features[0].any() and not features[1].any()


def test_wrong_batches(folder):
    encoder = TextEncoder(folder)
    one = torch.ones(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="token_lengths must have shape"):
        encoder(one, torch.tensor([4]))
    with pytest.raises(TypeError, match="tokens must be torch.int64, got torch.int32"):
        encoder(one.int(), torch.tensor([4, 4]))
    with pytest.raises(ValueError, match=r"lengths must be in \[0, 4\], got 5 for clip 1"):
        encoder(one, torch.tensor([4, 5]))
    with pytest.raises(ValueError, match=r"tokens must be in \[0, \d+\], got \(1, 100000\)"):
        encoder(one * torch.tensor([[1], [100000]]), torch.tensor([4, 4]))


def test_the_same_sentences_and_seed_give_the_same_encoder(folder, tmp_path):
    again, other = tiny_text_encoder(tmp_path / "a", SENTENCES), tiny_text_encoder(tmp_path / "b", SENTENCES, seed=1)
    assert again.fingerprint == TextEncoder(folder).fingerprint
    assert other.fingerprint != again.fingerprint
    assert other.fingerprints["tokenizer"] == again.fingerprints["tokenizer"]
    assert TextEncoder(folder, max_tokens=64).fingerprint != again.fingerprint
    before = torch.get_rng_state()
    tiny_text_encoder(tmp_path / "c", ["a"], dim=8, layers=1)
    assert torch.get_rng_state().equal(before)
    with pytest.raises(
        ValueError, match="tiny_text_encoder: sentences must hold at least one that is not empty, got 0"
    ):
        tiny_text_encoder(tmp_path / "d", ["", "  "])


# --- the cache ---------------------------------------------------------------------------------------------------


def test_features_are_computed_once(folder, tmp_path):
    plain = TextEncoder(folder)
    encoder = TextEncoder(folder, tmp_path / "cache")
    given = batch(encoder, [SENTENCES[0], "", SENTENCES[1], SENTENCES[0]])
    first = encoder(*given)
    assert len(encoder._cache) == 2
    assert first.equal(plain(*given).bfloat16().float())
    again = TextEncoder(folder, tmp_path / "cache")
    assert again(*given).equal(first) and "_encoder" not in again.__dict__  # the weights were not read
    sent = pickle.loads(pickle.dumps(again))
    assert sent(*given).equal(first)


def test_filling_goes_on_where_it_stopped(folder, tmp_path, monkeypatch):
    encoder = TextEncoder(folder, tmp_path / "cache")
    tokens = [encoder.tokenize(sentence, "de") for sentence in SENTENCES]
    compute, calls = encoder._compute, []

    def stopped(sentences):
        calls.append(len(sentences))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(sentences)

    monkeypatch.setattr(encoder, "_compute", stopped)
    with pytest.raises(KeyboardInterrupt):
        encoder.fill(tokens, batch_size=1)
    again = TextEncoder(folder, tmp_path / "cache")
    assert len(again._cache) == 1
    assert again.fill([*tokens, *tokens, torch.zeros(0, dtype=torch.int64)]) == 3 and again.fill(tokens) == 0
    with pytest.raises(ValueError, match="fill: cache must be given to the encoder"):
        TextEncoder(folder).fill(tokens)


def test_a_cache_of_another_encoder_or_tokenizer_is_named(folder, copied, tmp_path):
    encoder = TextEncoder(folder, tmp_path / "cache")
    encoder(*batch(encoder))
    weights = load_file(copied / "model.safetensors")
    weights["model.encoder.layer_norm.bias"] += 1
    save_file(weights, copied / "model.safetensors")
    with pytest.raises(
        CacheError, match=r"cache: these text features were made with another text encoder \(fingerprint"
    ):
        TextEncoder(copied, tmp_path / "cache")
    (copied / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    TextEncoder(copied, tmp_path / "cache")
    tiny_text_encoder(copied, [*SENTENCES[:3], "und nun die wettervorhersage für morgen freitag den sechsten juni ."])
    with pytest.raises(CacheError, match="made with another tokenizer"):
        TextEncoder(copied, tmp_path / "cache")


def test_a_damaged_cache_is_named(folder, tmp_path):
    encoder = TextEncoder(folder, tmp_path / "cache")
    given = batch(encoder)
    encoder(*given)
    values = tmp_path / "cache" / VALUES
    content = bytearray(values.read_bytes())
    content[-3] ^= 1
    values.write_bytes(content)
    with pytest.raises(CacheError, match=r"values.bin: is damaged, .* wrong checksum; delete the folder"):
        TextEncoder(folder, tmp_path / "cache")(*given)


# --- files from strangers ------------------------------------------------------------------------------------------


def test_no_encoder_at_the_path(tmp_path, monkeypatch):
    recipe = r"give a folder with config.json, .*; for a trial, tiny_text_encoder\(folder, sentences\) makes one$"
    with pytest.raises(TextEncoderError, match="there is no text encoder in this folder; " + recipe):
        TextEncoder(tmp_path)
    with pytest.raises(TextEncoderError, match="there is no such folder with a text encoder; " + recipe):
        TextEncoder(tmp_path / "missing")
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        TextEncoderError, match=r"^some/model: cannot be had from the hub \(OSError: no route\); " + recipe
    ):
        TextEncoder("some/model")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "bert"}, "describes a model of type bert, the text encoder must be mbart"),
        ({"d_model": 1 << 40}, r"d_model must be in \[1, 8192\], got 1099511627776"),
        ({"encoder_layers": "12"}, "encoder_layers must be in"),
        ({"encoder_layers": True}, "encoder_layers must be in"),
        ({"pad_token_id": -5}, "pad_token_id must be a token"),
        ({"encoder_attention_heads": 5}, "a multiple of the attention heads"),
        ({"activation_function": "os.system"}, "has the activation_function 'os.system', such is not known"),
        ({"vocab_size": 90}, "cannot be used as a vocabulary"),
    ],
)
def test_configs_that_are_refused(copied, change, message):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(TextEncoderError, match=message):
        TextEncoder(copied)


def test_code_that_a_config_names_is_not_run(copied, tmp_path):
    config = json.loads((copied / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    (copied / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    (copied / "config.json").write_text(json.dumps(config))
    encoder = TextEncoder(copied)
    encoder(*batch(encoder))
    assert not (tmp_path / "run").exists()


def test_pickled_weights_are_read_only_if_they_are_tensors(copied, folder, tmp_path):
    wanted = TextEncoder(folder)
    given = batch(wanted)
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    assert TextEncoder(copied)(*given).equal(wanted(*given))

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    torch.save({"model.encoder.layer_norm.bias": Evil()}, copied / "pytorch_model.bin")
    with pytest.raises(TextEncoderError, match="pytorch_model.bin: is refused, it holds more than tensors"):
        TextEncoder(copied)(*given)
    assert not (tmp_path / "run").exists()


def test_weights_in_several_files(copied, folder):
    tensors = load_file(copied / "model.safetensors")
    tensors["model.decoder.layer_norm.bias"] = torch.zeros(3)  # of a decoder, which nobody reads
    (copied / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, these in parts.items():
        save_file({name: tensors[name] for name in these}, copied / file)
    index = {"weight_map": {name: file for file, these in parts.items() for name in these}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    given = batch(TextEncoder(folder))
    assert TextEncoder(copied)(*given).equal(TextEncoder(folder)(*given))
    index["weight_map"][names[0]] = "../elsewhere.safetensors"
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TextEncoderError, match="is damaged or names files that are not there"):
        TextEncoder(copied)


def test_weights_that_do_not_fit(copied):
    tensors = load_file(copied / "model.safetensors")
    del tensors["model.encoder.layer_norm.bias"]
    save_file(tensors, copied / "model.safetensors")
    encoder = TextEncoder(copied)
    with pytest.raises(TextEncoderError, match="the weights do not fit config.json .*layer_norm.bias"):
        encoder(*batch(encoder))
    (copied / "model.safetensors").write_bytes(b"\xff" * 100)
    encoder = TextEncoder(copied)
    with pytest.raises(TextEncoderError, match="the weights cannot be read"):
        encoder(*batch(encoder))
    (copied / "model.safetensors").unlink()
    with pytest.raises(TextEncoderError, match="has no weights; it must hold model.safetensors or pytorch_model.bin"):
        TextEncoder(copied)


def test_vocabularies_that_are_damaged_or_missing(copied):
    (copied / "sentencepiece.bpe.model").write_bytes(b"no pieces")
    with pytest.raises(TextEncoderError, match="sentencepiece.bpe.model: cannot be used as a vocabulary"):
        TextEncoder(copied)
    (copied / "sentencepiece.bpe.model").unlink()
    with pytest.raises(
        TextEncoderError, match="has no vocabulary; it must hold sentencepiece.bpe.model or tokenizer.json"
    ):
        TextEncoder(copied)
    (copied / "tokenizer.json").write_text("{}")
    with pytest.raises(TextEncoderError, match="tokenizer.json: cannot be used as a vocabulary"):
        TextEncoder(copied)


def test_a_tokenizer_file_of_the_package_tokenizers(copied, folder):
    from transformers import MBart50Tokenizer

    MBart50Tokenizer.from_pretrained(folder).backend_tokenizer.save(str(copied / "tokenizer.json"))
    (copied / "sentencepiece.bpe.model").unlink()
    fast, plain = TextEncoder(copied), TextEncoder(folder)
    assert set(fast.languages) == set(plain.languages)
    for sentence in SENTENCES:
        assert fast.tokenize(sentence, "de").equal(plain.tokenize(sentence, "de"))
    assert fast.tokenize("am </s> mittwoch de_DE", "de").tolist().count(2) == 1  # a text's own </s> is just text


def test_without_transformers_the_error_names_the_extra(folder, tmp_path):
    code = (
        "import sys\nfrom importlib.abc import MetaPathFinder\n"
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'transformers' else find(name, *a)\n"
        "from slrfast.data.text import TextEncoder\n"
        f"assert 'transformers' not in sys.modules\nTextEncoder({str(folder)!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "TextEncoderError: a text encoder needs the package transformers: pip install 'slrfast[text]'" in run.stderr


def test_headers_and_records_are_where_the_page_says(folder, tmp_path):
    encoder = TextEncoder(folder, tmp_path / "cache")
    tokens, lengths = batch(encoder)
    encoder(tokens, lengths)
    told = json.loads((tmp_path / "cache" / HEADER).read_text())
    assert told["kind"] == "text features" and set(told["made_by"]) == {"tokenizer", "text encoder"}
    assert (tmp_path / "cache" / INDEX).stat().st_size == 64 * len(SENTENCES)
    assert (tmp_path / "cache" / VALUES).stat().st_size == 2 * encoder.dim * int(lengths.sum())


def test_a_name_on_the_hub(copied, folder, monkeypatch):
    """Only the encoder's files are fetched, and the pickled weights only where there are no others."""
    import huggingface_hub

    fetched = []

    def fetch(name, allow_patterns):
        fetched.extend(allow_patterns)
        return str(copied)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(huggingface_hub.HfApi, "file_exists", lambda self, name, file: True)
    given = batch(TextEncoder(folder))
    assert TextEncoder("some/model")(*given).equal(TextEncoder(folder)(*given))
    assert "pytorch_model.bin" not in fetched and not any(pattern.endswith((".py", "*")) for pattern in fetched)
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    assert TextEncoder("some/model")(*given).equal(TextEncoder(folder)(*given))
    (copied / "pytorch_model.bin").unlink()
    with pytest.raises(TextEncoderError, match="has no weights"):
        TextEncoder("some/model")
    assert fetched[-1] == "pytorch_model.bin"
