// The encoder in float32, for AVX-512 without AMX or where float32 is asked for. Part of encoder.cpp.
#pragma once

#include "layer.hpp"
#include "runner.hpp"

constexpr int DEEP = 12;  // rows of a product that are computed together: 24 sums in registers

// 2^x for x <= 0, relative error 2e-7.
inline __m512 exp2_exact(__m512 x) {
    const __m512 part = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT);  // -1/2 ... 1/2
    __m512 y = _mm512_set1_ps(1.5403530e-4f);
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.3333558e-3f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(9.6181291e-3f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(5.5504109e-2f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(2.4022651e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(6.9314718e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.f));
    return _mm512_scalef_ps(y, _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT));
}

// x * Phi(x), Phi by Abramowitz and Stegun 7.1.26: error of erf 1.5e-7.
inline __m512 gelu_exact(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.f), z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 p = _mm512_set1_ps(1.061405429f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
    const __m512 fall = exp2_exact(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-1.44269504f)));
    const __m512 beyond = _mm512_mul_ps(_mm512_mul_ps(p, t), fall);  // 1 - erf |z|
    // x Phi(x) = max(x, 0) - |x| (1 - erf |z|) / 2
    return _mm512_fnmadd_ps(_mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.5f)), beyond,
                            _mm512_max_ps(x, _mm512_setzero_ps()));
}

// The approximation by tanh: x / (1 + e^(-2u)), written with e^(-2|u|) so that nothing overflows.
inline __m512 gelu_tanh_exact(__m512 x) {
    const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    const __m512 u = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
    const __m512 z = _mm512_mul_ps(u, _mm512_set1_ps(1.5957691216f * 1.44269504f));
    const __m512 small = exp2_exact(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(z)));
    const __m512 share = _mm512_div_ps(_mm512_set1_ps(1.f), _mm512_add_ps(_mm512_set1_ps(1.f), small));
    const __mmask16 positive = _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_mov_ps(_mm512_mul_ps(small, share), positive, share));
}

// A linear layer's weight in panels of 32 columns, row by row.
struct Panels {
    Memory data;
    std::vector<float> bias;  // padded to the panels
    int rows = 0, count = 0;  // rows, panels
    const float* panel(int number) const { return reinterpret_cast<const float*>(data.data) + size_t(number) * rows * WIDE; }
};

// As `pack` for tiles: `column(n)` and `row(k)` say what stands at a place, -1 for padding; `factor(n)`
// is what a column is multiplied by.
template <class Column, class Row, class Factor>
void pack_panels(Panels& into, int rows, int columns, const float* weight, const float* bias, int given_rows,
                 Column column, Row row, Factor factor) {
    into.rows = rows, into.count = columns / WIDE;
    into.data.need(size_t(rows) * columns * 4);
    into.bias.assign(columns, 0.f);
    float* data = reinterpret_cast<float*>(into.data.data);
    each_column(into.bias, weight, bias, given_rows, column, factor, [&](int n, const float* given, float times) {
        for (int k = 0; k < rows; ++k) {
            const int source = row(k);
            if (source >= 0) data[(size_t(n / WIDE) * rows + k) * WIDE + n % WIDE] = given[source] * times;
        }
    });
}

// A block of a product: rows `a` by 32 columns of b, whose halves lie `gap` apart, and its sums. What is
// needed later is fetched from `ahead` on, `stride` bytes a step.
struct Block {
    const float* a;
    size_t next_a;
    const float* b;
    size_t next_b, gap;
    int depth;
    const char* ahead = nullptr;
    size_t stride = 0;
    __m512 low[DEEP], high[DEEP];
};

// Sums run over the depth in order whatever the count of rows, so a row's result does not depend on
// those beside it.
template <int count> void multiply_rows(Block& block) {
    const float *a = block.a, *b = block.b;
    const size_t next_a = block.next_a, next_b = block.next_b, gap = block.gap;
    __m512 low[count], high[count];
#pragma GCC unroll 12
    for (int r = 0; r < count; ++r) low[r] = high[r] = _mm512_setzero_ps();
    const char* ahead = block.ahead;
    for (int k = 0; k < block.depth; ++k, b += next_b, ahead += block.stride) {
        _mm_prefetch(ahead, _MM_HINT_T1);
        const __m512 b1 = _mm512_loadu_ps(b), b2 = _mm512_loadu_ps(b + gap);
#pragma GCC unroll 12
        for (int r = 0; r < count; ++r) {
            const __m512 x = _mm512_set1_ps(a[r * next_a + k]);
            low[r] = _mm512_fmadd_ps(x, b1, low[r]), high[r] = _mm512_fmadd_ps(x, b2, high[r]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < count; ++r) block.low[r] = low[r], block.high[r] = high[r];
}

// The same for 1 to DEEP rows.
inline void multiply_rows(int count, Block& block) {
    static constexpr void (*ways[DEEP])(Block&) = {
        multiply_rows<1>, multiply_rows<2>, multiply_rows<3>, multiply_rows<4>, multiply_rows<5>, multiply_rows<6>,
        multiply_rows<7>, multiply_rows<8>, multiply_rows<9>, multiply_rows<10>, multiply_rows<11>, multiply_rows<12>,
    };
    ways[count - 1](block);
}

struct PlainLayer {
    Panels qkv, out, up, down;
    std::vector<float> norm1, norm2;  // gain, then shift, each padded with zeros
};

// Of a chunk. Rows lie a cache line further apart than they are wide: rows of 4 KB would all fall
// into the same few places of the cache.
struct PlainScratch {
    Memory states, context, inner, sums;
    std::vector<std::unique_ptr<Memory>> attention;  // of each thread: all that one head needs
};

struct PlainEncoder : Runner<PlainEncoder, PlainScratch> {
    Shape shape;
    std::vector<PlainLayer> layers;

    PlainEncoder(const int* given, float eps) : shape(given, eps), layers(shape.layers) {}

    static int apart(int width) { return width + 16; }
    static float* row(const Memory& memory, int width, int number) {
        return reinterpret_cast<float*>(memory.data) + size_t(number) * apart(width);
    }

    void embeddings(const float* w, const float* p, const float* k, const float* gain, const float* shift) override {
        words = w, places = p, kinds = k;
        norm0 = padded_norm(gain, shift, shape.hidden, shape.wide_hidden);
    }

    // A layer that this failed for must not be computed with.
    void layer(int number, const float* const* w, int) override {
        const Shape& s = shape;
        const Places at(s);
        PlainLayer& layer = layers[number];
        pack_panels(layer.qkv, s.hidden, 3 * s.context, w[0], w[1], s.hidden, at.of_three(), at.same(s.hidden), at.query_scale(1.f));
        pack_panels(layer.out, s.context, s.wide_hidden, w[2], w[3], s.heads * s.head_size, at.same(s.hidden), at.of_heads(), at.one());
        pack_panels(layer.up, s.hidden, s.wide_inner, w[4], w[5], s.hidden, at.same(s.inner), at.same(s.hidden), at.one());
        pack_panels(layer.down, s.inner, s.wide_hidden, w[6], w[7], s.inner, at.same(s.hidden), at.same(s.inner), at.one());
        layer.norm1 = padded_norm(w[8], w[9], s.hidden, s.wide_hidden);
        layer.norm2 = padded_norm(w[10], w[11], s.hidden, s.wide_hidden);
    }

    void prepare(PlainScratch& s, int rows, int longest, int threads) const {
        const size_t r = rows;
        s.states.need(r * apart(shape.wide_hidden) * 4);
        s.context.need(r * apart(shape.context) * 4);
        s.inner.need(r * apart(shape.wide_inner) * 4);
        s.sums.need(r * apart(shape.wide_hidden) * 4);
        const size_t keys = up(longest, WIDE);
        while (int(s.attention.size()) < threads) s.attention.push_back(std::make_unique<Memory>());
        for (auto& memory : s.attention)
            memory->need((r * apart(shape.row()) + keys * shape.wide_head + DEEP * apart(int(keys))) * 4);
    }

    // Rows of `a` by the panels `from` to `to`; what comes of it, the bias added, goes to
    // `take(row, panel, low, high)`.
    template <class Take>
    void multiply(const float* a, size_t next_a, int rows, const Panels& m, int from, int to, Take take) const {
        Block block{a, next_a, nullptr, WIDE, 16, m.rows};
        // the next panel comes from memory while this one is multiplied, a part beside each block of rows
        block.stride = size_t(WIDE) * 4 * DEEP / std::max(rows, DEEP);
        for (int panel = from; panel < to; ++panel) {
            block.b = m.panel(panel);
            block.ahead = reinterpret_cast<const char*>(m.panel(panel + 1));
            const __m512 bias1 = _mm512_loadu_ps(&m.bias[panel * WIDE]), bias2 = _mm512_loadu_ps(&m.bias[panel * WIDE + 16]);
            for (int r = 0; r < rows; r += DEEP) {
                const int count = std::min(DEEP, rows - r);
                block.a = a + size_t(r) * next_a;
                multiply_rows(count, block);
                block.ahead += block.stride * m.rows;
                for (int i = 0; i < count; ++i)
                    take(r + i, panel, _mm512_add_ps(block.low[i], bias1), _mm512_add_ps(block.high[i], bias2));
            }
        }
    }

    // Norm of a row; `into` may be the row itself.
    void normalise(const float* row, const std::vector<float>& norm, float* into) const {
        const int wide = shape.wide_hidden, size = shape.hidden;
        __m512 total = _mm512_setzero_ps();
        for (int i = 0; i < wide; i += 16) total = _mm512_add_ps(total, _mm512_loadu_ps(row + i));
        const __m512 centre = _mm512_set1_ps(_mm512_reduce_add_ps(total) / size);
        total = _mm512_setzero_ps();
        for (int i = 0; i < wide; i += 16) {
            const __m512 d = _mm512_maskz_sub_ps(mask_of(size - i), _mm512_loadu_ps(row + i), centre);
            total = _mm512_fmadd_ps(d, d, total);
        }
        const __m512 factor = _mm512_set1_ps(1.f / std::sqrt(_mm512_reduce_add_ps(total) / size + shape.eps));
        for (int i = 0; i < wide; i += 16) {
            const __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + i), centre), factor);
            _mm512_storeu_ps(into + i, _mm512_fmadd_ps(x, _mm512_loadu_ps(&norm[i]), _mm512_loadu_ps(&norm[wide + i])));
        }
    }

    void embed(const Input& in, const Chunk& chunk, PlainScratch& s, int begin, int end) const {
        const int size = shape.hidden;
        int text = chunk.first, place = 0;
        for (int t = 0; t < end; ++t) {
            if (t >= begin) {
                float* into = row(s.states, shape.wide_hidden, t);
                const size_t token = size_t(chunk.begin) + t;
                std::fill(into + size, into + shape.wide_hidden, 0.f);
                if (in.hidden) std::memcpy(into, in.hidden + token * size, size_t(size) * 4);
                else embed_row(in, token, place, size, into), normalise(into, norm0, into);
            }
            if (++place == in.lengths[text]) ++text, place = 0;
        }
    }

    // Softmax of Q K^T, times V, of one head of one text. q: its first row of queries, keys and values;
    // the context goes to rows from `to` on. With `first` only the first query is asked.
    void attend(PlainScratch& s, float* memory, const float* q, int length, int head, int to, bool first) const {
        const int size = shape.wide_head, keys = up(length, WIDE);
        const size_t next = apart(shape.row());
        const float *k = q + size, *v = k + size;
        float* kept = memory;  // of 16 keys the first numbers, then the second ...
        float* scores = kept + size_t(keys) * size;
        for (int j = 0; j < keys; j += 16)
            for (int d = 0; d < size; d += 16)
                transpose16(reinterpret_cast<const char*>(k + size_t(j) * next + d), next * 4, std::max(0, std::min(16, length - j)),
                            reinterpret_cast<char*>(kept + size_t(j) * size + size_t(d) * 16));
        const int queries = first ? 1 : length;
        for (int begin = 0; begin < queries; begin += DEEP) {
            const int count = std::min(DEEP, queries - begin);
            Block block{q + size_t(begin) * next, next, nullptr, 16, size_t(size) * 16, shape.head_size};
            for (int j = 0; j < keys; j += WIDE) {
                block.b = kept + size_t(j) * size, block.ahead = reinterpret_cast<const char*>(block.b);
                multiply_rows(count, block);
                for (int i = 0; i < count; ++i) {
                    float* line = scores + size_t(i) * apart(keys) + j;
                    _mm512_storeu_ps(line, block.low[i]), _mm512_storeu_ps(line + 16, block.high[i]);
                }
            }
            __m512 inverse[DEEP];
            for (int i = 0; i < count; ++i) {
                float* line = scores + size_t(i) * apart(keys);
                __m512 top = _mm512_set1_ps(-3.4e38f), total = _mm512_setzero_ps();
                for (int j = 0; j < length; j += 16)
                    top = _mm512_mask_max_ps(top, mask_of(length - j), top, _mm512_loadu_ps(line + j));
                const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(top));
                for (int j = 0; j < length; j += 16) {
                    const __m512 x = _mm512_maskz_mov_ps(mask_of(length - j), exp2_exact(_mm512_sub_ps(_mm512_loadu_ps(line + j), most)));
                    total = _mm512_add_ps(total, x);
                    _mm512_storeu_ps(line + j, x);
                }
                inverse[i] = _mm512_set1_ps(1.f / _mm512_reduce_add_ps(total));
            }
            Block sum{scores, size_t(apart(keys)), nullptr, next, 16, length};
            for (int d = 0; d < size; d += WIDE) {
                sum.b = v + d, sum.ahead = reinterpret_cast<const char*>(sum.b);
                multiply_rows(count, sum);
                for (int i = 0; i < count; ++i) {
                    float* place = row(s.context, shape.context, to + begin + i) + head * size + d;
                    _mm512_storeu_ps(place, _mm512_mul_ps(sum.low[i], inverse[i]));
                    _mm512_storeu_ps(place + 16, _mm512_mul_ps(sum.high[i], inverse[i]));
                }
            }
        }
    }

    // The inner half of the feed-forward part, panels `from` to `to`.
    template <__m512 act(__m512)> void widen(PlainScratch& s, const Panels& m, int rows, int from, int to) const {
        multiply(row(s.states, shape.wide_hidden, 0), apart(shape.wide_hidden), rows, m, from, to,
                 [&](int r, int panel, __m512 low, __m512 high) {
                     float* into = row(s.inner, shape.wide_inner, r) + panel * WIDE;
                     _mm512_storeu_ps(into, act(low)), _mm512_storeu_ps(into + 16, act(high));
                 });
    }

    // A product and the states before it, to the sums.
    void add(PlainScratch& s, const Memory& input, int width, int rows, const Panels& m, int from, int to) const {
        multiply(row(input, width, 0), apart(width), rows, m, from, to, [&](int r, int panel, __m512 low, __m512 high) {
            const float* before = row(s.states, shape.wide_hidden, r) + panel * WIDE;
            float* into = row(s.sums, shape.wide_hidden, r) + panel * WIDE;
            _mm512_storeu_ps(into, _mm512_add_ps(low, _mm512_loadu_ps(before)));
            _mm512_storeu_ps(into + 16, _mm512_add_ps(high, _mm512_loadu_ps(before + 16)));
        });
    }

    // The norm of the sums, to the states.
    void settle_states(PlainScratch& s, const std::vector<float>& norm, int begin, int end) const {
        for (int r = begin; r < end; ++r)
            normalise(row(s.sums, shape.wide_hidden, r), norm, row(s.states, shape.wide_hidden, r));
    }

    static __m512 relu(__m512 x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }  // the second if it is no number

    // All layers of a chunk, by `parts` threads together of which this is number `part`. Like all that
    // threads of a pool do, it asks for no memory: an exception there would end the process.
    void compute(const Input& in, const Chunk& chunk, PlainScratch& s, Barrier& barrier, int part) {
        const int parts = barrier.count, texts = chunk.last - chunk.first, wide = shape.wide_hidden;
        int rows = chunk.tokens;
        auto share = [&](int all, int number) { return share_of(all, number, parts); };
        embed(in, chunk, s, share(rows, part), share(rows, part + 1));
        barrier.wait();
        float* memory = reinterpret_cast<float*>(s.attention[part]->data);
        float* rest = memory + size_t(rows) * apart(shape.row());
        const int of_head = shape.row() / WIDE;  // panels
        for (int number = 0; number < shape.layers; ++number) {
            const PlainLayer& layer = layers[number];
            const bool last = number + 1 == shape.layers, first = last && in.rows == FIRST;
            for (int head = share(shape.heads, part); head < share(shape.heads, part + 1); ++head) {
                multiply(row(s.states, wide, 0), apart(wide), rows, layer.qkv, head * of_head, (head + 1) * of_head,
                         [&](int r, int panel, __m512 low, __m512 high) {
                             float* into = memory + size_t(r) * apart(shape.row()) + (panel - head * of_head) * WIDE;
                             _mm512_storeu_ps(into, low), _mm512_storeu_ps(into + 16, high);
                         });
                const float* q = memory;
                for (int text = 0, at = 0; text < texts; ++text) {
                    const int length = in.lengths[chunk.first + text];
                    attend(s, rest, q, length, head, first ? text : at, first);
                    at += length, q += size_t(length) * apart(shape.row());
                }
            }
            barrier.wait();
            if (first) {  // from here on only the first tokens count: bring their states together
                if (part == 0)
                    for (int t = 0, at = 0; t < texts; at += in.lengths[chunk.first + t++])
                        if (at != t) std::memcpy(row(s.states, wide, t), row(s.states, wide, at), size_t(wide) * 4);
                rows = texts;
                barrier.wait();
            }
            add(s, s.context, shape.context, rows, layer.out, share(layer.out.count, part), share(layer.out.count, part + 1));
            barrier.wait();
            settle_states(s, layer.norm1, share(rows, part), share(rows, part + 1));
            barrier.wait();
            const int from = share(layer.up.count, part), to = share(layer.up.count, part + 1);
            if (shape.activation == GELU) widen<gelu_exact>(s, layer.up, rows, from, to);
            else if (shape.activation == GELU_TANH) widen<gelu_tanh_exact>(s, layer.up, rows, from, to);
            else widen<relu>(s, layer.up, rows, from, to);
            barrier.wait();
            add(s, s.inner, shape.wide_inner, rows, layer.down, share(layer.down.count, part), share(layer.down.count, part + 1));
            barrier.wait();
            settle_states(s, layer.norm2, share(rows, part), share(rows, part + 1));
            barrier.wait();
        }
        float* out = in.place(chunk, shape.hidden);
        if (in.rows != MEAN) {
            for (int r = share(rows, part); r < share(rows, part + 1); ++r)
                std::memcpy(out + size_t(r) * shape.hidden, row(s.states, wide, r), size_t(shape.hidden) * 4);
        } else {
            for (int text = 0, r = 0; text < texts; ++text) {
                const int length = in.lengths[chunk.first + text];
                if (text >= share(texts, part) && text < share(texts, part + 1)) {
                    float* sum = out + size_t(text) * shape.hidden;
                    std::fill(sum, sum + shape.hidden, 0.f);
                    for (int i = 0; i < length; ++i)
                        for (int c = 0; c < shape.hidden; ++c) sum[c] += row(s.states, wide, r + i)[c];
                    for (int c = 0; c < shape.hidden; ++c) sum[c] *= 1.f / length;
                }
                r += length;
            }
        }
        barrier.wait();  // the next chunk takes the same memory
    }
};
