// The loss of words over a large vocabulary, forward and backward. Part of encoder.cpp.
//
// Called from filbert/model/native_words.py; the slow twin is `WordLoss` in filbert/model/word_loss.py, and
// tests/numerics/test_native_words.py holds the two to each other.
//
// No (rows, words) matrix is ever whole. Forward, some hundred words at a time: logits of all rows turn
// at once into sums of exponentials, the highest logit and that of the label. Of all that, one number a
// row is kept, the logarithm of the sum. Backward, logits are computed again and become the gradient G,
// softmax minus what is wanted, of which both products, G W and G^T X, are taken while it is near.
//
// Threads share words on the way forward, and rows, then words on the way back; every sum has one order.
#pragma once

#include "train_forward.hpp"

// 2^x, relative error 3e-6 and none where x is whole.
inline __m512 exp2_close(__m512 x) {
    const __m512 part = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);  // 0 ... 1
    __m512 y = _mm512_set1_ps(0.01342666f);
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.05224251f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.24128019f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.69304485f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.f));
    return _mm512_scalef_ps(y, x);
}

// `sweep` with its loops the other way round: 32 rows meet all panels, which are few and near.
template <class Take>
inline void sweep_across(const char* tiles, int rows, const char* panels, int steps, int count, Take take) {
    alignas(64) float blocks[2][32 * 32];
    const size_t next = size_t(steps) * TILE;
    int turn = 0, row = -1, column = 0;
    for (int r = 0; r < rows; r += 32) {
        const char* a = tiles + size_t(r / 16) * next;
        for (int panel = 0; panel < count; ++panel) {
            const char* b = panels + size_t(panel) * steps * 2 * TILE;
            const float* last = blocks[turn];
            turn ^= 1;
            if (row >= 0)
                product32<false>(a, next, b, steps, 32, nullptr, blocks[turn], 128, false, nullptr, 0,
                                 [&](int i) { take(last + i * 32, row + i, column); });
            else product32<false>(a, next, b, steps, 32, nullptr, blocks[turn], 128, false, nullptr, 0, [](int) {});
            row = r, column = panel;
        }
    }
    for (int i = 0; row >= 0 && i < 32; ++i) take(blocks[turn] + i * 32, row + i, column);
}

struct WordBatch {
    const bf16 *hidden, *weight, *bias;  // (rows, width), (words, width), (words,)
    const int64_t* labels;               // (rows,)
    int rows, words, width;              // width is a multiple of 32
    float smoothing;                     // the share of what is wanted that goes to all words alike
};

struct WordTrainer {
    std::mutex busy;
    pid_t owner = getpid();
    Memory tiles, turned, biases, state;  // of a batch
    Memory panels, gradient, by_hidden, by_weight;  // backward: of some words
    struct Scratch {
        Memory panels, rows;
    };
    std::vector<std::unique_ptr<Scratch>> scratch;
    Pool pool;  // its threads end before the memory above goes

    // Sums are taken over so many words at a time on the way forward.
    static constexpr int CHUNK = 512;
    static constexpr float LOG2E = 1.44269504089f, LN2 = 0.69314718056f;
    static constexpr float LOWEST = -1e30f, ROOM = 60.f;

    // The loss (summed, nats) and how many labels have the highest logit. kept: (rows,) logarithms of
    // the sums to the base of 2, for the way back.
    void forward(const WordBatch& b, float* kept, float* loss, int64_t* right, int threads) {
        look_for_fork();
        std::lock_guard<std::mutex> hold(busy);
        const int all = up(b.rows, 32), chunks = (b.words + CHUNK - 1) / CHUNK, steps = b.width / WIDE;
        prepare(b, threads);
        for (auto& s : scratch) s->panels.need(size_t(CHUNK) * b.width * 2), s->rows.need(size_t(all) * 48 * 4);
        state.need((size_t(chunks) * 4 + 1) * all * 4);
        float* const chosen = reinterpret_cast<float*>(state.data);
        float* const parts = chosen + all;  // of each chunk and row: reference, sum, highest, sum of logits
        Barrier barrier(threads);
        std::atomic<int> next{0};
        pool.run(threads, [&](int part) {
            const Tiles set_up;
            Scratch& own = *scratch[part];
            take_rows(b, part, threads);
            barrier.wait();
            for (int i; (i = next.fetch_add(1)) < chunks;) {
                const int first = i * CHUNK, count = (std::min(CHUNK, b.words - first) + 31) / 32;
                for (int p = 0; p < count; ++p)
                    pack_forward(some_words(b, first + p * 32), b.width, 0, 1, own.panels.data + size_t(p) * steps * 2 * TILE);
                add_exponentials(b, first, count, own, chosen, parts + size_t(i) * 4 * all);
            }
        });
        double sum = 0;
        *right = 0;
        for (int r = 0; r < all; r += 16) {
            auto part = [&](int chunk, int which) { return _mm512_load_ps(parts + (size_t(chunk) * 4 + which) * all + r); };
            __m512 most = part(0, 0), peak = part(0, 2), total = _mm512_setzero_ps(), logits = total;
            for (int i = 1; i < chunks; ++i) most = _mm512_max_ps(most, part(i, 0)), peak = _mm512_max_ps(peak, part(i, 2));
            for (int i = 0; i < chunks; ++i) {
                total = _mm512_fmadd_ps(part(i, 1), exp2_close(_mm512_sub_ps(part(i, 0), most)), total);
                logits = _mm512_add_ps(logits, part(i, 3));
            }
            alignas(64) float references[16], totals[16], peaks[16], means[16];
            _mm512_store_ps(references, most), _mm512_store_ps(totals, total), _mm512_store_ps(peaks, peak);
            _mm512_store_ps(means, _mm512_div_ps(logits, _mm512_set1_ps(float(b.words))));
            for (int i = 0; i < 16 && r + i < b.rows; ++i) {
                kept[r + i] = references[i] + std::log2(totals[i]);
                double cost = double(kept[r + i]) - chosen[r + i];
                if (b.smoothing) cost = (1. - b.smoothing) * cost + b.smoothing * (double(kept[r + i]) - means[i]);
                sum += cost, *right += chosen[r + i] >= peaks[i];
            }
        }
        *loss = float(sum * LN2);
    }

    // Gradients of `scale` times the loss; each may be null.
    void backward(const WordBatch& b, const float* kept, float scale, bf16* by_x, bf16* by_w, bf16* by_b, int threads) {
        look_for_fork();
        std::lock_guard<std::mutex> hold(busy);
        const int all = up(b.rows, 32), steps = b.width / WIDE;
        const int chunk = WIDE * std::max(16, threads);  // words at a time
        // rows at a time: their turned side stays near while a chunk's words take turns
        const int limit = std::max({(768 << 10) / (2 * b.width) / 32 * 32, 64 * threads, 32});
        prepare(b, threads);
        for (auto& s : scratch) s->rows.need(size_t(limit) * 64 + 4096);
        turned.need(size_t(all) * b.width * 2);
        panels.need(size_t(chunk) * b.width * 4), gradient.need(size_t(std::min(all, limit)) * chunk * 2);
        by_hidden.need(size_t(all) * b.width * 4), by_weight.need(size_t(chunk) * (b.width + 1) * 4 + 4096);
        const size_t packed = size_t(chunk) * b.width * 2;
        Barrier barrier(threads);
        pool.run(threads, [&](int part) {
            const Tiles set_up;
            Scratch& own = *scratch[part];
            auto share = [&](int count, int step, auto work) {  // of `count` rows, in steps
                const int pieces = (count + step - 1) / step;
                for (int i = TrainForward::share(pieces, part, threads); i < TrainForward::share(pieces, part + 1, threads); ++i)
                    work(i * step, std::min(step, count - i * step));
            };
            take_rows(b, part, threads);
            barrier.wait();
            for (int row = 0; row < all; row += limit) {
                const int rows = std::min(limit, all - row);
                share(rows, 32, [&](int r, int) {
                    turn_tiles(at_row(tiles, b, row + r), b.width, 32, at_row(turned, b, row), rows / 32, r / 32);
                });
            }
            for (int first = 0; first < b.words; first += chunk) {
                const int count = (std::min(chunk, b.words - first) + 31) / 32, wide = count * WIDE;
                share(count, 1, [&](int p, int) {
                    const bf16* some = some_words(b, first + p * 32);
                    pack_forward(some, b.width, 0, 1, panels.data + size_t(p) * steps * 2 * TILE);
                    pack_backward(some, b.width, 32, 0, steps, panels.data + packed, count, p);
                });
                for (int row = 0; row < all; row += limit) {
                    const int rows = std::min(limit, all - row);
                    barrier.wait();
                    const int turns = threads * ((rows + 256 * threads - 1) / (256 * threads));  // equal work for all
                    share(rows, up((rows + turns - 1) / turns, 32), [&](int r, int some) {
                        char* g = gradient.data + size_t(r) * wide * 2;
                        differ(b, row + r, some, first, count, kept, g);
                        if (by_x) add_up(g, some, panels.data + packed, count, steps, line(b, row + r), first > 0);
                    });
                    barrier.wait();
                    if (!by_w && !by_b) continue;
                    float* sums = reinterpret_cast<float*>(by_weight.data);
                    const Outer o{by_w ? at_row(turned, b, row) : nullptr, gradient.data, rows, wide, steps, sums + chunk, sums};
                    share(count, 1, [&](int p, int) {
                        outer_panel(o, p, limit, row == 0, own.rows.data);
                        if (row + rows == all) store_words(b, o, p, first, scale, by_w, by_b);
                    });
                }
            }
            barrier.wait();
            const __m512 factor = _mm512_set1_ps(scale);
            for (int r = TrainForward::share(b.rows, part, threads); by_x && r < TrainForward::share(b.rows, part + 1, threads); ++r)
                for (int i = 0; i < b.width; i += 32)
                    _mm512_storeu_si512(by_x + size_t(r) * b.width + i,
                                        pack_bf16(_mm512_mul_ps(_mm512_load_ps(line(b, r) + i), factor),
                                                  _mm512_mul_ps(_mm512_load_ps(line(b, r) + i + 16), factor)));
        });
    }

private:
    static char* at_row(const Memory& memory, const WordBatch& b, int row) { return memory.data + size_t(row) * b.width * 2; }
    float* line(const WordBatch& b, int row) const { return reinterpret_cast<float*>(by_hidden.data) + size_t(row) * b.width; }

    void look_for_fork() {
        if (owner == getpid()) return;
        new (&busy) std::mutex();
        new (&pool) Pool();
        owner = getpid();
    }

    // Biases to the base of 2; words that pad the last panel come out with a probability of 0.
    void prepare(const WordBatch& b, int threads) {
        while (int(scratch.size()) < threads) scratch.push_back(std::make_unique<Scratch>());
        tiles.need(size_t(up(b.rows, 32)) * b.width * 2);
        biases.need(size_t(up(b.words, 32)) * 4 + size_t(32) * b.width * 2);
        float* bias = reinterpret_cast<float*>(biases.data);
        for (int i = 0; i < up(b.words, 32); ++i) {
            const uint32_t bits = i < b.words ? uint32_t(b.bias[i]) << 16 : 0xff800000;
            std::memcpy(bias + i, &bits, 4);
            bias[i] *= LOG2E;
        }
        // the words of the last panel, if it is not full, with zeros below
        const int left = b.words % 32;
        char* last = biases.data + size_t(up(b.words, 32)) * 4;
        std::memset(last, 0, size_t(32) * b.width * 2);
        std::memcpy(last, b.weight + size_t(b.words - left) * b.width, size_t(left) * b.width * 2);
    }
    const float* bias_of(int word) const { return reinterpret_cast<const float*>(biases.data) + word; }

    const bf16* some_words(const WordBatch& b, int first) const {
        if (first + 32 <= b.words) return b.weight + size_t(first) * b.width;
        return reinterpret_cast<const bf16*>(biases.data + size_t(up(b.words, 32)) * 4);
    }

    void take_rows(const WordBatch& b, int part, int threads) const {
        const int all = up(b.rows, 32);
        for (int r = TrainForward::share(all, part, threads); r < TrainForward::share(all, part + 1, threads); ++r)
            for (int i = 0; i < b.width / WIDE; ++i)
                _mm512_store_si512(tile_row(tiles.data, b.width, r) + size_t(i) * TILE,
                                   row_or_zero(reinterpret_cast<const char*>(b.hidden + size_t(r) * b.width + i * 32), r < b.rows));
    }

    // One chunk's part of every row's sum. It counts from a reference that is near the highest logit so
    // far: raised only where a logit is further above it than there is room in a float.
    void add_exponentials(const WordBatch& b, int first, int count, const Scratch& own, float* chosen, float* parts) const {
        const int all = up(b.rows, 32);
        float* const states = reinterpret_cast<float*>(own.rows.data);  // of each row: highest, sum, sum of logits
        float* const references = parts;
        for (int r = 0; r < all; ++r) {
            _mm512_store_ps(states + r * 48, _mm512_set1_ps(-INFINITY));
            _mm512_store_ps(states + r * 48 + 16, _mm512_setzero_ps()), _mm512_store_ps(states + r * 48 + 32, _mm512_setzero_ps());
            references[r] = LOWEST;
        }
        const __m512 log2e = _mm512_set1_ps(LOG2E);
        const bool smooth = b.smoothing != 0.f;
        sweep_across(tiles.data, all, own.panels.data, b.width / WIDE, count, [&](const float* x, int row, int panel) {
            const int word = first + panel * 32;
            float* s = states + row * 48;
            const __m512 low = _mm512_fmadd_ps(_mm512_load_ps(x), log2e, _mm512_loadu_ps(bias_of(word)));
            const __m512 high = _mm512_fmadd_ps(_mm512_load_ps(x + 16), log2e, _mm512_loadu_ps(bias_of(word) + 16));
            const __m512 top = _mm512_max_ps(low, high);
            __m512 reference = _mm512_set1_ps(references[row]), sum = _mm512_load_ps(s + 16);
            if (__builtin_expect(_mm512_cmp_ps_mask(top, _mm512_add_ps(reference, _mm512_set1_ps(ROOM)), _CMP_GT_OQ), 0)) {
                const __m512 raised = _mm512_set1_ps(_mm512_reduce_max_ps(top));
                sum = _mm512_mul_ps(sum, exp2_close(_mm512_sub_ps(reference, raised)));
                reference = raised;
                references[row] = _mm512_cvtss_f32(raised);
            }
            const __m512 both = _mm512_add_ps(exp2_close(_mm512_sub_ps(low, reference)), exp2_close(_mm512_sub_ps(high, reference)));
            _mm512_store_ps(s + 16, _mm512_add_ps(sum, both));
            _mm512_store_ps(s, _mm512_max_ps(top, _mm512_load_ps(s)));
            if (smooth) {
                const __m512 total = _mm512_mask_add_ps(_mm512_load_ps(s + 32), mask_of(b.words - word), _mm512_load_ps(s + 32), low);
                _mm512_store_ps(s + 32, _mm512_mask_add_ps(total, mask_of(b.words - word - 16), total, high));
            }
            const uint64_t place = row < b.rows ? uint64_t(b.labels[row]) - uint64_t(word) : 32;
            if (__builtin_expect(place < 32, 0)) {
                alignas(64) float logits[32];
                _mm512_store_ps(logits, low), _mm512_store_ps(logits + 16, high);
                chosen[row] = logits[place];
            }
        });
        for (int r = 0; r < all; ++r) {
            parts[all + r] = _mm512_reduce_add_ps(_mm512_load_ps(states + r * 48 + 16));
            parts[2 * all + r] = _mm512_reduce_max_ps(_mm512_load_ps(states + r * 48));
            parts[3 * all + r] = smooth ? _mm512_reduce_add_ps(_mm512_load_ps(states + r * 48 + 32)) : 0.f;
        }
    }

    // Softmax minus what is wanted, of some rows and words, as tiles; zeros where rows are padding.
    void differ(const WordBatch& b, int row, int rows, int first, int count, const float* kept, char* g) const {
        const int wide = count * WIDE;
        const __m512 log2e = _mm512_set1_ps(LOG2E), spread = _mm512_set1_ps(b.smoothing / float(b.words));
        const float wanted = 1.f - b.smoothing;
        sweep_across(at_row(tiles, b, row), rows, panels.data, b.width / WIDE, count, [&](const float* x, int r, int panel) {
            if (row + r >= b.rows) return;
            const int word = first + panel * 32;
            const __m512 all = _mm512_set1_ps(kept[row + r]);
            __m512 low = _mm512_fmadd_ps(_mm512_load_ps(x), log2e, _mm512_sub_ps(_mm512_loadu_ps(bias_of(word)), all));
            __m512 high = _mm512_fmadd_ps(_mm512_load_ps(x + 16), log2e, _mm512_sub_ps(_mm512_loadu_ps(bias_of(word) + 16), all));
            low = _mm512_sub_ps(exp2_close(low), spread), high = _mm512_sub_ps(exp2_close(high), spread);
            const uint64_t place = uint64_t(b.labels[row + r]) - uint64_t(word);
            if (__builtin_expect(place < 32, 0)) {
                const __m512 less = _mm512_set1_ps(wanted);
                low = _mm512_mask_sub_ps(low, __mmask16(1u << place), low, less);
                high = _mm512_mask_sub_ps(high, __mmask16((1u << place) >> 16), high, less);
            }
            _mm512_store_si512(tile_row(g, wide, r) + size_t(panel) * TILE, pack_bf16(low, high));
        });
        zero_tile_rows(g, wide, std::min(rows, std::max(0, b.rows - row)), rows);
    }

    // Finished sums of 32 words.
    void store_words(const WordBatch& b, const Outer& o, int panel, int first, float scale, bf16* by_w, bf16* by_b) const {
        const __m512 factor = _mm512_set1_ps(scale);
        const int word = first + panel * 32, words = std::min(32, b.words - word);
        for (int i = 0; by_b && i < words; ++i) by_b[word + i] = to_bf16(o.bias[panel * 32 + i] * scale);
        for (int block = 0; by_w && block < o.blocks; ++block) {
            const float* sums = o.sums + (size_t(panel) * o.blocks + block) * 1024;
            for (int half = 0; half < 2; ++half) {  // 16 words
                alignas(64) float low[256], high[256];
                transpose16(reinterpret_cast<const char*>(sums + half * 16), 128, 16, reinterpret_cast<char*>(low));
                transpose16(reinterpret_cast<const char*>(sums + 512 + half * 16), 128, 16, reinterpret_cast<char*>(high));
                for (int i = 0; i < 16 && half * 16 + i < words; ++i)
                    _mm512_storeu_si512(by_w + size_t(word + half * 16 + i) * b.width + block * 32,
                                        pack_bf16(_mm512_mul_ps(_mm512_load_ps(low + i * 16), factor),
                                                  _mm512_mul_ps(_mm512_load_ps(high + i * 16), factor)));
            }
        }
    }
};
