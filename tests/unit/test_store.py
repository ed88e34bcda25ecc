"""The signal store: what is written comes back, a torn end is repaired, every other damage is refused by name."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.data.batching import TokenBatch, in_order
from stillhouse.errors import SignalStoreError
from stillhouse.signals import Dense, TopK
from stillhouse.signals.store import SignalStore, StoreHeader, open_writer
from stillhouse.teachers.stored import recorded_signal

VOCABULARY = 300
HEADER = StoreHeader(teacher={"name": "tiny"}, tokenizer="abc", vocabulary=VOCABULARY, k=8)


def signal_of(batch: TokenBatch, row: int) -> TopK:
    """Any signal that depends on the example alone."""
    rows = int(batch.trained_BT[row].sum())
    draws = torch.Generator().manual_seed(sum(batch.ids[row].encode()))
    return TopK.of(Dense(3 * torch.randn(rows, VOCABULARY, generator=draws)), HEADER.k)


@pytest.fixture
def batches(render: Any, examples: Any) -> list[TokenBatch]:
    return list(in_order(render(examples), tokens_per_batch=300))


@pytest.fixture
def write(tmp_path: Path, batches: list[TokenBatch]) -> Callable[..., Path]:
    def run(name: str = "store", *, stop_after: int | None = None, header: StoreHeader = HEADER) -> Path:
        written = 0
        with open_writer(tmp_path / name, header, shard_bytes=2000) as writer:
            for batch in batches:
                for row, example in enumerate(batch.ids):
                    if example in writer:
                        continue
                    if written == stop_after:
                        return tmp_path / name
                    writer.add(example, batch.digest(row), signal_of(batch, row))
                    written += 1
            writer.finish({"kl": 0.25})
        return tmp_path / name

    return run


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def test_what_was_written_comes_back(write: Callable[..., Path], batches: list[TokenBatch]) -> None:
    store = SignalStore(write())
    assert len(list(store.folder.glob("shard-*"))) > 2
    assert len(store) == sum(len(batch.ids) for batch in batches)
    assert store.fidelity == {"kl": 0.25}
    for batch in batches:
        found = recorded_signal(store, batch)
        for row in range(len(batch.ids)):
            expected = signal_of(batch, row)
            rows = batch.trained_BT[row].nonzero().squeeze(1) + row * batch.trained_BT.shape[1]
            assert torch.equal(found.select(rows).ids_NK, expected.ids_NK)
            assert torch.equal(found.select(rows).logprobs_NK, expected.logprobs_NK)
            assert torch.equal(found.select(rows).tail_N, expected.tail_N)


def test_the_signal_of_a_position_that_is_not_trained_is_no_number(
    write: Callable[..., Path], batches: list[TokenBatch]
) -> None:
    found = recorded_signal(SignalStore(write()), batches[0])
    silent = ~batches[0].trained_BT.flatten()
    assert silent.any()
    assert found.logprobs_NK[silent].isnan().all()
    assert found.tail_N[silent].isnan().all()


def test_bytes_per_token_are_those_on_disk(write: Callable[..., Path], batches: list[TokenBatch]) -> None:
    folder = write()
    rows = sum(batch.trained_count() for batch in batches)
    payload = sum(p.stat().st_size for p in folder.glob("shard-*"))
    assert HEADER.bytes_per_token() == 8 * (2 + 4) + 4
    assert rows * HEADER.bytes_per_token() < payload < rows * HEADER.bytes_per_token() * 1.5  # short examples


@pytest.mark.parametrize("stop_after", [0, 1, 5])
@pytest.mark.parametrize("torn", [0, 1, 7, 60])
def test_a_killed_writer_is_continued_to_the_same_bytes(write: Callable[..., Path], stop_after: int, torn: int) -> None:
    whole = content(write("whole"))
    folder = write("killed", stop_after=stop_after)
    last = max(folder.glob("shard-*"), default=None)
    if last is not None:
        os.truncate(last, max(0, last.stat().st_size - torn))
    with pytest.raises(SignalStoreError, match="is not finished"):
        SignalStore(folder)
    assert content(write("killed")) == whole


def test_a_finished_store_is_continued_by_nothing(write: Callable[..., Path]) -> None:
    before = content(write())
    assert content(write()) == before


def test_two_writers_at_once(write: Callable[..., Path]) -> None:
    folder = write()
    refused = pytest.raises(SignalStoreError, match="being written by another process")
    with open_writer(folder, HEADER), refused, open_writer(folder, HEADER):
        pass


def test_a_store_that_is_being_written_cannot_be_read(write: Callable[..., Path]) -> None:
    folder = write()
    with open_writer(folder, HEADER), pytest.raises(SignalStoreError, match="is not finished"):
        SignalStore(folder)


def test_another_header_says_what_differs(write: Callable[..., Path]) -> None:
    write()
    with pytest.raises(SignalStoreError, match=r"k is 8 there, 9 here; temperature is 1.0 there, 2.0 here"):
        write(header=dataclasses.replace(HEADER, k=9, temperature=2.0))


def test_text_that_changed_under_its_id(write: Callable[..., Path], batches: list[TokenBatch]) -> None:
    store, batch = SignalStore(write()), batches[0]
    tokens = batch.tokens_BT.clone()
    tokens[0, 0] += 1
    with pytest.raises(SignalStoreError, match="is not the text that"):
        recorded_signal(store, dataclasses.replace(batch, tokens_BT=tokens))
    trained = torch.zeros_like(batch.trained_BT)
    with pytest.raises(SignalStoreError, match="which of them are trained"):
        recorded_signal(store, dataclasses.replace(batch, trained_BT=trained))
    with pytest.raises(SignalStoreError, match="no signal for example 'new'"):
        recorded_signal(store, dataclasses.replace(batch, ids=("new", *batch.ids[1:])))


def test_a_teacher_that_says_nan(tmp_path: Path, batches: list[TokenBatch]) -> None:
    signal = signal_of(batches[0], 0)
    signal.logprobs_NK[2, 1] = torch.nan
    with open_writer(tmp_path / "store", HEADER) as writer:
        with pytest.raises(SignalStoreError, match="NaN about example 'e7' at its trained token 2"):
            writer.add("e7", b"12345678", signal)
        assert "e7" not in writer


@pytest.mark.parametrize("k", [0, 301])
def test_impossible_k(k: int) -> None:
    with pytest.raises(SignalStoreError, match=f"k is {k}; it must lie between 1 and the vocabulary, which has 300"):
        dataclasses.replace(HEADER, k=k)


def test_a_full_disk_keeps_what_was_written(tmp_path: Path, batches: list[TokenBatch]) -> None:
    """/dev/full takes a write and says that there is no space left, as a disk does."""
    signal = signal_of(batches[0], 0)
    with open_writer(tmp_path / "store", HEADER) as writer:
        writer.add("a", b"12345678", signal)
        writer.close()
        shard = tmp_path / "store" / "shard-00000"
        kept = shard.rename(tmp_path / "kept")
        shard.symlink_to("/dev/full")
        with pytest.raises(SignalStoreError, match=r"The disk is full .* Every signal written before stands"):
            writer.add("b", b"12345678", signal)
        shard.unlink()
        kept.rename(shard)
    with open_writer(tmp_path / "store", HEADER) as writer:
        assert "a" in writer
        assert "b" not in writer
        writer.add("b", b"12345678", signal)
        writer.finish({})
    SignalStore(tmp_path / "store").verify()


def _flip(folder: Path, draw: random.Random) -> None:
    path = draw.choice([p for p in sorted(folder.iterdir()) if p.name != ".lock"])
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def _truncate(folder: Path, draw: random.Random) -> None:
    path = draw.choice([p for p in sorted(folder.iterdir()) if p.name != ".lock"])
    os.truncate(path, draw.randrange(path.stat().st_size - 1))  # the newline that ends a file is no content


def _swap(folder: Path, draw: random.Random) -> None:
    one, two = draw.sample(sorted(folder.glob("shard-*")), 2)
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)


def _lose(folder: Path, draw: random.Random) -> None:
    draw.choice([p for p in sorted(folder.iterdir()) if p.name != ".lock"]).unlink()


def _overwrite(folder: Path, draw: random.Random) -> None:
    path = draw.choice(sorted(folder.glob("shard-*")))
    data = bytearray(path.read_bytes())
    start = draw.randrange(len(data))
    noise = draw.randbytes(draw.randrange(1, 40))
    data[start : start + len(noise)] = noise[: len(data) - start]
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_flip, _truncate, _swap, _lose, _overwrite], ids=lambda f: f.__name__.strip("_"))
def test_no_damage_is_trained_on(write: Callable[..., Path], tmp_path: Path, damage: Callable[..., None]) -> None:
    """Every corruption is refused in words; what is read in spite of it is what was written."""
    whole = write()
    before = SignalStore(whole)
    draw = random.Random(damage.__name__)
    for case in range(200):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        damage(folder, draw)
        if content(folder) == content(whole):
            continue  # noise that happened to be what was there
        with pytest.raises(SignalStoreError) as caught:
            _read_all(folder, before)
        assert str(folder) in str(caught.value), case


def _read_all(folder: Path, before: SignalStore) -> None:
    store = SignalStore(folder)
    assert len(store) == len(before)
    store.verify()


def test_signals_of_another_teacher_in_a_shard(write: Callable[..., Path]) -> None:
    one, two = write("one"), write("two", header=dataclasses.replace(HEADER, tokenizer="other"))
    shutil.copy(two / "shard-00001", one / "shard-00001")
    with pytest.raises(SignalStoreError, match="shard-00001 belongs to another store"):
        SignalStore(one)


def test_damage_in_the_middle_is_not_repaired_as_if_it_were_torn(write: Callable[..., Path]) -> None:
    folder = write(stop_after=6)
    shard = min(folder.glob("shard-*"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(SignalStoreError, match="is damaged at byte"):
        write()


def test_a_finished_store_that_turns_out_damaged_keeps_its_account(write: Callable[..., Path]) -> None:
    folder = write()
    shard = min(folder.glob("shard-*"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(SignalStoreError, match="is damaged"):
        write()
    assert (folder / "complete.json").exists()


def test_no_store_here(tmp_path: Path) -> None:
    with pytest.raises(SignalStoreError, match="is no signal store"):
        SignalStore(tmp_path)


def test_a_checksum_is_verified_at_the_first_reading_and_whenever_asked(
    write: Callable[..., Path], batches: list[TokenBatch]
) -> None:
    (read, one), (unread, other) = ((batch.ids[0], signal_of(batch, 0)) for batch in (batches[0], batches[-1]))
    store = SignalStore(write())
    before = store.read(read).tail_N.copy()
    for shard in store.folder.glob("shard-*"):
        data = shard.read_bytes()
        for signal in (one, other):
            if (place := data.find(signal.tail_N.numpy().tobytes())) >= 0:
                with shard.open("r+b") as stream:
                    stream.seek(place)
                    stream.write(bytes([data[place] ^ 1]))
    assert (store.read(read).tail_N != before).any()  # the file is mapped, not copied
    with pytest.raises(SignalStoreError, match="is damaged at byte"):
        store.read(unread)
    with pytest.raises(SignalStoreError, match="is damaged at byte"):
        store.verify()


def _exchange(folder: Path, draw: random.Random) -> None:
    """A file of a store that was scored with another tokenizer, in place of its own."""
    other = folder.with_name("other-tokenizer")
    path = draw.choice(
        sorted(p for p in folder.iterdir() if p.name in ("header.json", "complete.json") or "shard" in p.name)
    )
    path.write_bytes((other / path.name).read_bytes())


def test_a_file_of_another_tokenizers_store_is_never_trained_on(write: Callable[..., Path], tmp_path: Path) -> None:
    whole, other = write(), write("other-tokenizer", header=dataclasses.replace(HEADER, tokenizer="xyz"))
    before, draw = SignalStore(whole), random.Random(0)
    refused = 0
    for _ in range(100):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        for _ in range(draw.randrange(1, 3)):
            _exchange(folder, draw)
        if content(folder) == content(whole):
            continue
        with pytest.raises(SignalStoreError):
            _read_all(folder, before)
        refused += 1
    assert refused > 50
    assert content(other) != content(whole)


@pytest.mark.parametrize("damage", [_flip, _truncate, _swap, _lose, _overwrite], ids=lambda f: f.__name__.strip("_"))
def test_an_unfinished_store_is_repaired_or_refused(
    write: Callable[..., Path], tmp_path: Path, damage: Callable[..., None]
) -> None:
    """What a writer finds of the one before it ends as the store that was never damaged, or is refused by name."""
    whole, half = content(write("whole")), write("half", stop_after=8)
    draw, repaired = random.Random(damage.__name__), 0
    for _ in range(40):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(half, folder)
        damage(folder, draw)
        refusal = ""
        try:
            write("damaged")
        except SignalStoreError as error:
            refusal = str(error)
        if refusal:
            assert str(folder) in refusal
        else:
            assert content(folder) == whole
            repaired += 1
    assert repaired or damage is not _truncate
