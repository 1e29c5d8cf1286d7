"""Words, taggers that are there and that are not, languages, treebanks, and the tags of tokens."""

import os
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pandas as pd
import pytest

from polca.analysis.tags import (
    Tagger,
    cut_pieces,
    english_share,
    foreign_texts,
    open_tagger,
    read_conllu,
    split_words,
    tag_text,
    tag_windows,
    tagger_names,
    tags_of_window,
    token_tags,
    universal_tags,
)

ENGLISH = "The cat sat on the mat, and it was the end of the day. " * 5
DUTCH = "De kat zat op de mat, en het was een mooie dag. " * 8
# a list
CODES = (
    "Status codes: continue, switching protocols, created, accepted, no content, found, gone, locked, see other. " * 8
)


def words_of(text):
    return [text[a:b] for sentence in split_words(text) for a, b in sentence]


def test_clitics_and_abbreviations_are_words():
    said = (
        "Mr. O'Brien can't stay at the U.S. embassy (I've 1,200.50 reasons).\" \n\n"
        "John's cat—a well-known one—cost $5 @.@ 7..."
    )
    assert words_of(said)[:8] == ["Mr.", "O'Brien", "ca", "n't", "stay", "at", "the", "U.S."]
    assert len(split_words(said)) == 2


def test_marks_of_wikitext_and_addresses_are_words():
    words = "can not don’t <unk> @-@ a@b.org e.g. 15 - year it 's"
    expected = words.replace("don’t", "do n’t").split()
    assert words_of("cannot don’t <unk> @-@ a@b.org e.g. 15-year it's") == expected


@pytest.mark.parametrize("text, sentences", [("", 0), (" \n ", 0), ("One\n\nTwo. Three? “Four!” five", 5)])
def test_sentences_end_at_marks_and_empty_lines(text, sentences):
    assert len(split_words(text)) == sentences


def test_every_letter_is_in_a_word():
    everything = "".join(map(chr, range(33, 0x250))) + " 日本語 \u0301e 😀"
    assert "".join(words_of(everything)) == "".join(everything.split())


@pytest.mark.parametrize(
    "words, penn, tags",
    [
        ("I have that .", "PRP VBP DT .", "PRON VERB PRON PUNCT"),
        ("hm", "FW", "X"),
        ("go to town 's", "VB TO NN POS", "VERB ADP NOUN PART"),
        ("", "", ""),
    ],
)
def test_closed_classes_are_told_by_their_neighbours(words, penn, tags):
    assert universal_tags(words.split(), penn.split()) == tags.split()


def test_pattern_tagger_needs_nothing_but_the_installed_packages(tmp_path):
    "The same in a new process with an empty home directory and no network."
    no_scipy = "import sys; sys.modules['scipy'] = sys.modules['sklearn'] = None"  # which take seconds to load
    tag = "from polca.analysis.tags import *; print(open_tagger('pattern').words(['The cat sat.'])[0])"
    proxy = "http://127.0.0.1:9"
    nothing = {"HOME": str(tmp_path), "NLTK_DATA": "", "http_proxy": proxy, "https_proxy": proxy}
    fresh = subprocess.run(
        [sys.executable, "-c", f"{no_scipy}; {tag}"], capture_output=True, text=True, env=os.environ | nothing
    )
    tagged = "[(0, 3, 'DET'), (4, 7, 'NOUN'), (8, 11, 'VERB'), (11, 12, 'PUNCT')]"
    assert fresh.stdout.strip() == tagged, fresh.stderr


def test_unknown_tagger_is_refused():
    with pytest.raises(ValueError, match="use auto, spacy"):
        open_tagger("nltk")


def test_tagger_that_gives_no_tags():
    assert open_tagger("none").words is None


class FakeSpacy:
    "What polca uses of spaCy's interface: models by name, pipes that give documents of tokens with idx, text and pos_."

    __version__ = "3.0"

    def __init__(self, models, tag=str.upper):
        self.models = models
        self.tag = tag
        self.util = SimpleNamespace(get_installed_models=lambda: list(models))

    def load(self, name, exclude):
        if name not in self.models:
            raise OSError(f"[E050] Can't find model '{name}'.")
        meta = {"name": name[3:], "version": "1.2"}
        return SimpleNamespace(lang=name[:2], meta=meta, pipe=lambda texts: map(self.document, texts))

    def document(self, text):
        words = re.finditer(r"\w+|[^\w\s]|\n\n", text)
        return [SimpleNamespace(idx=m.start(), text=m[0], pos_=self.tag(m[0])) for m in words]


def untagged(word):
    return ""


@pytest.fixture
def install_spacy(monkeypatch):
    "Makes `import spacy` give a fake, or fail if it is None."

    def install(fake):
        monkeypatch.setitem(sys.modules, "spacy", fake)
        monkeypatch.setitem(sys.modules, "spacy.util", fake and fake.util)

    return install


@pytest.mark.parametrize(
    "fake, name, message",
    [
        (None, "spacy", "spaCy is not installed: `pip install spacy && python -m spacy download en_core_web_sm`"),
        (FakeSpacy(["de_x"]), "spacy", "no English model of spaCy is installed"),
        (FakeSpacy(["en_x"]), "spacy:en_other", "the model is not installed: `python -m spacy download en_other`"),
        (FakeSpacy(["en_x"], untagged), "spacy", "gives no parts of speech"),
    ],
)
def test_what_spacy_lacks_is_said_with_the_remedy(install_spacy, fake, name, message):
    install_spacy(fake)
    with pytest.raises(ValueError, match=message):
        open_tagger(name)


def test_auto_takes_the_first_english_model_of_spacy(install_spacy):
    install_spacy(FakeSpacy(["en_x", "en_a"]))
    tagger = open_tagger("auto")
    assert tagger.name == "spaCy 3.0, en_a 1.2"
    assert not tagger.asked
    assert tagger.words(["a b\n\nc"]) == [[(0, 1, "A"), (2, 3, "B"), (5, 6, "C")]]


def test_model_tells_its_language(install_spacy):
    install_spacy(FakeSpacy(["de_x"]))
    assert open_tagger("spacy:de_x").language == "de"


@pytest.mark.parametrize("fake", [None, FakeSpacy([])])
def test_auto_takes_pattern_where_spacy_has_no_model(install_spacy, pattern, fake):
    install_spacy(fake)
    assert open_tagger("auto").name == pattern.name


def test_auto_passes_over_a_model_without_tags(install_spacy, pattern):
    install_spacy(FakeSpacy(["en_ner"], untagged))
    with pytest.warns(UserWarning, match="gives no parts of speech"):
        assert open_tagger("auto").name == pattern.name


@pytest.mark.parametrize(
    "texts, foreign",
    [
        ({"e": ENGLISH, "d": DUTCH, "short": "Een"}, ["d"]),
        ({"d": DUTCH, "short": "the"}, ["d", "short"]),
        ({"a": DUTCH[:60], "b": DUTCH[:60]}, ["a", "b"]),
        ({"a": ENGLISH[:60]}, []),
        ({"numbers": "1 2"}, ["numbers"]),
        ({}, []),
        ({"codes": CODES, "e": ENGLISH * 20}, []),
        ({"codes": CODES * 40, "e": ENGLISH * 20}, ["codes"]),
    ],
)
def test_texts_are_judged_with_all_others_beside_them(texts, foreign):
    assert foreign_texts(texts) == foreign


def test_list_of_names_has_few_function_words():
    assert english_share(CODES)[0] < 0.15


@pytest.mark.parametrize("text", ["", "x" * 95, "word " * 30, "a\n\n\nb", "\n\n", "End. " * 30])
def test_pieces_are_all_of_the_text_and_no_longer_than_asked(text):
    pieces = cut_pieces(text, 20)
    assert "".join(text[a:b] for a, b in pieces) == text
    assert all(0 < b - a <= 20 for a, b in pieces)


def test_pieces_end_with_a_word():
    assert [b - a for a, b in cut_pieces("word " * 5, 12)] == [10, 10, 5]


def test_empty_text_has_no_words(pattern):
    assert len(tag_text("", pattern)) == 0


@pytest.mark.parametrize(
    "text, message",
    [("# x\n1\ta\tb", "line 2 has 3 columns, a CoNLL-U line has ten, between tabs"), ("# x\n", "there are no words")],
)
def test_what_is_no_treebank_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_conllu(text)


@pytest.fixture(scope="module")
def small(small_texts, cut, pattern):
    windows, tokens = cut(small_texts, 12)
    tagged = token_tags(windows, tokens, small_texts, pattern)
    return SimpleNamespace(texts=small_texts, windows=windows, tokens=tokens, tagged=tagged)


def test_tokens_have_the_tags_of_their_words(small, pattern):
    tags = tag_windows(small.windows, small.texts, pattern)
    # The| hun|gry| cat|s| can
    assert tags[0][:6] == ["DET", "ADJ", "ADJ", "NOUN", "NOUN", "AUX"]
    by_text = {}
    for window, own in zip(small.windows, tags):
        by_text |= zip(window["text"], own)
    assert by_text["\n"] == "SPACE"
    assert by_text["k>"] == by_text[" <un"] == "X"
    assert by_text["."] == "PUNCT"


def test_tags_before_a_token_are_empty_where_the_window_begins(small):
    assert len(small.tagged) == len(small.tokens)
    first = small.tokens.position == 1
    assert (small.tagged.tag_2[first] == "").all()
    assert (small.tagged.tag_1[first] != "").all()
    assert (small.tagged.tag_3[small.tokens.position >= 3] != "").all()


def test_no_tagger_gives_empty_tags(small):
    tagged = token_tags(small.windows, small.tokens, small.texts, open_tagger("none"))
    assert (tagged == ["", "", "", "", "none"]).all(axis=None)


def test_token_without_text_goes_with_the_letter_before():
    window = {"offset": 0, "text": ["ca", "f", "é", "", " ", "x"]}
    words = pd.DataFrame({"start": [0], "end": [4], "tag": ["NOUN"]})
    assert tags_of_window(window, words) == ["NOUN"] * 4 + ["SPACE", "X"]


def test_windows_without_their_text_are_refused(small, pattern):
    with pytest.raises(ValueError, match="no text of the document 'two'"):
        tag_windows(small.windows, {"one": small.texts["one"]}, pattern)


def test_windows_of_another_text_are_refused(small, pattern):
    with pytest.raises(ValueError, match="the window at letter 0 of 'two' is not what stands there: give the texts"):
        tag_windows(small.windows, small.texts | {"two": "She said it."}, pattern)


@pytest.fixture(scope="module")
def mixed(cut):
    texts = {"e": ENGLISH, "folder/d": DUTCH}
    windows, tokens = cut(texts, 64)
    return SimpleNamespace(texts=texts, windows=windows, tokens=tokens, dutch=tokens.document == "folder/d")


def test_tagger_that_was_asked_for_refuses_other_languages(mixed, pattern):
    with pytest.raises(ValueError, match=r"1 of 2 documents do not read as English, .*: d \(0%\)\. .*spacy:MODEL"):
        tag_windows(mixed.windows, mixed.texts, pattern)


def test_other_languages_stay_without_tags_where_no_tagger_was_asked_for(mixed, install_spacy):
    install_spacy(None)
    auto = open_tagger("auto")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tagged = token_tags(mixed.windows, mixed.tokens, mixed.texts, auto)
    assert "1 of 2 documents do not read as English" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert (tagged.tag[mixed.dutch] == "").all()
    assert (tagged.tag[~mixed.dutch] != "").all()
    assert set(tagged.tagger[mixed.dutch]) == {"none"}
    assert set(tagged.tagger[~mixed.dutch]) == {auto.name}
    assert tagger_names(tagged) == auto.name
    assert tagger_names(tagged[["tag"]]) == tagger_names(tagged[mixed.dutch]) == "none"


def test_other_languages_are_not_judged(mixed):
    def nouns(texts):
        return [[(m.start(), m.end(), "NOUN") for m in re.finditer(r"\S+", text)] for text in texts]

    dutch = Tagger("made up", nouns, language="nl")
    assert tag_windows(mixed.windows, mixed.texts, dutch)[-1][0] == "NOUN"
