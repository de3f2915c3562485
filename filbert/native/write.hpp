// A step of a decoder that writes many texts: a token of each goes in, the logits of its next word come
// out. Part of encoder.cpp.
//
// Called from filbert/model/native_write.py; the slow twin is `Cache.step` in filbert/model/cache.py, and
// tests/numerics/test_native_write.py holds the two to each other.
//
// Keys and values stay where the cache has them, (rows, heads, entries, head_size). A row is a source, with
// `beams` texts; a text looks only at the entries that it descends from, which a table names, and keys are
// read by one thread, head by head. Texts go through all layers in chunks, a thread each; products are of 32
// rows, the missing ones zero, so that no bit depends on who else is in a chunk.
#pragma once

#include "train_words.hpp"

// 2^x to the last bits of a float: Taylor on -0.5 ... 0.5.
inline __m512 exp2_near(__m512 x) {
    const __m512 part = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT);
    __m512 y = _mm512_set1_ps(1.5403530e-4f);
    for (const float term : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.f})
        y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(term));
    return _mm512_scalef_ps(y, _mm512_sub_ps(x, part));
}

inline __m512 add_lanes(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

// The sums of 16 vectors, in their order.
inline __m512 sums_of16(__m512* v) {
    for (int i = 0; i < 8; ++i)
        v[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 4; ++i) {
        const __m512d a = _mm512_castps_pd(v[2 * i]), b = _mm512_castps_pd(v[2 * i + 1]);
        v[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    return add_lanes(add_lanes(v[0], v[1]), add_lanes(v[2], v[3]));
}

inline __m512 load16(const float* p) { return _mm512_loadu_ps(p); }
inline __m512 load16(const bf16* p) { return load_bf16(p); }

// What texts look at: their own past or the source.
template <class T> struct Side {
    const T *keys, *values;
    size_t row, head;       // elements from a row to the next, from a head to the next
    const int64_t* slots;   // of each text, `room` apart: the entries that it sees; null: the first ones
    size_t room;
    const int64_t* counts;  // of each row: how many entries; null: `count`
    int count;
};

// Attention of one query, `size` values (a multiple of 32), at `entries` entries. scores: room for them
// and up to 15 more. put(column, 16 values, the next 16). The same entries `ahead` are fetched for the
// next head: they lie far apart, and nothing else would foresee them.
template <class T, class Put>
inline void look(const float* q, const T* keys, const T* values, const int64_t* slots, int entries, int size, float scale,
                 float* scores, size_t ahead, Put put) {
    auto place = [&](int entry) { return size_t(slots ? slots[entry] : entry) * size; };
    auto fetch = [&](const T* at) {
        const char* line = reinterpret_cast<const char*>(at + ahead);
        for (size_t i = 0; i < size * sizeof(T); i += 64) _mm_prefetch(line + i, _MM_HINT_T0);
    };
    __m512 top = _mm512_set1_ps(-INFINITY);
    for (int j = 0; j < entries; j += 16) {
        __m512 parts[16];
        for (int i = 0; i < 16; ++i) {
            const T* k = keys + place(std::min(j + i, entries - 1));  // the last one again counts for nothing
            fetch(k);
            __m512 even = _mm512_mul_ps(_mm512_loadu_ps(q), load16(k));
            __m512 odd = _mm512_mul_ps(_mm512_loadu_ps(q + 16), load16(k + 16));
            for (int d = 32; d < size; d += 32) {
                even = _mm512_fmadd_ps(_mm512_loadu_ps(q + d), load16(k + d), even);
                odd = _mm512_fmadd_ps(_mm512_loadu_ps(q + d + 16), load16(k + d + 16), odd);
            }
            parts[i] = _mm512_add_ps(even, odd);
        }
        const __m512 found = _mm512_mul_ps(sums_of16(parts), _mm512_set1_ps(scale));
        top = _mm512_max_ps(top, found);
        _mm512_storeu_ps(scores + j, found);
    }
    const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(top));
    __m512 total = _mm512_setzero_ps();
    for (int j = 0; j < entries; j += 16) {
        const __m512 odds = _mm512_maskz_mov_ps(mask_of(entries - j), exp2_near(_mm512_sub_ps(_mm512_loadu_ps(scores + j), most)));
        total = _mm512_add_ps(total, odds);
        _mm512_storeu_ps(scores + j, odds);
    }
    const __m512 inverse = _mm512_set1_ps(1.f / _mm512_reduce_add_ps(total));
    for (int d = 0; d < size; d += 32) {
        __m512 low = _mm512_setzero_ps(), high = low, low2 = low, high2 = low;
        auto add = [&](int entry, __m512& a, __m512& b) {
            const T* v = values + place(entry) + d;
            if (d == 0) fetch(v);
            const __m512 odds = _mm512_set1_ps(scores[entry]);
            a = _mm512_fmadd_ps(odds, load16(v), a), b = _mm512_fmadd_ps(odds, load16(v + 16), b);
        };
        int j = 0;
        for (; j + 1 < entries; j += 2) add(j, low, high), add(j + 1, low2, high2);
        if (j < entries) add(j, low, high);
        put(d, _mm512_mul_ps(_mm512_add_ps(low, low2), inverse), _mm512_mul_ps(_mm512_add_ps(high, high2), inverse));
    }
}

// The logarithm of the sum of the exponentials of `count` values.
inline float log_of_sum(const float* x, int count) {
    const __m512 least = _mm512_set1_ps(-INFINITY), log2e = _mm512_set1_ps(1.44269504089f);
    auto at = [&](int i) { return _mm512_mask_loadu_ps(least, mask_of(count - i), x + i); };
    __m512 top = least, total = _mm512_setzero_ps();
    for (int i = 0; i < count; i += 16) top = _mm512_max_ps(top, at(i));
    const float most = _mm512_reduce_max_ps(top);
    if (most == -INFINITY) return most;
    for (int i = 0; i < count; i += 16)
        total = _mm512_add_ps(total, exp2_near(_mm512_mul_ps(_mm512_sub_ps(at(i), _mm512_set1_ps(most)), log2e)));
    return most + std::log(_mm512_reduce_add_ps(total));
}

struct Candidate {
    float score;
    int beam, word;
};

// The `count` highest of logits + offset of a row's beams, (beams, words), best first; at most as many as
// there are words. room: for all of them. Equal ones come out as from torch.topk over the whole row, which
// decides what transformers writes: std::partial_sort looks at the first `count`, then at each that is
// higher than the lowest it has, so that the others may be left out of what it is given.
inline void best_of(const float* logits, const float* offsets, int beams, int words, int count, Candidate* room, float* scores,
                    int64_t* beam_of, int64_t* word_of) {
    int met = 0;
    auto meet = [&](float score, int beam, int word) {  // scores: the highest so far, in order
        int i = std::min(met, count);
        room[met++] = {score, beam, word};
        for (; i > 0 && scores[i - 1] < score; --i)
            if (i < count) scores[i] = scores[i - 1];
        if (i < count) scores[i] = score;
    };
    for (int i = 0; i < count; ++i) meet(logits[i] + offsets[0], 0, i);
    for (int beam = 0; beam < beams; ++beam) {
        const float* x = logits + size_t(beam) * words;
        const __m512 offset = _mm512_set1_ps(offsets[beam]);
        for (int i = beam ? 0 : count; i < words; i += 16) {
            const __mmask16 there = mask_of(words - i);
            const __m512 found = _mm512_add_ps(_mm512_maskz_loadu_ps(there, x + i), offset);
            unsigned higher = _mm512_mask_cmp_ps_mask(there, found, _mm512_set1_ps(scores[count - 1]), _CMP_GT_OQ);
            for (; higher; higher &= higher - 1) {
                const int word = i + __builtin_ctz(higher);
                const float score = x[word] + offsets[beam];
                if (score > scores[count - 1]) meet(score, beam, word);
            }
        }
    }
    std::partial_sort(room, room + count, room + met, [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
    for (int i = 0; i < count; ++i) scores[i] = room[i].score, beam_of[i] = room[i].beam, word_of[i] = room[i].word;
}

struct WriterLayer {
    Matrix own, out, ask, across, up, down;  // queries, keys and values of its own side; queries for the other
    std::vector<float> norm1, norm2, norm3;
};

struct Linear {
    const bf16 *weight, *bias;  // (outputs, inputs), (outputs,)
    int outputs;
};

struct Step {
    int texts, beams, step;           // step: tokens that each text has already
    int slots, room, rows, longest;   // entries of a row's own side, columns of `path`, rows there is room for, source tokens
    const bf16* hidden;               // (texts, hidden)
    const int64_t *path, *lengths;    // (texts, room) entries, (rows,) source tokens
    float *logits, *totals;           // (texts, words), and of each the logarithm of the sum of its exponentials
    const void* const* layers;        // of each: own keys and values (2, rows, heads, slots, head_size), keys, values
};

struct Writer : Parts {
    std::vector<WriterLayer> layers;
    Matrix transform, predict;
    std::vector<float> norm;
    int words = 0;
    struct Own : Scratch {
        Memory asked, scores, totals;  // queries as float32; of one query; of each text
    };
    std::mutex busy;
    std::vector<std::unique_ptr<Own>> scratch;
    Pool pool;  // its threads end before the memory above goes

    static constexpr int CHUNK = 256;  // texts
    static constexpr float LOG2E = 1.44269504089f, LN2 = 0.69314718056f;

    Writer(const int* given, float eps) : Parts(Shape(given, eps)), layers(shape.layers) {}

    static std::vector<float> floats(const bf16* from, int count, int wide, float rest) {
        std::vector<float> values(wide, rest);
        for (int i = 0; i < count; ++i) {
            const uint32_t bits = uint32_t(from[i]) << 16;
            std::memcpy(&values[i], &bits, 4);
        }
        return values;
    }

    static std::vector<float> norm_of(const bf16* gain, const bf16* shift, int size) {
        std::vector<float> both = floats(gain, size, size, 0.f), second = floats(shift, size, size, 0.f);
        both.insert(both.end(), second.begin(), second.end());
        return both;
    }

    // One matrix of these, side by side; rows that the last one lacks to a whole panel are zero and their
    // bias -inf.
    static void take(Matrix& into, int inputs, std::initializer_list<Linear> parts) {
        into.steps = inputs / WIDE, into.count = 0, into.bias.clear();
        for (const Linear& part : parts) into.count += up(part.outputs, WIDE) / WIDE;
        const size_t panel = size_t(into.steps) * 2 * TILE;
        into.panels.need(panel * into.count);
        char* to = into.panels.data;
        for (const Linear& part : parts) {
            const int whole = part.outputs / WIDE, rest = part.outputs % WIDE;
            pack_forward(part.weight, inputs, 0, whole, to);
            to += panel * whole;
            if (rest) {
                std::vector<bf16> last(size_t(WIDE) * inputs, 0);
                std::copy_n(part.weight + size_t(whole) * WIDE * inputs, size_t(rest) * inputs, last.begin());
                pack_forward(last.data(), inputs, 0, 1, to);
                to += panel;
            }
            const auto bias = floats(part.bias, part.outputs, up(part.outputs, WIDE), -INFINITY);
            into.bias.insert(into.bias.end(), bias.begin(), bias.end());
        }
    }

    void take_layer(int number, const bf16* const* w) {
        WriterLayer& l = layers[number];
        const int hidden = shape.hidden, inner = shape.inner;
        take(l.own, hidden, {{w[0], w[1], hidden}, {w[2], w[3], hidden}, {w[4], w[5], hidden}});
        take(l.out, hidden, {{w[6], w[7], hidden}});
        take(l.ask, hidden, {{w[8], w[9], hidden}});
        take(l.across, hidden, {{w[10], w[11], hidden}});
        take(l.up, hidden, {{w[12], w[13], inner}});
        take(l.down, inner, {{w[14], w[15], hidden}});
        l.norm1 = norm_of(w[16], w[17], hidden), l.norm2 = norm_of(w[18], w[19], hidden), l.norm3 = norm_of(w[20], w[21], hidden);
    }

    void take_words(int count, const bf16* const* w) {
        words = count;
        take(transform, shape.hidden, {{w[0], w[1], shape.hidden}});
        norm = norm_of(w[2], w[3], shape.hidden);
        take(predict, shape.hidden, {{w[4], w[5], count}});
    }

    // Attention of `count` texts from the `from`th on. asked: their queries, `stride` apart; put(text,
    // column, 16 values, the next 16).
    template <class T, class Put>
    void attend(const Side<T>& side, const float* asked, size_t stride, int beams, int from, int count, float* scores, Put put) const {
        const int size = shape.head_size;
        const float scale = LOG2E / std::sqrt(float(size));
        for (int first = from, next; first < from + count; first = next) {
            const int row = first / beams;
            next = std::min((row + 1) * beams, from + count);
            const int entries = side.counts ? int(side.counts[row]) : side.count;
            for (int head = 0; head < shape.heads; ++head) {
                const size_t place = size_t(row) * side.row + size_t(head) * side.head;
                const size_t ahead = head + 1 < shape.heads ? side.head : 0;
                for (int text = first; text < next; ++text)
                    look(asked + size_t(text - from) * stride + head * size, side.keys + place, side.values + place,
                         side.slots ? side.slots + size_t(text) * side.room : nullptr, entries, size, scale, scores, ahead,
                         [&](int d, __m512 low, __m512 high) { put(text, head * size + d, low, high); });
            }
        }
    }

    // The texts from the `from`th on through all layers and the word head.
    void compute(const Step& b, Own& s, int from, int count) const {
        const Tiles set_up;
        const int all = up(count, 32), hidden = shape.hidden, size = shape.head_size, panels = hidden / WIDE;
        const size_t head = size_t(b.slots) * size, row = head * shape.heads;
        float* const asked = reinterpret_cast<float*>(s.asked.data);
        float* const scores = reinterpret_cast<float*>(s.scores.data);
        for (int r = 0; r < all; ++r)
            for (int i = 0; i < panels; ++i)
                _mm512_store_si512(state(s, r) + size_t(i) * TILE,
                                   row_or_zero(reinterpret_cast<const char*>(b.hidden + size_t(from + r) * hidden + i * WIDE), r < count));
        zero_tile_rows(s.context.data, hidden, count, all);
        auto put = [&](int text, int column, __m512 low, __m512 high) {
            _mm512_store_si512(tile_row(s.context.data, hidden, text - from) + size_t(column / WIDE) * TILE, pack_bf16(low, high));
        };
        auto ask = [&](const auto& sums, int i, int r, int panel) {
            float* to = asked + size_t(r + i) * hidden + panel * WIDE;
            _mm512_store_ps(to, sums.low(i)), _mm512_store_ps(to + 16, sums.high(i));
        };
        for (int number = 0; number < shape.layers; ++number) {
            const WriterLayer& l = layers[number];
            bf16* const own = static_cast<bf16*>(const_cast<void*>(b.layers[3 * number]));
            const size_t values = row * b.rows;
            multiply<false>(s, s.states.data, all, l.own, 0, l.own.count, [&](const auto& sums, int i, int r, int panel) {
                if (panel < panels) return ask(sums, i, r, panel);
                if (r + i >= count) return;
                const bool value = panel >= 2 * panels;
                const int text = from + r + i, column = (panel - (value ? 2 : 1) * panels) * WIDE;
                bf16* to = own + (value ? values : 0) + size_t(text / b.beams) * row + size_t(column / size) * head;
                _mm512_storeu_si512(to + (size_t(b.step) * b.beams + text % b.beams) * size + column % size,
                                    pack_bf16(sums.low(i), sums.high(i)));
            });
            const Side<bf16> past{own, own + values, row, head, b.path, size_t(b.room), nullptr, b.step + 1};
            attend(past, asked, hidden, b.beams, from, count, scores, put);
            sum(s, l.out, s.context.data, all, 0, l.out.count);
            add_and_norm(s, l.out, l.norm1, 0, count, s.rows[0].data(), nullptr);
            multiply<false>(s, s.states.data, all, l.ask, 0, l.ask.count, ask);
            const size_t far = size_t(b.longest) * size;
            const Side<bf16> source{static_cast<const bf16*>(b.layers[3 * number + 1]), static_cast<const bf16*>(b.layers[3 * number + 2]),
                                    far * shape.heads, far, nullptr, 0, b.lengths, 0};
            attend(source, asked, hidden, b.beams, from, count, scores, put);
            sum(s, l.across, s.context.data, all, 0, l.across.count);
            add_and_norm(s, l.across, l.norm2, 0, count, s.rows[0].data(), nullptr);
            feed(s, l.up, l.down, all);
            add_and_norm(s, l.down, l.norm3, 0, count, s.rows[0].data(), nullptr);
        }
        float* const values = reinterpret_cast<float*>(s.sums.data);
        multiply<true>(s, s.states.data, all, transform, 0, transform.count, [&](const auto& sums, int i, int r, int panel) {
            float* to = values + size_t(r + i) * hidden + panel * WIDE;
            _mm512_store_ps(to, activate(sums.low(i), shape.activation)), _mm512_store_ps(to + 16, activate(sums.high(i), shape.activation));
        });
        for (int r = 0; r < count; ++r) normalise(values + size_t(r) * hidden, norm.data(), state(s, r), nullptr);
        predict_words(b, s, from, count, all);
    }

    // Logits, and while they are near their exponentials, added up above a reference that is raised where
    // a logit would leave the range of a float.
    void predict_words(const Step& b, Own& s, int from, int count, int all) const {
        float* const references = reinterpret_cast<float*>(s.totals.data);
        float* const totals = references + all;  // 16 of each text
        std::fill(references, references + all, WordTrainer::LOWEST);
        std::fill(totals, totals + size_t(all) * 16, 0.f);
        const __m512 log2e = _mm512_set1_ps(LOG2E);
        multiply<true>(s, s.states.data, all, predict, 0, predict.count, [&](const auto& sums, int i, int r, int panel) {
            const int text = r + i, left = words - panel * WIDE;
            if (text >= count) return;
            __m512 low = sums.low(i), high = sums.high(i);
            float* to = b.logits + size_t(from + text) * words + panel * WIDE;
            if (left >= WIDE) _mm512_storeu_ps(to, low), _mm512_storeu_ps(to + 16, high);
            else _mm512_mask_storeu_ps(to, mask_of(left), low), _mm512_mask_storeu_ps(to + 16, mask_of(left - 16), high);
            low = _mm512_mul_ps(low, log2e), high = _mm512_mul_ps(high, log2e);
            __m512 reference = _mm512_set1_ps(references[text]), total = _mm512_load_ps(totals + text * 16);
            const __m512 top = _mm512_max_ps(low, high);
            if (__builtin_expect(_mm512_cmp_ps_mask(top, _mm512_add_ps(reference, _mm512_set1_ps(WordTrainer::ROOM)), _CMP_GT_OQ), 0)) {
                const __m512 raised = _mm512_set1_ps(_mm512_reduce_max_ps(top));
                total = _mm512_mul_ps(total, exp2_close(_mm512_sub_ps(reference, raised)));
                reference = raised, references[text] = _mm512_cvtss_f32(raised);
            }
            const __m512 odds = _mm512_add_ps(exp2_close(_mm512_sub_ps(low, reference)), exp2_close(_mm512_sub_ps(high, reference)));
            _mm512_store_ps(totals + text * 16, _mm512_add_ps(total, odds));
        });
        for (int r = 0; r < count; ++r)
            b.totals[from + r] = LN2 * (references[r] + std::log2(_mm512_reduce_add_ps(_mm512_load_ps(totals + r * 16))));
    }

    // Texts in chunks, a chunk at a time on each thread. work(scratch, first text, how many) may not throw.
    template <class Work> void share(int texts, int most, int entries, int threads, Work work) {
        std::lock_guard<std::mutex> hold(busy);
        const int chunk = std::min(most, up((texts + threads - 1) / threads, 32));
        const int chunks = (texts + chunk - 1) / chunk;
        threads = std::min(threads, chunks);
        while (int(scratch.size()) < threads) scratch.push_back(std::make_unique<Own>());
        for (int i = 0; i < threads; ++i) {
            const size_t all = up(chunk, 32);
            scratch[i]->scores.need(size_t(up(entries, 16)) * 4);
            if (words) {
                prepare(*scratch[i], chunk, 32, 1);
                scratch[i]->asked.need(all * shape.hidden * 4), scratch[i]->totals.need(all * 17 * 4);
            }
        }
        std::atomic<int> next{0};
        pool.run(threads, [&](int number) {
            for (int i; (i = next.fetch_add(1)) < chunks;) work(*scratch[number], i * chunk, std::min(chunk, texts - i * chunk));
        });
    }

    void step(const Step& b, int threads) {
        share(b.texts, CHUNK, std::max(b.step + 1, b.longest), threads, [&](Own& s, int from, int count) { compute(b, s, from, count); });
    }

    void totals(const float* logits, int texts, int count, float* out, int threads) {
        share(texts, CHUNK, 0, threads, [&](Own&, int from, int some) {
            for (int text = from; text < from + some; ++text) out[text] = log_of_sum(logits + size_t(text) * count, count);
        });
    }

    // sizes: rows, beams, words, count.
    void best(const int* sizes, const float* logits, const float* offsets, float* scores, int64_t* beams, int64_t* words_of, int threads) {
        const int each = sizes[1], many = sizes[2], count = sizes[3];
        const int room = each * many * int(sizeof(Candidate) / sizeof(float));
        share(sizes[0], CHUNK, room, threads, [&](Own& s, int from, int some) {
            for (int row = from; row < from + some; ++row)
                best_of(logits + size_t(row) * each * many, offsets + size_t(row) * each, each, many, count,
                        reinterpret_cast<Candidate*>(s.scores.data), scores + size_t(row) * count, beams + size_t(row) * count,
                        words_of + size_t(row) * count);
        });
    }

    // The attention alone, in float32. asked: (texts, ...) rows `stride` apart; out: (texts, hidden).
    void attend_all(const Side<float>& side, const float* asked, size_t stride, int texts, int beams, int entries, float* out, int threads) {
        share(texts, texts, entries, threads, [&](Own& s, int from, int count) {
            attend(side, asked + size_t(from) * stride, stride, beams, from, count, reinterpret_cast<float*>(s.scores.data),
                   [&](int text, int column, __m512 low, __m512 high) {
                       float* to = out + size_t(text) * shape.hidden + column;
                       _mm512_storeu_ps(to, low), _mm512_storeu_ps(to + 16, high);
                   });
        });
    }
};
