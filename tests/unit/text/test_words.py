"""Words of Chinese text: places that a reader would give."""

from __future__ import annotations

import sys

import pytest

from filbert.errors import FilbertError
from filbert.text.words import ChineseWords

pytest.importorskip("rjieba", reason="pip install 'filbert[pretrain]'")
pytest.importorskip("opencc", reason="pip install 'filbert[pretrain]'")


@pytest.fixture(scope="module")
def words() -> ChineseWords:
    return ChineseWords()


@pytest.mark.parametrize(
    "expected",
    [
        ["我们", "学习", "语言", "。"],
        ["我們", "學習", "語言", "。"],
        ["上海市", "的", "天气", "很", "好", "！"],
        ["國務院", "管轄", "臺灣", "的", "學校"],
        ["他", "显著", "地", "提高"],
    ],
)
def test_words(words: ChineseWords, expected: list[str]) -> None:
    starts = [place for word in expected for place in [1] + [0] * (len(word) - 1)]
    assert words.starts("".join(expected)).astype(int).tolist() == starts


def test_a_traditional_text_is_cut_like_its_simplified_twin(words: ChineseWords) -> None:
    one, other = "歷史悠久的電腦軟體開發應該認真學習", "历史悠久的电脑软体开发应该认真学习"
    assert words.is_traditional(one)
    assert not words.is_traditional(other)
    assert (words.starts(one) == words.starts(other)).all()


def test_a_simplified_text_with_a_rare_traditional_character_stays(words: ChineseWords) -> None:
    assert not words.is_traditional("这项研究的影响很大" * 8 + "显著")  # 著 is in both scripts


def test_lines_blanks_and_other_scripts_begin_words(words: ChineseWords) -> None:
    starts = words.starts("你好\n世界 ok")
    assert starts[[0, 2, 3, 5, 6]].all()
    assert not starts[[1, 4]].any()
    assert len(words.starts("")) == 0


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(FilbertError, match=r"filbert\[pretrain\]"):
        ChineseWords()
