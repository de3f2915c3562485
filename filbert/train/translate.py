"""Training an encoder-decoder on pairs of texts: what `tune` needs of it.

    filbert train translate --data train.en --target-data train.de --base MODEL --out runs/en-de

Reads the pairs, settles the vocabulary and the decoder of the targets, encodes both sides; the
meaning of it all is in `filbert/tasks/translate.py`. Abstractive summaries are the same job with
`--task summarize`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from filbert.bundle import Manifest, fit_tokenizer
from filbert.data.packing import Ids, plan_once
from filbert.data.pairs import Pairs, split_pairs
from filbert.errors import FilbertError, UsageError
from filbert.model.config import BertConfig
from filbert.model.device import for_inference
from filbert.model.generate import Search
from filbert.model.modern_config import read_any_config
from filbert.model.seq2seq import BertForSeq2SeqLM
from filbert.tasks import translate as task
from filbert.tasks.translate import TARGET_TOKENIZER, Sides, WritingSettings
from filbert.text import BertTokenizer
from filbert.text.spacing import learn_spacing
from filbert.text.vocabulary import WordCounter, learn_pieces, special_tokens
from filbert.train import loop
from filbert.train.translate_options import TranslateOptions
from filbert.train.trim import TrimmedEmbedding
from filbert.train.tune import Base, Job, Machine, TrainResult, open_base, tune

SHOWN = 20  # examples with their texts in `evaluation.json`


@dataclass
class Data:
    """The pairs of a run."""

    train: Pairs
    dev: Pairs
    test: Pairs | None

    @property
    def parts(self) -> list[Pairs]:
        """Training, dev and, if there is one, test pairs."""
        return [self.train, self.dev, *([self.test] if self.test is not None else [])]

    @property
    def notes(self) -> list[str]:
        """What reading the files gave to say, each remark once."""
        return list(dict.fromkeys(note for part in self.parts for note in part.notes))

    def digest(self) -> str:
        """A sha256 of all texts, in order."""
        return sha256(" ".join(part.digest() for part in self.parts).encode()).hexdigest()


def train_translate(options: TranslateOptions, *, quiet: bool = False) -> TrainResult:
    """Train an encoder-decoder as `options` say and write its bundle to `options.out`."""
    return tune(options, read=read_data, build=build, quiet=quiet)


def read_data(options: TranslateOptions) -> Data:
    """Read the pairs; hold some out, by a hash of the source, where no dev file is given."""
    task.check_metric(options.metric, options.task)
    task.check_stem(options.stem, options.task)
    if options.layer_decay != 1.0:
        raise UsageError("--layer-decay counts the layers of one encoder; leave it at 1 here")
    if options.min_tokens > options.max_target:
        raise UsageError(
            f"--min-tokens {options.min_tokens} is more than --max-target {options.max_target}, "
            "the longest text that is learned"
        )
    train = task.read(options.data, options.target_data, options)
    if options.limit is not None:
        train = train.select(list(range(min(options.limit, len(train)))))
    others: dict[str, Pairs] = {}
    for name in ("dev", "test"):
        path, targets = getattr(options, name), getattr(options, f"target_{name}")
        if targets is not None and path is None:
            raise UsageError(f"--target-{name} has no --{name} beside it")
        if path is not None:
            if (targets is None) != (options.target_data is None):
                raise UsageError(
                    f"--{name}: the training pairs come from "
                    f"{'one file' if options.target_data is None else 'two files'}; give --{name} "
                    f"{'alone' if options.target_data is None else f'and --target-{name}'}"
                )
            others[name] = task.read(path, targets, options)
    if "dev" in others:
        if options.holdout_test:
            raise UsageError(
                "--holdout-test holds a test set out where no --dev is given; leave it out"
            )
        return Data(train, others["dev"], others.get("test"))
    share = 0.0 if "test" in others else options.holdout_test
    if options.holdout + share >= 1:
        raise UsageError("--holdout and --holdout-test leave nothing to learn from")
    train, dev, test = split_pairs(train, dev=options.holdout, test=share)
    return Data(train, dev, others.get("test", test))


def target_tokenizer(options: TranslateOptions, data: Data, base: Base) -> BertTokenizer:
    """The vocabulary of the targets: named, learned from the training targets, or that of the BERT
    whose weights the decoder takes."""
    asked, decoder = options.target_vocab, options.decoder
    if decoder == "share":
        if asked is not None:
            raise UsageError("--decoder share has the base's vocabulary; leave --target-vocab out")
        return base.tokenizer
    if asked is None:
        asked = "learn" if decoder == "random" else decoder
        if options.task == "summarize" and decoder == "random":
            return base.tokenizer  # one language: what is read can be written
    if asked != "learn":
        named = BertTokenizer.from_pretrained(asked)
        same = named.do_lower_case == base.tokenizer.do_lower_case
        same = same and named.get_vocab() == base.tokenizer.get_vocab()
        return base.tokenizer if same else named
    counter = WordCounter(lower=options.target_lower)
    for text in data.train.targets:
        counter.add(text)
    words: Counter[str] = counter.words()
    letters = max(1000, len({letter for word in words for letter in word}))
    try:
        learned = learn_pieces(
            words, size=options.target_vocab_size, special=special_tokens(), max_letters=letters
        )
    except FilbertError as error:
        raise type(error)(
            f"no vocabulary can be learned from the targets of {len(data.train):,} pairs: {error}. "
            "Give more pairs, or a vocabulary with --target-vocab"
        ) from None
    return BertTokenizer(learned.tokens, do_lower_case=options.target_lower)


def decoder_of(options: TranslateOptions, base: Base, vocabulary: int, pad: int) -> Any:
    """What the decoder is made from: `share`, a BERT's name, or a configuration to draw."""
    if options.decoder != "random":
        return options.decoder
    reader = read_any_config(base.folder)
    width = options.decoder_hidden or reader.hidden_size
    dropout = 0.1 if options.dropout is None else options.dropout
    return BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=options.decoder_layers,
        num_attention_heads=options.decoder_heads or reader.num_attention_heads,
        intermediate_size=options.decoder_intermediate or 4 * width,
        max_position_embeddings=max(options.max_target, 16), pad_token_id=pad, type_vocab_size=1,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip


def build(options: TranslateOptions, data: Data, machine: Machine) -> Job:
    """The model, the encoded pairs, and what the loop asks of them."""
    base = open_base(options)
    writer = target_tokenizer(options, data, base)
    size = max(writer.get_vocab().values()) + 1
    model = task.head(
        str(base.folder), decoder=decoder_of(options, base, size, writer.pad_token_id),
        tokenizer=writer, random_encoder=options.random_encoder, **base.changes,
    )  # fmt: skip
    most = min(options.max_target, model.config.decoder.max_position_embeddings)
    sides, lines = [], [f"{len(data.train):,} training pairs, {len(data.dev):,} dev pairs"]
    for part in data.parts:
        source = task.encode(base.tokenizer, part.sources, max_length=base.max_length)
        target = task.encode(writer, part.targets, max_length=most)
        sides.append(Sides(source, target))
        for name, tokenizer, texts, encoded, limit in (
            ("source", base.tokenizer, part.sources, source, base.max_length),
            ("target", writer, part.targets, target, most),
        ):
            if count := len(task.cut_off(tokenizer, texts, encoded, limit)):
                lines.append(f"{part.path}: {count:,} {name}s are cut off at {limit} tokens")
    lines.append(
        f"decoder {options.decoder}: {model.config.decoder.num_hidden_layers} layers, "
        f"{size:,} target words; {sum(p.numel() for p in model.parameters()):,} weights in all"
    )
    trimmed = None
    if options.decoder != "share":
        trimmed = TrimmedEmbedding(model.encoder, *(part.source for part in sides))
        sides = [Sides(trimmed.encode(part.source), part.target) for part in sides]
    train, dev = sides[0], sides[1]
    words_each = float(train.words.mean())
    settings = WritingSettings(
        spacing=learn_spacing(data.train.targets), language=options.language, max_tokens=most,
        min_tokens=options.min_tokens, beams=options.beams,
        length_penalty=options.length_penalty, no_repeat_ngram=options.no_repeat_ngram,
        stem=options.stem,
    )  # fmt: skip

    def batch_loss(trained: nn.Module, examples: Ids) -> tuple[Tensor, Tensor]:
        assert isinstance(trained, BertForSeq2SeqLM)
        total, words, _ = task.loss(
            trained, train, examples, label_smoothing=options.label_smoothing
        )
        # every word counts the same: an example's share of the step is its number of words
        return total / words_each, loop.counted(total, words)

    @torch.no_grad()
    def dev_loss(trained: BertForSeq2SeqLM) -> dict[str, float]:
        trained.eval()
        total, words, right = 0.0, 0, 0
        for examples in plan_once(dev.tokens, batch_tokens=options.batch_tokens):
            loss, count, hits = task.loss(trained, dev, examples)
            total, words, right = total + float(loss), words + count, right + int(hits)
        return {"loss": total / words, "word_accuracy": right / words}

    def texts_of(trained: BertForSeq2SeqLM, number: int, rows: int, search: Search) -> list[str]:
        encoded = sides[number].source
        if rows < len(encoded):
            encoded = task.encode(base.tokenizer, data.parts[number].sources[:rows],
                                  max_length=base.max_length)  # fmt: skip
            encoded = encoded if trimmed is None else trimmed.encode(encoded)
        written = task.write(trained, encoded, search=search, batch_tokens=2 * options.batch_tokens)
        return [task.decode(row[0], writer, settings.spacing) for row in written]

    def scores_of(texts: list[str], part: Pairs) -> tuple[dict[str, float], dict[str, str]]:
        return task.score(
            texts, part.all_references()[: len(texts)], task=options.task,
            language=options.language, stem=options.stem,
        )  # fmt: skip

    def evaluate(trained: nn.Module) -> dict[str, Any]:
        assert isinstance(trained, BertForSeq2SeqLM)
        scores = dev_loss(trained)
        rows = min(options.eval_rows or len(data.dev), len(data.dev))
        greedy = task.default_search(settings, trained.config, beams=1)
        return scores | scores_of(texts_of(trained, 1, rows, greedy), data.dev)[0]

    def finish(best: BertForSeq2SeqLM) -> tuple[Manifest, dict[str, Any]]:
        computing = for_inference(best, machine.device, machine.dtype)
        part, last = data.parts[-1], len(data.parts) - 1
        search = task.default_search(settings, computing.config)
        texts = texts_of(computing, last, len(part), search)
        scores, signatures = scores_of(texts, part)
        scored = f"{'test' if data.test else 'dev'} set, {len(part):,} rows, {options.beams} beams"
        manifest = Manifest(
            task=options.task, max_length=base.max_length, windows=False, stride=0,
            settings=settings.model_dump(),
            provenance={"rows": len(data.train), "scored_on": scored, "signatures": signatures},
        )  # fmt: skip
        record = {
            "scores": {**scores, "rows": len(part)}, "signatures": signatures,
            "examples": [
                {"id": part.id(i), "source": part.sources[i], "target": part.targets[i],
                 "written": texts[i]}
                for i in np.linspace(0, len(part) - 1, min(SHOWN, len(part))).astype(int).tolist()
            ],
        }  # fmt: skip
        return manifest, record

    def write_extra(folder: Path) -> None:
        if writer is not base.tokenizer:
            fit_tokenizer(writer, model.config.decoder)
            writer.save_pretrained(folder / TARGET_TOKENIZER)

    return Job(
        model=model, tokenizer=base.tokenizer, base=base.folder, tokens=train.tokens,
        batch_loss=batch_loss, evaluate=evaluate, metric=task.MAIN[options.task],
        names=lambda examples: [data.train.id(int(i)) for i in examples], finish=finish,
        trimmed=trimmed, lines=lines, write_extra=write_extra,
    )  # fmt: skip
