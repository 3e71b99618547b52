from __future__ import annotations

import builtins
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crosspipe_ray.errors import InputError
from crosspipe_ray.training.data import Split, TokenDataset, _permutation, read_info
from crosspipe_ray.training.prepare import prepare
from crosspipe_ray.training.tokens import ByteTokenizer, FileTokenizer, load_tokenizer


def text_of(index: int) -> str:
    return f"document {index}: " + "x" * (37 * index % 91) + "\n"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    for index in range(40):
        path = folder / f"part{index % 3}" / f"{index:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text_of(index))
    return folder


def prepared(corpus: Path, name: str = "data", **options: Any) -> Path:
    output = corpus.parent / name
    prepare([corpus], output, tokenizer=ByteTokenizer(), **options)
    return output


def read_all(path: Path, split: Split) -> bytes:
    dataset = TokenDataset(path, split=split, sequence_length=1)
    num_tokens = len(dataset) + 1
    return b"".join(
        b"|" if t == 256 else bytes([t]) for t in dataset.tokens(0, num_tokens).tolist()
    )


def test_splits_hold_every_document_once_and_whole(corpus: Path) -> None:
    output = prepared(corpus, validation_fraction=0.25)

    train, validation = read_all(output, "train"), read_all(output, "validation")
    documents = [*train.split(b"|"), *validation.split(b"|")]
    assert sorted(filter(None, documents)) == sorted(text_of(i).encode() for i in range(40))
    info = read_info(output)
    assert (info.train.num_documents, info.validation.num_documents) == (30, 10)
    assert info.train.num_tokens == len(train)


def test_the_split_depends_on_contents_not_on_places(corpus: Path) -> None:
    first = prepared(corpus, "first", validation_fraction=0.25)
    (corpus / "part0").rename(corpus / "elsewhere")
    second = prepared(corpus, "second", validation_fraction=0.25)

    def held_out(path: Path) -> set[bytes]:
        return set(read_all(path, "validation").split(b"|"))

    assert held_out(first) == held_out(second)


def test_preparing_twice_gives_the_same_bytes(corpus: Path) -> None:
    one, two = prepared(corpus, "one"), prepared(corpus, "two")

    assert [(p.name, p.read_bytes()) for p in sorted(one.iterdir())] == [
        (p.name, p.read_bytes()) for p in sorted(two.iterdir())
    ]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.9])
def test_the_end_of_a_single_document_is_held_out(tmp_path: Path, fraction: float) -> None:
    (tmp_path / "book.md").write_text("a" * 99)

    info = prepare(
        [tmp_path / "book.md"],
        tmp_path / "data",
        tokenizer=ByteTokenizer(),
        validation_fraction=fraction,
    )

    assert info.validation.num_tokens == round(100 * fraction)
    assert info.train.num_tokens == 100 - info.validation.num_tokens


def test_files_that_are_no_text_are_skipped_and_counted(corpus: Path) -> None:
    (corpus / "empty.txt").write_text(" \n")
    (corpus / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (corpus / "picture.png").write_bytes(b"\x89PNG")
    for skipped in ("__pycache__", ".git"):
        (corpus / skipped).mkdir()
        (corpus / skipped / "some.txt").write_text("not this")

    info = read_info(prepared(corpus))

    assert info.num_skipped_files == 2
    assert info.train.num_documents + info.validation.num_documents == 40


def test_metadata_says_the_entropy_of_the_training_split(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ab" * 50)

    info = prepare([tmp_path], tmp_path / "data", tokenizer=ByteTokenizer(), validation_fraction=0)

    expected = -2 * (50 / 101) * math.log(50 / 101) - math.log(1 / 101) / 101
    assert info.unigram_entropy_nats == pytest.approx(expected)
    assert (info.version, info.tokenizer, info.vocab_size) == (1, "bytes", 257)


def test_shards_are_mapped_not_read(corpus: Path) -> None:
    dataset = TokenDataset(prepared(corpus), sequence_length=16)

    tokens = dataset.tokens(5, 50)

    assert tokens.dtype == np.uint16
    assert not tokens.flags.owndata
    assert not tokens.flags.writeable


def test_samples_across_shards_are_those_of_one_shard(corpus: Path) -> None:
    whole = TokenDataset(prepared(corpus, "whole"), sequence_length=16)
    output = prepared(corpus, "cut", tokens_per_shard=100)
    cut = TokenDataset(output, sequence_length=16)

    assert len(list(output.glob("train-*.arrow"))) > 5
    assert cut.digest == whole.digest
    for start in range(0, whole.info.train.num_tokens - 250, 7):
        assert np.array_equal(cut.tokens(start, start + 250), whole.tokens(start, start + 250))


def test_labels_are_the_inputs_shifted_by_one(corpus: Path) -> None:
    dataset = TokenDataset(prepared(corpus), sequence_length=16)
    batches = dataset.batches(batch_size=8, num_microbatches=2, seed=0)

    inputs, labels = batches.inputs(3, 1), batches.labels(3, 1)

    assert inputs.shape == labels.shape == (4, 16)
    assert inputs.dtype == labels.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], labels[:, :-1])


def rows(dataset: TokenDataset, steps: Sequence[int], *, seed: int = 0) -> list[tuple[int, ...]]:
    batches = dataset.batches(batch_size=4, num_microbatches=2, seed=seed)
    return [
        tuple(row) for step in steps for m in (0, 1) for row in batches.inputs(step, m).tolist()
    ]


def test_an_epoch_reads_every_sample_once_in_an_order_of_its_own(corpus: Path) -> None:
    dataset = TokenDataset(prepared(corpus), sequence_length=16)
    num_samples = len(dataset)
    read = rows(
        dataset, range(num_samples)
    )  # batch_size epochs: the batches straddle their borders
    samples = [tuple(dataset.tokens(i * 16, i * 16 + 16).tolist()) for i in range(num_samples)]

    epochs = [read[i * num_samples : (i + 1) * num_samples] for i in range(4)]
    assert all(sorted(epoch) == sorted(samples) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_a_step_is_read_from_its_number_alone(corpus: Path) -> None:
    output = prepared(corpus)
    straight = rows(TokenDataset(output, sequence_length=16), range(30))
    resumed = rows(TokenDataset(output, sequence_length=16), range(17, 30))

    assert resumed == straight[17 * 4 :]
    assert rows(TokenDataset(output, sequence_length=16), range(30), seed=1) != straight


def test_the_sample_order_is_pinned() -> None:
    # First and last stage may run different numpy versions: an order that moved would mix labels.
    assert _permutation(3, 1, 8).tolist() == [0, 6, 2, 1, 3, 7, 4, 5]


def test_digests_tell_datasets_and_splits_apart(corpus: Path) -> None:
    output = prepared(corpus)
    (corpus / "part0" / "00.txt").write_text("changed")
    other = prepared(corpus, "other")
    datasets = (
        TokenDataset(output, sequence_length=8),
        TokenDataset(output, split="validation", sequence_length=8),
        TokenDataset(other, sequence_length=8),
    )

    assert len({dataset.digest for dataset in datasets}) == 3


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_nothing_partial_is_left_behind(corpus: Path, kind: type[BaseException]) -> None:
    class Interrupted(ByteTokenizer):
        def encode(self, text: str) -> Any:
            if "document 7:" in text:
                raise kind
            return super().encode(text)

    with pytest.raises(kind):
        prepare([corpus], corpus.parent / "data", tokenizer=Interrupted(), tokens_per_shard=50)

    assert [path.name for path in corpus.parent.iterdir()] == ["corpus"]


def test_bad_input_to_prepare_is_one_line(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    for paths, output, words in (
        ([corpus, tmp_path / "nowhere"], "data", "nowhere: no such file or folder"),
        ([tmp_path / "empty"], "data", "no text found"),
        ([corpus], "taken", "exists already"),
    ):
        with pytest.raises(InputError, match=words) as error:
            prepare(paths, tmp_path / output, tokenizer=ByteTokenizer())
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"validation_fraction: 1 is not in \[0, 1\)"):
        prepare([corpus], tmp_path / "data", tokenizer=ByteTokenizer(), validation_fraction=1)
    assert not (tmp_path / "data").exists()


def test_a_missing_dataset_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"crosspipe data prepare PATH\.\.\. --output .*nothing"):
        TokenDataset(tmp_path / "nothing", sequence_length=8)


def test_a_batch_larger_than_the_split_is_refused(corpus: Path) -> None:
    dataset = TokenDataset(prepared(corpus), split="validation", sequence_length=64)

    with pytest.raises(InputError, match=r"validation tokens, but one batch of 8 x 64 takes 513"):
        dataset.batches(batch_size=8, num_microbatches=2, seed=0)


def test_damaged_datasets_are_refused(corpus: Path, tmp_path: Path) -> None:
    def drop_shard(path: Path) -> None:
        next(path.glob("train-*.arrow")).unlink()

    def cut_shard(path: Path) -> None:
        next(path.glob("train-*.arrow")).write_bytes(b"ARROW1")

    def add_field(path: Path) -> None:
        metadata = path / "metadata.json"
        metadata.write_text(metadata.read_text().replace('"version"', '"versions"'))

    good = prepared(corpus)
    for damage, words in (
        (drop_shard, "0 train tokens in its shards"),
        (cut_shard, "not a shard of tokens"),
        (add_field, "unknown field"),
    ):
        bad = tmp_path / "bad"
        shutil.copytree(good, bad)
        damage(bad)
        with pytest.raises(InputError, match=words):
            TokenDataset(bad, sequence_length=8)
        shutil.rmtree(bad)


def write_tokenizer(path: Path, special: str) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, special: 1, "hello": 2, "world": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


def test_tokenizer_file(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json", "<|endoftext|>")
    (tmp_path / "text.txt").write_text("hello world hello")
    tokenizer = load_tokenizer(str(path))

    info = prepare(
        [tmp_path / "text.txt"], tmp_path / "data", tokenizer=tokenizer, validation_fraction=0
    )

    dataset = TokenDataset(tmp_path / "data", sequence_length=1)
    assert dataset.tokens(0, 4).tolist() == [2, 3, 2, 1]
    assert (info.tokenizer, info.vocab_size) == (str(path), 4)


def test_bad_tokenizers_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    write_tokenizer(tmp_path / "endless.json", "[CLS]")
    for name, words in (
        ("missing.json", "no such file"),
        ("broken.json", "broken.json: "),
        ("endless.json", "no end-of-document token"),
    ):
        with pytest.raises(InputError, match=words) as error:
            load_tokenizer(str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_a_tokenizer_file_without_the_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return real_import(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)

    with pytest.raises(InputError, match="pip install"):
        FileTokenizer(tmp_path / "tokenizer.json")


def test_byte_tokenizer_keeps_every_byte() -> None:
    tokens = load_tokenizer("bytes").encode("na\u00efve \u2603")

    assert bytes(tokens.tolist()).decode() == "na\u00efve \u2603"
