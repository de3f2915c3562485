// The parts of a layer: projections, attention, feed-forward, norms. Part of encoder.cpp.
#pragma once

#include "odds.hpp"
#include "tiles.hpp"

#pragma GCC push_options
#pragma GCC target("avx512vbmi")  // as odds.hpp

// x * Phi(x) for values that are rounded to bfloat16 or int8 next: as `gelu_of` with fewer terms, fitted
// on |x| <= 3.7 to the least largest error, 5e-4, so that Phi is 0 and 1 at the ends.
inline __m512 gelu_short(__m512 x) {
    const __m512 near = _mm512_range_ps(x, _mm512_set1_ps(3.7f), 2);  // the nearer to 0, with the sign of x
    const __m512 t = _mm512_mul_ps(near, near);
    __m512 p = _mm512_set1_ps(-4.899708420118751e-07f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(2.688865990188403e-05f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.0006175004059246864f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.007848688974346688f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.06258769575436679f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.396475070272051f));
    return _mm512_mul_ps(x, _mm512_fmadd_ps(near, p, _mm512_set1_ps(0.5f)));
}

// Bytes of 32 x 32 sums; those of a row do not all fall into one set of the first-level cache.
constexpr size_t BLOCK = 32 * 32 * 4 + 128;

// Panels of the inner layer that are computed before they are multiplied again.
constexpr int AT_ONCE = 8;

struct Scratch {
    Memory states, context, inner, sums;  // of a chunk
    Memory small;  // the input of a product as int8 tiles
    std::vector<float> scales;  // of its rows
    std::vector<std::unique_ptr<Memory>> attention;  // of each thread: all that one head needs
    std::vector<std::vector<float>> rows;  // of each thread: two rows of states, their padding zero
};

// What a layer is made of, for any rows of a chunk. Knows the shape, holds no weights.
struct Parts {
    Shape shape;
    QuickOdds quick;
    bool any_int8 = false;

    explicit Parts(const Shape& shape) : shape(shape) {}

    char* state(Scratch& s, int row) const {  // row of a tiled matrix `wide_hidden` wide
        return s.states.data + size_t(row / 16) * (shape.wide_hidden / WIDE) * TILE + row % 16 * 64;
    }

    float* sums_of(Scratch& s, int row, int panel) const {  // of a product as wide as the states: 32 of a row
        return reinterpret_cast<float*>(s.sums.data + (size_t(row / 32) * (shape.wide_hidden / WIDE) + panel) * BLOCK) + row % 32 * 32;
    }

    void prepare(Scratch& s, int rows, int longest, int threads) const {
        const size_t r = up(rows, 32);
        s.states.need(r * shape.wide_hidden * 2);
        s.context.need(r * shape.context * 2);
        s.inner.need(r * shape.wide_inner * 2);
        s.sums.need(r / 32 * (shape.wide_hidden / WIDE) * BLOCK);
        if (any_int8) {
            s.small.need(r * up(std::max({shape.wide_hidden, shape.context, shape.wide_inner}), 64));
            if (s.scales.size() < r) s.scales.resize(r);
        }
        const size_t keys = up(longest, 32);
        while (int(s.attention.size()) < threads) s.attention.push_back(std::make_unique<Memory>());
        while (int(s.rows.size()) < threads) s.rows.emplace_back(2 * shape.wide_hidden, 0.f);
        for (auto& memory : s.attention)
            memory->need((r + 32) * shape.row() * 2 + keys * shape.wide_head * 2 * 2 + 32 * keys * 4 + 32 * keys * 2);
    }

    // Norm of 32-column pieces in `row`, float32 and padded with zeros, to the tiled states.
    void normalise(const float* row, const float* gain_shift, char* into, float* plain) const {
        __m512 even = _mm512_setzero_ps(), odd = even;
        for (int i = 0; i < shape.wide_hidden; i += 32)
            even = _mm512_add_ps(even, _mm512_loadu_ps(row + i)), odd = _mm512_add_ps(odd, _mm512_loadu_ps(row + i + 16));
        normalise(row, _mm512_reduce_add_ps(_mm512_add_ps(even, odd)), gain_shift, into, plain);
    }

    // The same where the total of the row is known.
    void normalise(const float* row, float total, const float* gain_shift, char* into, float* plain) const {
        const int wide = shape.wide_hidden, size = shape.hidden;
        const float mean = total / size;
        const __m512 centre = _mm512_set1_ps(mean);
        __m512 even = _mm512_setzero_ps(), odd = even;  // two sums, so that none waits for the one before
        for (int i = 0; i < wide; i += 32) {
            const __m512 d = _mm512_sub_ps(_mm512_loadu_ps(row + i), centre);
            const __m512 e = _mm512_sub_ps(_mm512_loadu_ps(row + i + 16), centre);
            even = _mm512_fmadd_ps(d, d, even), odd = _mm512_fmadd_ps(e, e, odd);
        }
        const float variance = (_mm512_reduce_add_ps(_mm512_add_ps(even, odd)) - (wide - size) * mean * mean) / size;
        const __m512 factor = _mm512_set1_ps(1.f / std::sqrt(std::max(variance, 0.f) + shape.eps));
        const float* shift = gain_shift + wide;
        for (int i = 0; i < wide; i += 32) {
            __m512 low = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + i), centre), factor);
            __m512 high = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + i + 16), centre), factor);
            low = _mm512_fmadd_ps(low, _mm512_loadu_ps(gain_shift + i), _mm512_loadu_ps(shift + i));
            high = _mm512_fmadd_ps(high, _mm512_loadu_ps(gain_shift + i + 16), _mm512_loadu_ps(shift + i + 16));
            _mm512_store_si512(into + size_t(i / WIDE) * TILE, pack_bf16(low, high));
            if (plain) {
                const int left = size - i;
                const __mmask16 m1 = left >= 16 ? 0xffff : __mmask16((1u << std::max(left, 0)) - 1);
                const __mmask16 m2 = left >= 32 ? 0xffff : __mmask16((1u << std::max(left - 16, 0)) - 1);
                _mm512_mask_storeu_ps(plain + i, m1, low);
                _mm512_mask_storeu_ps(plain + i + 16, m2, high);
            }
        }
    }

    // A block of sums with what makes them values: scales if they are int32, and the bias.
    template <bool int8> struct Sums {
        const float *block, *rows;  // of 32; scale of each row
        __m512 scale1, scale2, bias1, bias2;
        Sums(const float* block, const float* rows, const Matrix& m, int panel) : block(block), rows(rows) {
            bias1 = _mm512_loadu_ps(&m.bias[panel * WIDE]), bias2 = _mm512_loadu_ps(&m.bias[panel * WIDE + 16]);
            if constexpr (int8)
                scale1 = _mm512_loadu_ps(&m.scale[panel * WIDE]), scale2 = _mm512_loadu_ps(&m.scale[panel * WIDE + 16]);
        }
        __m512 value(int row, int at, __m512 scale, __m512 bias) const {
            if constexpr (!int8) return _mm512_add_ps(_mm512_load_ps(block + row * 32 + at), bias);
            const __m512 whole = _mm512_cvtepi32_ps(_mm512_load_si512(block + row * 32 + at));
            return _mm512_fmadd_ps(_mm512_mul_ps(whole, _mm512_set1_ps(rows[row])), scale, bias);
        }
        __m512 low(int row) const { return value(row, 0, scale1, bias1); }
        __m512 high(int row) const { return value(row, 16, scale2, bias2); }
    };

    // For each 32 rows and each of the panels `from` to `to` the sums, handed row by row to `take(Sums,
    // row of the block, first row, panel)`, while the next block is multiplied. The input is `tiles`,
    // or for an int8 matrix what `shrink` made of them.
    // `much`: that `take` is much work.
    template <bool much, class Take>
    void multiply(const Scratch& s, const char* tiles, int rows, const Matrix& m, int from, int to, Take take) const {
        if (m.int8()) multiply_as<true, much>(s, s.small.data, rows, m, from, to, take);
        else multiply_as<false, false>(s, tiles, rows, m, from, to, take);
    }

    template <bool int8, bool mixed, class Take>
    void multiply_as(const Scratch& s, const char* tiles, int rows, const Matrix& m, int from, int to, Take take) const {
        alignas(64) float blocks[2][32 * 32];
        const size_t next = size_t(m.steps) * TILE;
        Sums<int8> last(blocks[0], nullptr, m, from);  // of the block before
        int count = 0, row = 0, column = 0, turn = 0;  // its rows, its place
        const int lines = lines_ahead(rows);
        for (int panel = from; panel < to; ++panel) {
            const char* b = m.panels.data + size_t(panel) * m.steps * 2 * TILE;
            const char* ahead = b + size_t(m.steps) * 2 * TILE;
            for (int r = 0; r < rows; r += 32, ahead += size_t(lines) * m.steps * 64) {
                const char* a = tiles + size_t(r / 16) * next;
                float* sums = blocks[turn ^= 1];
                if (mixed && rows - r > 16 && count == 32)
                    product32_mixed(a, next, b, m.steps, m.start(panel), sums, 128, ahead, lines,
                                    [&](int i) { take(last, i, row, column); });
                else if (rows - r > 16 && count == 32)
                    product32<int8>(a, next, b, m.steps, rows - r, m.start(panel), sums, 128, false, ahead, lines,
                                    [&](int i) { take(last, i, row, column); });
                else {
                    for (int i = 0; i < count; ++i) take(last, i, row, column);
                    if (rows - r > 16)
                        product32<int8>(a, next, b, m.steps, rows - r, m.start(panel), sums, 128, false, ahead, lines, [](int) {});
                    else product16<int8>(a, b, m.steps, rows - r, m.start(panel), sums, 128);
                }
                const float* scales = nullptr;
                if constexpr (int8) scales = &s.scales[r];
                last = Sums<int8>(sums, scales, m, panel);
                count = rows - r > 16 ? 32 : 16, row = r, column = panel;
            }
        }
        for (int i = 0; i < count; ++i) take(last, i, row, column);
    }

    // The next panel comes from far away: each of a panel's blocks asks for so many lines a step.
    static int lines_ahead(int rows) { return (2 * TILE / 64 * 32 + rows - 1) / rows; }

    // Rows of bfloat16 tiles, `wide` columns, as int8 tiles with a scale for each row.
    void shrink(Scratch& s, const char* tiles, int wide, int begin, int end) const {
        const int blocks = wide / WIDE, small_blocks = up(wide, 64) / 64;
        for (int r = begin; r < end; ++r) {
            const char* from = tiles + size_t(r / 16) * blocks * TILE + r % 16 * 64;
            char* to = s.small.data + size_t(r / 16) * small_blocks * TILE + r % 16 * 64;
            __m512i most = _mm512_setzero_si512();  // without their signs bfloat16 stand in the order of whole numbers
            for (int i = 0; i < blocks; ++i) {
                const __m512i x = _mm512_load_si512(from + size_t(i) * TILE);
                most = _mm512_max_epu16(most, _mm512_and_si512(x, _mm512_set1_epi16(0x7fff)));
            }
            const __m512i ends = _mm512_max_epu32(_mm512_srli_epi32(most, 16), _mm512_and_si512(most, _mm512_set1_epi32(0xffff)));
            const uint32_t bits = _mm512_reduce_max_epu32(ends) << 16;
            float largest;
            std::memcpy(&largest, &bits, 4);
            s.scales[r] = largest / 127.f;
            const __m512 inverse = _mm512_set1_ps(largest > 0.f ? 127.f / largest : 0.f);
            auto whole = [&](const char* at) {  // 32 numbers of 16 bits
                const __m512i x = _mm512_load_si512(at);
                const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
                const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(int(0xffff0000))));
                return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_cvtps_epi32(_mm512_mul_ps(even, inverse)),
                                               _mm512_slli_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(odd, inverse)), 16));
            };
            const __m512i order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
            for (int i = 0; i < blocks; i += 2) {
                const __m512i low = whole(from + size_t(i) * TILE);
                const __m512i high = i + 1 < blocks ? whole(from + size_t(i + 1) * TILE) : _mm512_setzero_si512();
                __m512i four = _mm512_permutexvar_epi64(order, _mm512_packs_epi16(low, high));
#ifdef FILBERT_VECTORS
                four = _mm512_xor_si512(four, _mm512_set1_epi8(char(0x80)));  // 128 more, without a sign
#endif
                _mm512_store_si512(to + size_t(i / 2) * TILE, four);
            }
        }
    }

    // Queries, keys and values of a head, row by row into `into`.
    void project(const Scratch& s, const Matrix& m, const char* tiles, int rows, int head, char* into) const {
        const int panels = shape.row() / WIDE, from = head * panels;
        const size_t stride = size_t(shape.row()) * 2;
        multiply<false>(s, tiles, rows, m, from, from + panels, [&](const auto& sums, int i, int r, int panel) {
            _mm512_store_si512(into + (r + i) * stride + size_t(panel - from) * 64, pack_bf16(sums.low(i), sums.high(i)));
        });
    }

    // The panels `from` to `to` of the inner layer, into tiles that are `to - base` blocks wide.
    template <int kind>
    void widen_as(Scratch& s, const Matrix& m, int rows, int from, int to, int base, int width) const {
        const size_t next = size_t(width) * TILE;
        multiply<kind != RELU>(s, s.states.data, rows, m, from, to, [&](const auto& sums, int i, int r, int panel) {
            char* at = s.inner.data + size_t((r + i) / 16) * next + size_t(panel - base) * TILE + i % 16 * 64;
            _mm512_store_si512(at, kind == GELU ? pack_bf16(gelu_short(sums.low(i)), gelu_short(sums.high(i)))
                                                : pack_bf16(activate(sums.low(i), kind), activate(sums.high(i), kind)));
        });
    }

    void widen(Scratch& s, const Matrix& m, int rows, int from, int to, int base, int width) const {
        if (shape.activation == GELU) widen_as<GELU>(s, m, rows, from, to, base, width);
        else if (shape.activation == GELU_TANH) widen_as<GELU_TANH>(s, m, rows, from, to, base, width);
        else widen_as<RELU>(s, m, rows, from, to, base, width);
    }

    // Both products of the feed-forward part on one thread: some columns of the inner layer at a time, so
    // that they are still near when they are multiplied again. (Beside wide sums they would not be.)
    void feed(Scratch& s, const Matrix& inner, const Matrix& outer, int rows) const {
        const int at_once = outer.int8() || rows <= 64 || shape.wide_hidden > 512 ? inner.count : AT_ONCE;
        for (int from = 0; from < inner.count; from += at_once) {
            const int width = std::min(at_once, inner.count - from);
            widen(s, inner, rows, from, from + width, from, width);
            if (outer.int8()) shrink(s, s.inner.data, shape.wide_inner, 0, rows);
            sum(s, outer, s.inner.data, rows, 0, outer.count, from, outer.int8() ? outer.steps : width);
        }
    }

    // The bare sums of a product with as many columns as the states; `add_and_norm` makes values of
    // them. tiles: the steps from `first` on, `steps` of them, of which the first writes the sums and
    // later ones count in.
    void sum(Scratch& s, const Matrix& m, const char* tiles, int rows, int from, int to, int first, int steps) const {
        if (m.int8()) sum_as<true>(s, m, s.small.data, rows, from, to, first, steps);
        else sum_as<false>(s, m, tiles, rows, from, to, first, steps);
    }

    // The same of all steps. An input that is too large to stay near is taken in several parts of its columns.
    void sum(Scratch& s, const Matrix& m, const char* tiles, int rows, int from, int to) const {
        sum(s, m, tiles, rows, from, to, 0, m.steps);
    }

    template <bool int8>
    void sum_as(Scratch& s, const Matrix& m, const char* tiles, int rows, int from, int to, int first, int all) const {
        constexpr size_t near = 400 << 10;  // bytes of the input that stay in the second-level cache
        const size_t next = size_t(all) * TILE;
        const int cuts = rows > 32 ? int((size_t(rows) / 16 * next + near - 1) / near) : 1;
        const int at_once = (all + cuts - 1) / cuts, lines = lines_ahead(rows);
        for (int k = 0; k < all; k += at_once) {
            const int steps = std::min(at_once, all - k);
            const bool go_on = first + k > 0;
            for (int panel = from; panel < to; ++panel) {
                const char* b = m.panels.data + (size_t(panel) * m.steps + first + k) * 2 * TILE;
                const char* ahead = b + size_t(m.steps) * 2 * TILE;
                for (int r = 0; r < rows; r += 32, ahead += size_t(lines) * steps * 64) {
                    const char* a = tiles + size_t(r / 16) * next + size_t(k) * TILE;
                    float* at = sums_of(s, r, panel);
                    // with more than 64 rows as `feed` adds them, so that one thread has the bits of several
                    if (rows > 64 || rows - r > 16 || go_on || steps < m.steps)
                        product32<int8>(a, next, b, steps, rows - r, m.start(panel), at, 128, go_on, ahead, lines, [](int) {});
                    else product16<int8>(a, b, steps, rows - r, m.start(panel), at, 128);
                }
            }
        }
    }

    // Make values of the sums of a product, add the states, and normalise: the new states.
    // room: for one row.
    void add_and_norm(Scratch& s, const Matrix& m, const std::vector<float>& norm, int begin, int end, float* room,
                      float* const* plain) const {
        for (int r = begin; r < end; ++r)
            add_and_norm_row(s, m, norm, r, room, plain ? *plain + size_t(r) * shape.hidden : nullptr);
    }

    // The same for the texts `from` to `to` of a chunk, and the mean of each one's states: out (texts, hidden).
    // room: for two rows.
    void average(Scratch& s, const Matrix& m, const std::vector<float>& norm, const int* lengths, int from, int to,
                 float* room, float* out) const {
        float* const row = room + shape.wide_hidden;
        int r = 0;
        for (int text = 0; text < from; ++text) r += lengths[text];
        for (int text = from; text < to; ++text) {
            float* sum = out + size_t(text) * shape.hidden;
            std::fill(sum, sum + shape.hidden, 0.f);
            for (int end = r + lengths[text]; r < end; ++r) {
                add_and_norm_row(s, m, norm, r, room, row);
                for (int i = 0; i < shape.hidden; ++i) sum[i] += row[i];
            }
            const float share = 1.f / lengths[text];
            for (int i = 0; i < shape.hidden; ++i) sum[i] *= share;
        }
    }

    void add_and_norm_row(Scratch& s, const Matrix& m, const std::vector<float>& norm, int r, float* row, float* plain) const {
        const int wide = shape.wide_hidden;
        char* tiles = state(s, r);
        const bool int8 = m.int8();
        const float *biases = m.bias.data(), *scales = m.scale.data();
        const __m512 scale = _mm512_set1_ps(int8 ? s.scales[r] : 1.f);
        auto value = [&](int i) {
            const float* sums = sums_of(s, r, i / WIDE) + i % WIDE;
            const __m512 before = load_bf16(tiles + size_t(i / WIDE) * TILE + i % WIDE * 2);
            const __m512 bias = _mm512_add_ps(before, _mm512_loadu_ps(biases + i));
            if (!int8) return _mm512_add_ps(_mm512_load_ps(sums), bias);
            const __m512 whole = _mm512_cvtepi32_ps(_mm512_load_si512(sums));
            return _mm512_fmadd_ps(_mm512_mul_ps(whole, scale), _mm512_loadu_ps(scales + i), bias);
        };
        __m512 even = _mm512_setzero_ps(), odd = even;
        for (int i = 0; i < wide; i += 32) {
            const __m512 low = value(i), high = value(i + 16);
            _mm512_storeu_ps(row + i, low), _mm512_storeu_ps(row + i + 16, high);
            even = _mm512_add_ps(even, low), odd = _mm512_add_ps(odd, high);
        }
        normalise(row, _mm512_reduce_add_ps(_mm512_add_ps(even, odd)), norm.data(), tiles, plain);
    }

    // The weights of row `i` of 32 of which `QuickOdds` cannot tell them: as the others, but above their
    // largest. scores: times 256. Their total is returned.
    static float slow_odds(float* scores, int length, char* odds, int i) {
        const int keys = up(length, 32);
        __m512 top = _mm512_set1_ps(-3.4e38f), total = _mm512_setzero_ps();
        for (int j = 0; j < keys; j += 16) {
            const __m512 x = _mm512_mul_ps(_mm512_load_ps(scores + j), _mm512_set1_ps(1 / 256.f));
            _mm512_store_ps(scores + j, x);
            top = _mm512_mask_max_ps(top, mask_of(length - j), top, x);
        }
        const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(top));
        char* to_tile = odds + size_t(i / 16) * (keys / 32) * TILE + i % 16 * 64;
        for (int j = 0; j < keys; j += 32, to_tile += TILE) {
            __m512 x, y;
            odds_of(scores, j, length, most, x, y);
            total = _mm512_add_ps(total, _mm512_add_ps(x, y));
            _mm512_store_si512(to_tile, QuickOdds::placed(pack_bf16(x, y)));
        }
        return _mm512_reduce_add_ps(total);
    }

    // Softmax of Q K^T, times V, of one head of one text. q: its first row of what `project` made; the
    // context goes to rows from `to` on. With `first` only the first query is asked.
    void attend(Scratch& s, char* memory, const char* q, int length, int head, int to, bool first) const {
        const int size = shape.wide_head, steps = size / WIDE, keys = up(length, 32);
        const size_t stride = size_t(shape.row()) * 2;
        const char* k = q + size_t(size) * 2;
        const char* v = k + size_t(size) * 2;
        char* kept = memory;  // keys as a right operand
        char* values = kept + size_t(keys) * size * 2;
        float* scores = reinterpret_cast<float*>(values + size_t(keys) * size * 2);
        char* odds = reinterpret_cast<char*>(scores) + size_t(32) * keys * 4;  // tiles

        for (int j = 0; j < keys; j += 16)
            for (int d = 0; d < steps; ++d)
                transpose16(k + j * stride + d * 64, stride, std::min(16, length - j),
                            kept + (size_t(j / 32) * steps + d) * 2 * TILE + (j % 32 / 16) * TILE);
        const __m512i none = _mm512_setzero_si512();
        for (int j = 0; j < keys; j += 32)
            for (int i = 0; i < 16; ++i) {
                const int one = j + QuickOdds::key(2 * i), two = one + 1;
                char* row_out = values + size_t(j / 32) * (size / 16) * TILE + i * 64;
                for (int d = 0; d < size; d += 16) {
                    __m512i low = none, high = none;
                    if (one < length) low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(v + one * stride + d * 2)));
                    if (two < length) high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(v + two * stride + d * 2)));
                    _mm512_store_si512(row_out + size_t(d / 16) * TILE, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
                }
            }

        settle();
        const int queries = first ? 1 : length;
        const __mmask32 rest = quick.masks[length % 32];
        for (int begin = 0; begin < queries; begin += 32) {
            const int count = std::min(32, queries - begin);
            const char* a = q + size_t(begin) * stride;
            for (int j = 0; j < keys; j += 32) {
                const char* b = kept + size_t(j / 32) * steps * 2 * TILE;
                block32(a, 16 * stride, stride, 64, b, 2 * TILE, steps, count, scores + j, size_t(keys) * 4);
            }
            float inverse[32];
            for (int i = 0; i < count; ++i) {
                float* line = scores + size_t(i) * keys;
                char* to_tile = odds + size_t(i / 16) * (keys / 32) * TILE + i % 16 * 64;
                __m512 sum = _mm512_setzero_ps();
                int j = 0;
                for (; j + 32 <= length; j += 32, to_tile += TILE) {
                    const __m512i x = quick(line + j);
                    sum = QuickOdds::add(sum, x), _mm512_store_si512(to_tile, x);
                }
                if (j < length) {
                    const __m512i x = _mm512_maskz_mov_epi16(rest, quick(line + j));
                    sum = QuickOdds::add(sum, x), _mm512_store_si512(to_tile, x);
                }
                const float total = _mm512_reduce_add_ps(sum);
                inverse[i] = 1.f / (QuickOdds::in_range(total) ? total : slow_odds(line, length, odds, i));
            }
            settle();
            alignas(64) float sums[32 * 32];
            for (int d = 0; d < size; d += 32) {
                const char* b = values + size_t(d / 16) * TILE;
                block32(odds, size_t(keys / 32) * TILE, 64, TILE, b, size_t(size / 16) * TILE, keys / 32, count, sums, 128);
                const size_t column = size_t(head * size + d) / WIDE;
                for (int i = 0; i < count; ++i) {
                    const int r = to + begin + i;
                    const __m512 f = _mm512_set1_ps(inverse[i]);
                    char* place = s.context.data + (size_t(r / 16) * (shape.context / WIDE) + column) * TILE + r % 16 * 64;
                    _mm512_store_si512(place, pack_bf16(_mm512_mul_ps(_mm512_load_ps(sums + i * 32), f),
                                                        _mm512_mul_ps(_mm512_load_ps(sums + i * 32 + 16), f)));
                }
            }
        }
    }
};

#pragma GCC pop_options
