"""Sentence splitting: cases made by hand, and what must hold for any text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filbert.text.sentences import split_sentences

# Each list is a text whose sentences, joined by a blank, give the text to be split.
ENGLISH = [
    ["It rained.", "We stayed in."],
    ["Mr. Smith met Mrs. Jones.", "Dr. Wu came too."],
    ["See St. Paul's and Mt. Fuji.", "Both are high."],
    ["J. R. R. Tolkien wrote it.", "So did C. S. Lewis."],
    ["George W. Bush spoke.", "He left."],
    ["Bring tools, e.g. a saw.", "Nothing else."],
    ["That is, i.e. the rest, went.", "Then what?"],
    ["He lives in the U.S. and likes it.", "I do not."],
    ["He lives in the U.S.", "The house is old."],
    ["It began at 5 p.m. on Monday.", "It ended late."],
    ["It began at 5 p.m.", "They slept."],
    ["Acme Inc. made it.", "Others sold it."],
    ["Smith et al. found more.", "So we stop."],
    ["It costs $3.14 today.", "Tomorrow 2.5 times as much."],
    ["It costs $3.14.", "Really?!"],
    ["See No. 5 and Fig. 3 on pp. 7 of vol. 2.", "Good."],
    ["The answer was no.", "Peter left."],
    ["He came in.", "Peter left."],
    ["Visit www.example.org/a.b?c=d!e now.", "Mail a.b@c.example.org."],
    ["Open https://example.org/x.html?q=1.", "Read it."],
    ["Python 3.11.2 is out.", "Use it."],
    ["Wait... what is it?", "No idea...", "Yes.", "Fine."],
    ["Wait… what is it?", "No idea…", "Yes."],
    ["What?!", "No!!!", "Why??", "Because."],
    ['He said "No."', "Then he left."],
    ["“Go!” he cried.", "“Now!”", "She went."],
    ['"What?" he asked.', '"Nothing."', "She left."],
    ["(It was late.)", "We went home."],
    ["It was late (very late.) and dark.", "We left."],
    ["1. Introduction.", "2. Methods and tools."],
    ["A. First.", "B. Second."],
    ["IV. The end of it.", "It is over."],
    ["Yahoo! is a name.", "So is Guess."],
    ["He was born in 1990.", "25 people came."],
    ["He said it , then left .", "Nobody knew ."],
    ["No stop at the end"],
    ["Pens etc. and so on"],
    ["We sell pens, ink etc.", "The shop is small."],
    ["In Jan. 2020 it began.", "In Feb. it ended."],
    ["Ph.D. students came.", "They sat down."],
    ["Temperatures of 3.5 to 4.5 C were seen.", "No more."],
    ["«Bonjour.»", "Il part."],
    ["He paid 5 dollars.", "(That is a lot.)", "We know."],
    ["End.”", "Next one."],
    # a quotation of several sentences is one
    ['He said, "Stop. Go home."', "We went."],
    ["“Stop. Go home,” he said.", "We went."],
    ['"It is late. Go!" he said.', '"Why? It is early."', "He left."],
    ['He wrote: "Come. Now." and left.', "We stayed."],
    ["He said (“Stop. Go.”) so.", "We went."],
    # marks that open or close nothing swallow nothing
    ['"Stop.', "Go home.", "We went."],
    ["“Stop.", "“Go. Now.”", "We went."],
    ["Stop.”", "We went.", "He stayed."],
    ['The 5" disk is old.', 'The 3" disk is not.', "Good."],
    ['"A 5" disk is old.', "We went.", "Good."],
    ['It is " late .', 'He said " stop .', "We went."],
]  # fmt: skip

# Each list is a text whose sentences, joined without anything, give the text to be split.
CHINESE = [
    ["今天下雨。", "我们没出门。"],
    ["你去吗？", "我不去！", "为什么？！", "不知道。"],
    ["他说：“走吧！”", "我们走了。"],
    ["他说：“走吧！”，然后笑了。", "天黑了。"],
    ["「你好。」", "他說。", "『再見！』"],
    ["圆周率是3.14，温度是-2.5度。", "没错。"],
    ["好吧……", "那就走。"],
    ["《你好，李焕英！》是一部电影；", "它很好。"],
    ["（他来了。）", "我们走。"],
    ["费罗（；）是人。", "是的。"],
    ["一、引言；", "二、方法。"],
    ["请看www.example.org。", "或写信a.b@c.org。"],
    ["你好吗?", "我很好!", "再见"],
    ["GDP增长5.5%。", "很快。"],
    ["他走了.", "我留下."],
    ["真的！！！", "是吗？？？", "是。"],
    ["【注意！】", "小心。"],
    ["张三（1990年生。）", "李四"],
    ["他在U.S.工作。", "她在家。"],
    ["没有标点"],
    # 几句话的引文是一句
    ["“走吧！我们走。”", "天黑了。"],
    ["他说：“走吧！我们走。天黑了。”", "她没走。"],
    ["「走吧！我們走。」", "他說：『不！我不走。』", "天黑了。"],
    ['他说："走吧！我们走。"', "天黑了。"],
    ['他说，"走吧!我们走."', "天黑了。"],
    ["“他说：『走！』我们就走了。真的。”", "天黑了。"],
    ["“走吧！我们走。”", "他说。", "“好！”", "天黑了。"],
    # 不成对的引号不影响断句
    ["“走吧！", "我们走。", "天黑了。"],
    ["“走吧！", "“我们走。天黑了。”", "她没走。"],
    ["走吧！”", "我们走。", "天黑了。"],
]


@pytest.mark.parametrize("sentences", ENGLISH, ids=lambda s: s[0][:20])
def test_english(sentences: list[str]) -> None:
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize("sentences", CHINESE, ids=lambda s: str(CHINESE.index(s)))
def test_chinese(sentences: list[str]) -> None:
    assert split_sentences("".join(sentences)) == sentences


def test_a_long_quotation_is_cut_as_other_text_is() -> None:
    """A mark that was forgotten, too, costs no more than the bound, 200 characters."""
    for marks, sentence, blank in (("“”", "It rained.", " "), ('""', "It rained.", " "),
                                   ("「」", "下雨了。", "")):  # fmt: skip
        size = len(sentence + blank)
        for count in (2, 200 // size, 200 // size + 1, 50):
            inside = blank.join([sentence] * count)
            found = split_sentences(f"{marks[0]}{inside}{marks[1]}{blank}{sentence}")
            # from the opening mark to the closing one
            whole = len(inside) + 1 <= 200
            assert len(found) == (2 if whole else count + 1)
            assert found[-1] == sentence


def test_both_in_one_text() -> None:
    text = 'He said "No." Then Dr. Wu left at 3.15 p.m. 他说：“走吧！”我们走了。'
    assert split_sentences(text) == [
        'He said "No."',
        "Then Dr. Wu left at 3.15 p.m.",
        "他说：“走吧！”",
        "我们走了。",
    ]


def test_a_line_is_the_most_that_a_sentence_takes() -> None:
    assert split_sentences("no stop\nhere \r\n\r\n  and\u2028there\n") == [
        *("no stop", "here", "and", "there"),
    ]


def test_nothing_gives_nothing() -> None:
    assert split_sentences("") == split_sentences(" \n\t ") == []


SIGNS = st.sampled_from(
    [
        *"aA1 .!?…\"'”’()（）“」》《；。！？,，、:\n\t-",
        "Mr.",
        "e.g.",
        "U.S.",
        "中",
        "文",
        "3.14",
        " The ",
    ]
)


@given(st.one_of(st.text(), st.lists(SIGNS, max_size=60).map("".join)))
def test_no_character_is_lost(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)


@pytest.mark.parametrize(
    "unit",
    [
        *(".", '"', ". ", '."', "。", "…", "（；）", "a.", "A. ", "! ?", "(", ".\n", ".”)", "Mr. "),
        *('"A. ', "“A. ", "“A.” ", '"A." ', "「啊！", "「啊！」", "“「『啊。", '"', " “"),
    ],
)
def test_time_is_linear(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    started = time.process_time()
    sentences = split_sentences(text)
    assert time.process_time() - started < 5
    assert sum(map(len, sentences)) <= len(text)


def test_a_long_run_of_blanks_costs_no_square() -> None:
    started = time.process_time()
    split_sentences((". " + " " * 1000) * 500 + "." + " " * 1_000_000)
    assert time.process_time() - started < 2
