"""Cleaning and filters: what a reader would take out by hand."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filbert.data.clean import clean_text, speaks


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\r\nb\rc\u2028d\x85e", "a\nb\nc\nd\ne"),
        ("  a \t b\u3000c\xa0d  \n\n \n e", "a b c d\ne"),
        ("Cafe\u0301", "Café"),
        ("e\u200b\u0301", "é"),  # composed also where something hidden stood between
        ("\ufeffa\u200bb\u00adc\x00d\x1be\u202ef\ufffdg", "abcdefg"),
        ("a \u200b b", "a b"),
        ("\ud800a", "a"),
        ("\u200b\n\x00", ""),
        ("a\ue000b", "a\ue000b"),  # private, but somebody's character
        ("", ""),
    ],
)
def test_clean(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("<p><b>Hi</b> you</p><p>Next<br/>line</p>", "Hi you\nNext\nline"),
        ("a<br />b", "a\nb"),
        ('x<ref name="a">gone</ref>y<ref name="b"/>z<ref name="c"></ref>', "xyz"),
        ("<script>var x = '<b>';</script>text", "text"),
        ("<ref>no end and more", "no end and more"),
        ("3 < 4 and <T> and a<b, c>d", "3 < 4 and <T> and a<b, c>d"),
        ("a &amp; b &lt;c&gt; &#8217;", "a & b <c> ’"),
        ("费罗（；）是（，缩写YCL）人（ ）（好）", "费罗是（缩写YCL）人（好）"),
        ("a () b ( , ) c (d)", "a b c (d)"),
        ("<!-- note -->a", "a"),
    ],
)
def test_markup(text: str, cleaned: str) -> None:
    assert clean_text(text, markup=True) == cleaned
    assert clean_text(text) == "\n".join(" ".join(line.split()) for line in text.splitlines())


def test_boilerplate() -> None:
    lines = ["We accept cookies.", "Text.", "* * *", "Text.", "Sign in", "版权所有", "More text."]
    assert clean_text("\n".join(lines), boilerplate=True) == "Text.\nMore text."
    long = "He wrote about cookies " + "and cake " * 20
    assert clean_text(long, boilerplate=True) == long.strip()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("It was the best of times, and it was in the city of London.", "en"),
        ("This is the café of Mr. Ångström.", "en"),
        ("今天的天气很好，我们去公园。", "zh"),
        ("他在 Google 工作。我們是同事。", "zh"),
        ("Das ist ein deutscher Satz ohne ein Wort der anderen Sprache.", ""),
        ("これは日本語の文章です。", ""),
        ("이것은 한국어 문장입니다.", ""),
        ("Это русский текст.", ""),
        ("12345 67890", ""),
    ],
)
def test_language(text: str, language: str) -> None:
    assert [name for name in ("en", "zh") if speaks(text, name)] == [language] * bool(language)


@given(st.text())
def test_cleaning_twice_changes_nothing(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert all(line and line == " ".join(line.split()) for line in once.split("\n") if once)
    once.encode()  # no lone surrogates


@pytest.mark.parametrize("unit", ["<", "<a ", "(", "(,", "<ref>", "&", "&amp", "<!--", "\u200b "])
def test_time_is_linear(unit: str) -> None:
    started = time.process_time()
    clean_text(unit * (500_000 // len(unit)), markup=True, boilerplate=True)
    assert time.process_time() - started < 6
