"""Documents from files and from Wikipedia, and the parts that long ones are cut into."""

import sys
import types

import pytest

from polca.tasks.english import cut_parts, embedded_texts, file_documents, wikipedia_texts


def test_embedded_texts_are_the_same_again_and_a_copy_each_time():
    first = embedded_texts()
    again = embedded_texts()
    assert again == first
    first.clear()
    assert embedded_texts() == again


def test_a_file_with_two_books_is_two_documents():
    both = "".join(
        f"*** START OF THE PROJECT GUTENBERG EBOOK {n} ***\n{n}\n*** END OF THE PROJECT GUTENBERG EBOOK {n} ***\n"
        for n in ("One", "Two")
    )
    documents = file_documents({"a": both})
    assert {name: text.strip() for name, text in documents.items()} == {"a, book 1": "One", "a, book 2": "Two"}


@pytest.mark.parametrize("text", ["*** START OF THIS PROJECT GUTENBERG EBOOK X ***\nno end", "x = y\n = z = \n"])
def test_half_a_mark_is_text(text):
    assert file_documents({"a": text}) == {"a": text}


@pytest.fixture
def stand_in(monkeypatch):
    "A package `datasets` with one dump of five articles."

    class Rows(list):
        def shuffle(self, seed, buffer_size):
            return Rows(self[seed % len(self) :] + self[: seed % len(self)])

    def load_dataset(name, config, split, streaming):
        if config != "20231101.en":
            raise ValueError(f"BuilderConfig {config!r} not found.\nAvailable: many")
        return Rows({"id": str(i), "url": "", "title": title, "text": title * 100} for i, title in enumerate("abcde"))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def test_articles_are_read_until_there_are_letters_enough(stand_in):
    assert list(wikipedia_texts(250)) == ["a (0)", "b (1)", "c (2)"]


def test_a_dump_with_too_few_letters_is_refused(stand_in):
    with pytest.raises(ValueError, match="has 500 letters, not 1,000,000"):
        wikipedia_texts(10**6)


def test_a_dump_that_is_not_there_is_named_with_the_first_line_of_the_error(stand_in):
    with pytest.raises(ValueError, match=r"20220301.en, cannot be read \(BuilderConfig '20220301.en' not found.\)"):
        wikipedia_texts(250, "20220301")


def test_without_the_package_datasets_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'pip install "polca-lm\[wikipedia\]"'):
        wikipedia_texts(250)


LONG = "".join(f"Paragraph {i}. {'word ' * i}\n\n" for i in range(60))


@pytest.mark.parametrize(
    ("text", "letters", "parts"),
    [
        (LONG, None, {"text": LONG}),
        ("x" * 100, 10, {"text, part 1": "x" * 100}),  # nothing to cut at
        ("one line\n" * 6, 18, {f"text, part {i}": "one line\none line\n" for i in (1, 2, 3)}),
        ("It is so. " * 6, 20, {f"text, part {i}": "It is so. It is so. " for i in (1, 2, 3)}),
    ],
)
def test_texts_are_cut_after_empty_lines_or_lines_or_sentences(text, letters, parts):
    assert cut_parts({"text": text}, letters) == parts


def test_parts_together_are_the_text():
    embedded = embedded_texts()
    assert "".join(cut_parts(embedded, 5000).values()) == "".join(embedded.values())
