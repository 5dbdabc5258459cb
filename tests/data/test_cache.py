import errno
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from slrfast.data import cache as module
from slrfast.data.cache import HEADER, INDEX, VALUES, Cache, CacheError

MADE_BY = {"tokenizer": "a" * 64, "text encoder": "b" * 64}


def key(i):
    return Cache.key(str(i).encode())


def value(i):
    return bytes(np.random.default_rng(i).bytes(10 + 7 * i))


def filled(folder, count=6):
    cache = Cache(folder, "squares", MADE_BY)
    cache.put({key(i): value(i) for i in range(count)})
    return cache


def holds(cache, numbers):
    return all(cache.get(key(i)) is not None and cache.get(key(i)).tobytes() == value(i) for i in numbers)


def test_what_is_put_is_there_in_every_process(tmp_path):
    first = filled(tmp_path / "deep" / "cache")
    assert holds(first, range(6)) and first.get(key(6)) is None and len(first) == 6
    second = Cache(tmp_path / "deep" / "cache", "squares", MADE_BY)
    second.put({key(7): value(7), key(2): b"something else"})
    assert holds(first, [*range(6), 7]) and len(first) == 7  # a value stays what it is
    assert holds(pickle.loads(pickle.dumps(second)), [*range(6), 7])
    second.put({})
    second.put({key(8): b""})
    assert first.get(key(8)).tobytes() == b""
    with pytest.raises(ValueError, match="read-only"):
        first.get(key(3))[0] = 1


def test_keys_keep_their_parts_apart():
    assert len({Cache.key(b"ab", b"c"), Cache.key(b"a", b"bc"), Cache.key(b"abc"), Cache.key(b"abc", b"")}) == 4


def test_an_interruption_loses_nothing_that_was_there(tmp_path):
    """Whatever prefix of the bytes of a call reached the disk, earlier values are there and the next call works."""
    cache = filled(tmp_path / "whole", 4)
    before = {name: (cache.folder / name).read_bytes() for name in (INDEX, VALUES)}
    cache.put({key(i): value(i) for i in range(4, 7)})
    after = {name: (cache.folder / name).read_bytes() for name in (INDEX, VALUES)}
    cuts = [(len(before[INDEX]), n) for n in range(len(before[VALUES]), len(after[VALUES]) + 1, 11)]
    cuts += [(n, len(after[VALUES])) for n in range(len(before[INDEX]), len(after[INDEX]) + 1, 9)]
    for i, (index, values) in enumerate(cuts):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / HEADER).write_bytes((cache.folder / HEADER).read_bytes())
        (folder / INDEX).write_bytes(after[INDEX][:index])
        (folder / VALUES).write_bytes(after[VALUES][:values])
        again = Cache(folder, "squares", MADE_BY)
        assert len(again) == index // 64 and holds(again, range(len(again)))
        again.put({key(i): value(i) for i in range(7)})
        assert holds(again, range(7)) and holds(Cache(folder, "squares", MADE_BY), range(7))
        assert (folder / INDEX).read_bytes() == after[INDEX] and (folder / VALUES).read_bytes() == after[VALUES]


def test_a_file_that_grew_before_its_bytes_came_is_cut_off(tmp_path):
    filled(tmp_path, 3)
    with open(tmp_path / INDEX, "ab") as file:
        file.write(bytes(64 + 20))
    cache = Cache(tmp_path, "squares", MADE_BY)
    assert holds(cache, range(3)) and len(cache) == 3
    cache.put({key(3): value(3)})
    assert holds(Cache(tmp_path, "squares", MADE_BY), range(4)) and (tmp_path / INDEX).stat().st_size == 4 * 64


def test_a_full_disk_leaves_the_cache_as_it_was(tmp_path, monkeypatch):
    cache = filled(tmp_path, 3)
    before = (tmp_path / INDEX).read_bytes()
    synced, real = [], os.fsync

    def full(handle):
        synced.append(handle)
        if len(synced) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    for failing in (1, 2):  # noqa: B007
        synced.clear()
        monkeypatch.setattr(module.os, "fsync", full)
        message = r"the squares cannot be kept there \(No space left on device\); earlier ones are unchanged"
        with pytest.raises(CacheError, match=message):
            cache.put({key(9): value(9)})
        assert (tmp_path / INDEX).read_bytes() == before and holds(cache, range(3))
    monkeypatch.setattr(module.os, "fsync", real)
    cache.put({key(9): value(9)})
    assert holds(Cache(tmp_path, "squares", MADE_BY), [0, 1, 2, 9])


def test_several_processes_write_at_once(tmp_path):
    code = (
        "import sys; sys.path.insert(0, {here!r})\n"
        "from test_cache import *\n"
        "for i in range(12):\n"
        "    Cache({folder!r}, 'squares', MADE_BY).put({{key(i): value(i), key(int(sys.argv[1]) * 100 + i): b'own'}})\n"
    ).format(here=os.path.dirname(__file__), folder=str(tmp_path / "cache"))
    runs = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in (1, 2, 3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    cache = Cache(tmp_path / "cache", "squares", MADE_BY)
    assert len(cache) == 12 * 4 and holds(cache, range(12))
    assert all(cache.get(key(n * 100 + i)).tobytes() == b"own" for n in (1, 2, 3) for i in range(12))


def test_a_cache_of_something_else_is_named(tmp_path):
    filled(tmp_path / "cache")
    for changed, name in (("tokenizer", "tokenizer"), ("text encoder", "text encoder")):
        message = (
            rf"these squares were made with another {name} \(fingerprint [ab]{{12}}, not cccccccccccc\); name another"
        )
        with pytest.raises(CacheError, match=message):
            Cache(tmp_path / "cache", "squares", MADE_BY | {changed: "c" * 64})
    with pytest.raises(CacheError, match="cache: holds squares, not circles; name another folder"):
        Cache(tmp_path / "cache", "circles", MADE_BY)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CacheError, match="is no cache and not empty; name another folder"):
        Cache(tmp_path, "squares", MADE_BY)
    with pytest.raises(CacheError, match="the squares cannot be kept there"):
        Cache(tmp_path / "notes.txt", "squares", MADE_BY)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "is damaged, it is no JSON"),
        (b"\xff\xfe", "is damaged, it is no JSON"),
        (b"[" * 100_000, "is damaged, it is no JSON"),
        (b"[]", "was not written by this version of slrfast"),
        (b'{"format": "slrfast cache", "version": 99}', "was not written by this version of slrfast"),
        (b'{"format": "slrfast cache", "version": 1, "kind": 3}', "holds 3, not squares"),
        (b'{"format": "slrfast cache", "version": 1, "kind": "squares"}', "another tokenizer"),
        (b'{"format": "slrfast cache", "version": 1, "kind": "squares", "made_by": []}', "another tokenizer"),
    ],
)
def test_damaged_headers(tmp_path, content, message):
    filled(tmp_path)
    (tmp_path / HEADER).write_bytes(content)
    with pytest.raises(CacheError, match=message):
        Cache(tmp_path, "squares", MADE_BY)


def test_every_damaged_byte_is_found(tmp_path):
    """A changed byte of the index or of a value never gives wrong bytes: it is an error that names the file."""
    filled(tmp_path, 3)
    for name in (INDEX, VALUES):
        content = (tmp_path / name).read_bytes()
        for place in range(0, len(content), 5):
            damaged = bytearray(content)
            damaged[place] ^= 0x55
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(CacheError, match=f"{name}: is damaged, .*; delete the folder, and it is computed anew"):
                holds(Cache(tmp_path, "squares", MADE_BY), range(3))
                raise AssertionError(f"{name} {place}")
        (tmp_path / name).write_bytes(content)
    (tmp_path / VALUES).write_bytes(content[:-1])
    with pytest.raises(CacheError, match="values.bin: is damaged, it is cut short"):
        Cache(tmp_path, "squares", MADE_BY)
    (tmp_path / VALUES).unlink()
    with pytest.raises(CacheError, match="cannot be read"):
        Cache(tmp_path, "squares", MADE_BY)


def test_the_header_says_what_is_in_it(tmp_path):
    filled(tmp_path)
    told = json.loads((tmp_path / HEADER).read_text())
    assert told == {"format": "slrfast cache", "version": 1, "kind": "squares", "made_by": MADE_BY}
