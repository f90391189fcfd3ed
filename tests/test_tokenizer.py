"""Tokenizer: any text survives, no <unk>, one line stays one line, vocabularies fit the corpus."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtattn.errors import CorpusError, ModelError
from mtattn.storage import MAX_SMALL_FILE
from mtattn.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer, TokenizerConfig, train_tokenizer

SPECIAL_LOOKING = ["</s>", "a </s> b", "<s>", "<pad>", "<unk>", "<0x41>", "⁇"]

# SentencePiece writes a space as U+2581 and folds runs of spaces; those two it documents, all else must come back.
any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" ▁\n\r"))
words = st.lists(any_text.filter(bool), max_size=4).map(" ".join)


@pytest.fixture(scope="module")
def bpe(toy_lines) -> Tokenizer:
    return train_tokenizer(*toy_lines, TokenizerConfig(kind="bpe", vocab_size=500, normalization="identity"))[0]


@given(words)
@example("\x00")
@example("a\x00b\tc\x85d\u2028e\x0bf\x0cg")
@example("नमस्ते 日本語 \U0001f469\u200d\U0001f680 \ufeff \u3000")
def test_any_text_round_trips_without_unk(tokenizer, bpe, text):
    for any_kind in (tokenizer, bpe):
        for ids in (*any_kind.encode_src([text]), *any_kind.encode_tgt([text])):
            assert ids[-1] == EOS_ID
            assert not {PAD_ID, BOS_ID, EOS_ID, UNK_ID} & set(ids[:-1])
            assert any_kind.decode(ids) == text


@pytest.mark.parametrize("text", SPECIAL_LOOKING)
def test_text_that_looks_like_a_special_piece_stays_text(tokenizer, bpe, text):
    for any_kind in (tokenizer, bpe):
        ids = any_kind.encode_tgt([text])[0]
        assert min(ids[:-1]) > UNK_ID
        assert any_kind.decode(ids) == text


def test_special_looking_text_in_the_corpus_is_learned_as_text(toy_lines):
    src, tgt = ([f"<s> {line} </s>" for line in lines] for lines in toy_lines)
    tokenizer, _ = train_tokenizer(src, tgt, TokenizerConfig(vocab_size=600))
    assert tokenizer.decode(tokenizer.encode_tgt(["<s> Hund </s>"])[0]) == "<s> Hund </s>"


@given(st.lists(st.integers(0, 599), max_size=12))
@example([4 + ord("\n"), 4 + ord("\r"), 4 + 0xED, 4 + 0xA0, 4 + 0x80])
def test_decoded_ids_are_one_line_of_valid_text(tokenizer, ids):
    text = tokenizer.decode(ids)
    assert "\n" not in text
    assert "\r" not in text
    text.encode("utf-8")
    assert tokenizer.decode_all([ids, [], ids]) == [text, "", text]


def test_line_break_becomes_a_space(tokenizer):
    assert tokenizer.decode(tokenizer.encode_tgt(["a\nb\r\nc"])[0]) == "a b  c"


def test_blank_text_is_eos_alone(tokenizer):
    assert tokenizer.encode_src(["", "   ", "\u2581"]) == [[EOS_ID]] * 3


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("joint", [True, False])
def test_vocabulary_is_lowered_to_what_the_corpus_holds(toy_lines, kind, joint):
    config = TokenizerConfig(kind=kind, vocab_size=30_000, joint=joint)
    tokenizer, notes = train_tokenizer(*toy_lines, config)
    sizes = [tokenizer.src_vocab_size, tokenizer.tgt_vocab_size]
    assert max(sizes) < 10_000
    assert tokenizer.joint == joint
    assert (sizes[0] == sizes[1]) == joint
    names = ["joint"] if joint else ["source", "target"]
    for name, size, note in zip(names, sizes, notes, strict=False):
        assert f"the {name} vocabulary has {size} pieces instead of 30000" in note
    assert len(notes) == len(names)
    assert tokenizer.decode(tokenizer.encode_tgt(["Der Hund schläft."])[0]) == "Der Hund schläft."


def test_vocabulary_of_the_asked_size_needs_no_note(toy_lines):
    tokenizer, notes = train_tokenizer(*toy_lines, TokenizerConfig(vocab_size=400))
    assert (tokenizer.src_vocab_size, notes) == (400, [])


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_vocabulary_too_small_for_the_characters(toy_lines, kind):
    with pytest.raises(CorpusError, match=r"vocab_size = 280 cannot hold .*; raise it to at least (\d+)") as caught:
        train_tokenizer(*toy_lines, TokenizerConfig(kind=kind, vocab_size=280))
    least = int(str(caught.value).rsplit(maxsplit=1)[1])
    assert train_tokenizer(*toy_lines, TokenizerConfig(kind=kind, vocab_size=least))[0].src_vocab_size == least


@pytest.mark.parametrize(
    ("texts", "why"),
    [([], "no line has at most 4,192 bytes"), (["word " * 1000], "no line has at most"), (["\u200b"], "visible")],
)
def test_nothing_to_learn_from_is_a_corpus_error(texts, why):
    with pytest.raises(CorpusError, match=why):
        train_tokenizer(texts, texts, TokenizerConfig())


def test_training_takes_at_most_max_sentences(toy_lines):
    few = TokenizerConfig(vocab_size=300, max_sentences=4)
    lines = ["the cat", "der Hund", "a dog", "die Katze"]
    models = [
        train_tokenizer(src, tgt, few)[0].to_files()
        for src, tgt in ((lines[::2], lines[1::2]), ([*lines[::2], "xyz"], [*lines[1::2], "uvw"]))
    ]
    assert models[0] == models[1]


@pytest.mark.parametrize("joint", [True, False])
def test_files_load_to_the_same_tokenizer(tmp_path, toy_lines, joint):
    tokenizer, _ = train_tokenizer(*toy_lines, TokenizerConfig(vocab_size=320, joint=joint))
    for name, content in tokenizer.to_files().items():
        (tmp_path / name).write_bytes(content)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.joint == joint
    assert loaded.to_files() == tokenizer.to_files()
    assert loaded.encode_tgt(toy_lines[1]) == tokenizer.encode_tgt(toy_lines[1])


def test_pieces_spell_the_ids(tokenizer):
    ids = tokenizer.encode_src(["the dog"])[0]
    assert "".join(tokenizer.src_pieces(ids)) == "▁the▁dog</s>"


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer\.model here"):
        Tokenizer.load(tmp_path)
    for content in (b"", b"no protobuf"):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(ModelError, match="the tokenizer"):
            Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.tgt.model"])
def test_a_file_far_too_large_is_refused_by_its_size(tmp_path, tokenizer, name):
    (tmp_path / "tokenizer.src.model").write_bytes(tokenizer.to_files()["tokenizer.model"])
    with (tmp_path / name).open("wb") as file:
        file.truncate(MAX_SMALL_FILE + 1)  # a hole, which takes no space
    with pytest.raises(ModelError, match=rf"{name}: \d+ bytes; such a file has at most {MAX_SMALL_FILE}"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("options", [{"vocab_size": 260}, {"sampling": 1.0}, {"sampling": -0.1}])
def test_config_says_what_is_allowed(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*allowed"):
        TokenizerConfig(**options)
