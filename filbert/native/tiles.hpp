// Products of 32 x 32 blocks, and weights laid out for them. Part of encoder.cpp.
//
// With FILBERT_VECTORS defined the units of a product are AVX-512 vectors that multiply pairs of
// bfloat16 (AVX-512-BF16) or fours of int8 (VNNI), else AMX tiles. Layouts are the same.
#pragma once

#include "memory.hpp"
#include "vectors.hpp"

#ifdef FILBERT_VECTORS

struct Tiles {  // nothing to set up
    Tiles() {}
    ~Tiles() {}
};

inline void settle() {}

inline __m512i same32(const char* at) {  // four bytes, 16 times
    int32_t bits;
    std::memcpy(&bits, at, 4);
    return _mm512_set1_epi32(bits);
}

template <bool int8> struct Unit;  // 16 sums, and how a product is added to them
template <> struct Unit<false> {
    __m512 sum;
    void load(const int32_t* from) { sum = _mm512_load_ps(from); }
    void store(int32_t* to) const { _mm512_store_ps(to, sum); }
    void add(__m512i a, __m512i b) { sum = _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
};
template <> struct Unit<true> {
    __m512i sum;
    void load(const int32_t* from) { sum = _mm512_load_si512(from); }
    void store(int32_t* to) const { _mm512_store_si512(to, sum); }
    void add(__m512i a, __m512i b) { sum = _mm512_dpbusd_epi32(sum, a, b); }
};

// 32 x 32 sums, or the upper 16 rows of them without `two`, that steps of a product are added to.
// int8: the left operand is 128 too high, as these instructions want it without a sign.
template <bool int8> struct Square {
    alignas(64) int32_t sums[32 * 32];  // or floats
    __m512i extra[2] = {};              // what 128 too much in every left operand has added to a column

    void zero(bool two = true) { std::memset(sums, 0, two ? sizeof(sums) : sizeof(sums) / 2); }

    void load(const float* from, size_t stride) {
        for (int i = 0; i < 32; ++i) std::memcpy(sums + i * 32, reinterpret_cast<const char*>(from) + i * stride, 128);
    }

    // 8 rows, whose sums stay in registers.
    void eight(int row, const char* a, size_t stride, const char* b) {
        Unit<int8> low[8], high[8];
        int32_t* const at = sums + row * 32;
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) low[i].load(at + i * 32), high[i].load(at + i * 32 + 16);
        for (int k = 0; k < 16; ++k) {
            const __m512i left = _mm512_loadu_si512(b + k * 64), right = _mm512_loadu_si512(b + TILE + k * 64);
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                const __m512i one = same32(a + i * stride + k * 4);
                low[i].add(one, left), high[i].add(one, right);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) low[i].store(at + i * 32), high[i].store(at + i * 32 + 16);
    }

    // Rows of 64 bytes, `stride` apart, the lower 16 from `a + lower` on; two blocks of the right operand.
    template <class Between> __attribute__((always_inline)) void step(const char* a, size_t lower, size_t stride, const char* b, bool two, Between between) {
        if constexpr (int8)
            for (int k = 0; k < 16; ++k)
                for (int half = 0; half < 2; ++half)
                    extra[half] = _mm512_dpbusd_epi32(extra[half], _mm512_set1_epi8(char(0x80)), _mm512_loadu_si512(b + half * TILE + k * 64));
        eight(0, a, stride, b), between(), eight(8, a + 8 * stride, stride, b), between();
        if (!two) return;
        eight(16, a + lower, stride, b), between(), eight(24, a + lower + 8 * stride, stride, b), between();
    }

    void store(float* to, size_t stride, bool two = true) {
        for (int i = 0; i < (two ? 32 : 16); ++i)
            for (int half = 0; half < 2; ++half) {
                __m512i x = _mm512_load_si512(sums + i * 32 + half * 16);
                if constexpr (int8) x = _mm512_sub_epi32(x, extra[half]);
                _mm512_storeu_si512(reinterpret_cast<char*>(to) + i * stride + half * 64, x);
            }
    }
};

#else

struct alignas(64) TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles belong to a thread; they are set up for a piece of work and let go after it.
struct Tiles {
    Tiles() {
        const TileConfig config;
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
};

// The intrinsics that load tiles do not tell the compiler that they read memory: what was written
// before must be there.
inline void settle() { __asm__ volatile("" ::: "memory"); }

// 32 x 32 sums, or the upper 16 rows of them without `two`, in tiles 0 to 3: one such block at a time.
template <bool int8> struct Square {
    void zero(bool two = true) {
        _tile_zero(0); _tile_zero(1);
        if (two) { _tile_zero(2); _tile_zero(3); }
    }

    void load(const float* from, size_t stride) {
        _tile_loadd(0, from, stride); _tile_loadd(1, from + 16, stride);
        _tile_loadd(2, from + 4 * stride, stride); _tile_loadd(3, from + 4 * stride + 16, stride);
    }

    // Rows of 64 bytes, `stride` apart, the lower 16 from `a + lower` on; two blocks of the right operand.
    // `between` is done after each single product.
    template <class Between> __attribute__((always_inline)) void step(const char* a, size_t lower, size_t stride, const char* b, bool two, Between between) {
        _tile_loadd(4, a, stride);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + TILE, 64);
        if (two) _tile_loadd(5, a + lower, stride);
        if constexpr (int8) {
            _tile_dpbssd(0, 4, 6); between();
            _tile_dpbssd(1, 4, 7); between();
            if (!two) return;
            _tile_dpbssd(2, 5, 6); between();
            _tile_dpbssd(3, 5, 7); between();
        } else {
            _tile_dpbf16ps(0, 4, 6); between();
            _tile_dpbf16ps(1, 4, 7); between();
            if (!two) return;
            _tile_dpbf16ps(2, 5, 6); between();
            _tile_dpbf16ps(3, 5, 7); between();
        }
    }

    void store(float* to, size_t stride, bool two = true) {
        _tile_stored(0, to, stride); _tile_stored(1, to + 16, stride);
        if (two) { _tile_stored(2, to + 4 * stride, stride); _tile_stored(3, to + 4 * stride + 16, stride); }
    }
};

#endif

// 32 x 32 sums of `steps` steps: two blocks of rows by two of columns. sums: 32 floats (int32) in
// rows of `stride` bytes; what stands there counts in with `go_on`. `beside(i)` for i = 0 ... 31 is
// done between the steps: work on vectors, for which the units stand idle while tiles are
// multiplied. `lines` cache lines a step are fetched from `ahead`.
template <bool int8, class Beside>
inline void product32(const char* a, size_t next_rows, const char* b, int steps, float* sums, size_t stride,
                      bool go_on, const char* ahead, int lines, Beside beside) {
    settle();
    Square<int8> block;
    if (go_on) block.load(sums, stride);
    else block.zero();
    int done = 0;
    for (int k = 0, due = 32; k < steps; ++k, due += 32) {
        block.step(a + k * TILE, next_rows, 64, b + k * 2 * TILE, true, [] {});
        for (int i = 0; i < lines; ++i, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
        for (; done * steps < due; ++done) beside(done);
    }
    block.store(sums, stride);
}

// As `product32<true>` from zero, with `beside` spread evenly between the single products: with int8
// tiles the vectors are the longer part, and bursts of them would hold the tiles up.
template <class Beside>
inline void product32_mixed(const char* a, size_t next_rows, const char* b, int steps, float* sums, size_t stride,
                            const char* ahead, int lines, Beside beside) {
    settle();
    Square<true> block;
    block.zero();
    int done = 0, due = 0;
    auto some = [&]() __attribute__((always_inline)) {
        for (due += 8; done * steps < due; ++done) beside(done);
    };
    for (int k = 0; k < steps; ++k) {
        block.step(a + k * TILE, next_rows, 64, b + k * 2 * TILE, true, some);
        for (int i = 0; i < lines; ++i, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
    }
    block.store(sums, stride);
}

#ifdef FILBERT_VECTORS

// 16 x 32 sums.
template <bool int8> inline void product16(const char* a, const char* b, int steps, float* sums, size_t stride) {
    Square<int8> block;
    block.zero(false);
    for (int k = 0; k < steps; ++k) block.step(a + k * TILE, 0, 64, b + k * 2 * TILE, false, [] {});
    block.store(sums, stride, false);
}

#else

// 16 x 32 sums, even and odd steps apart so that no product waits for the one before it.
template <bool int8> inline void product16(const char* a, const char* b, int steps, float* sums, size_t stride) {
    alignas(64) float even[512], odd[512];
    settle();
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    int k = 0;
    for (; k + 1 < steps; k += 2) {
        const char* p = b + k * 2 * TILE;
        _tile_loadd(4, a + k * TILE, 64);
        _tile_loadd(6, p, 64); _tile_loadd(7, p + TILE, 64);
        if constexpr (int8) { _tile_dpbssd(0, 4, 6); _tile_dpbssd(1, 4, 7); }
        else { _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); }
        _tile_loadd(5, a + (k + 1) * TILE, 64);
        _tile_loadd(6, p + 2 * TILE, 64); _tile_loadd(7, p + 3 * TILE, 64);
        if constexpr (int8) { _tile_dpbssd(2, 5, 6); _tile_dpbssd(3, 5, 7); }
        else { _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7); }
    }
    if (k < steps) {
        _tile_loadd(4, a + k * TILE, 64);
        _tile_loadd(6, b + k * 2 * TILE, 64); _tile_loadd(7, b + k * 2 * TILE + TILE, 64);
        if constexpr (int8) { _tile_dpbssd(0, 4, 6); _tile_dpbssd(1, 4, 7); }
        else { _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); }
    }
    _tile_stored(0, even, 128); _tile_stored(1, even + 16, 128);
    _tile_stored(2, odd, 128); _tile_stored(3, odd + 16, 128);
    for (int i = 0; i < 512; i += 16) {
        float* to = sums + i / 32 * (stride / 4) + i % 32;
        if constexpr (int8)
            _mm512_store_si512(to, _mm512_add_epi32(_mm512_load_si512(even + i), _mm512_load_si512(odd + i)));
        else
            _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(even + i), _mm512_load_ps(odd + i)));
    }
}

#endif

struct Matrix {
    Memory panels;
    std::vector<float> bias;   // padded to the panels
    std::vector<float> scale;  // of each column; empty where the weights are bfloat16
    int steps = 0, count = 0;  // steps of a product, panels
    bool int8() const { return !scale.empty(); }
};

struct Layer {
    Matrix qkv, out, up, down;
    std::vector<float> norm1, norm2;  // gain, then shift, each padded with zeros
};

struct Shape {
    int layers, hidden, heads, head_size, inner, activation;
    float eps;
    int wide_hidden, wide_head, wide_inner, context;  // padded: all multiples of 32

    explicit Shape(const int* given, float eps) : eps(eps) {
        layers = given[0], hidden = given[1], heads = given[2], head_size = given[3];
        inner = given[4], activation = given[5];
        wide_hidden = up(hidden, WIDE), wide_head = up(head_size, WIDE), wide_inner = up(inner, WIDE);
        context = heads * wide_head;
    }
    int row() const { return 3 * wide_head; }  // query, key and value of a token in a head
};

// Of each column of a linear layer that is not padding: its bias to its place, and `take(place, its given
// weights, what they are multiplied by)`.
template <class Column, class Factor, class Take>
void each_column(std::vector<float>& biases, const float* weight, const float* bias, int given_rows, Column column,
                 Factor factor, Take take) {
    for (int n = 0; n < int(biases.size()); ++n) {
        const int from = column(n);
        if (from < 0) continue;
        const float times = factor(n);
        biases[n] = bias[from] * times;
        take(n, weight + size_t(from) * given_rows, times);
    }
}

// A linear layer's weight, (columns, rows) as torch keeps it. `column(n)` and `row(k)` say which of
// the given matrix's columns and rows stands at a place of the padded one, -1 for padding;
// `factor(n)` is what a column is multiplied by.
template <class Column, class Row, class Factor>
void pack(Matrix& into, bool int8, int rows, int columns, const float* weight, const float* bias, int given_rows,
          Column column, Row row, Factor factor) {
    const int deep = int8 ? 64 : 32, together = int8 ? 4 : 2;
    rows = up(rows, deep);
    into.steps = rows / deep, into.count = columns / WIDE;
    into.panels.need(size_t(into.steps) * into.count * 2 * TILE);
    into.bias.assign(columns, 0.f);
    into.scale.assign(int8 ? columns : 0, 0.f);
    each_column(into.bias, weight, bias, given_rows, column, factor, [&](int n, const float* given, float times) {
        float most = 0.f;
        if (int8) {
            for (int k = 0; k < given_rows; ++k) most = std::max(most, std::abs(given[k]));
            into.scale[n] = most * times / 127.f;
        }
        const float inverse = most > 0.f ? 127.f / most : 0.f;
        for (int k = 0; k < rows; ++k) {
            const int source = row(k);
            if (source < 0) continue;
            // the panel, the step, the block of 16 columns, then rows that go together side by side
            const size_t block = (size_t(n / WIDE) * into.steps + k / deep) * 2 + n % WIDE / 16;
            const size_t place = size_t(k % deep / together) * 16 * together + n % 16 * together + k % together;
            if (int8) into.panels.data[block * TILE + place] = char(std::lround(given[source] * inverse));
            else reinterpret_cast<bf16*>(into.panels.data)[block * (TILE / 2) + place] = to_bf16(given[source] * times);
        }
    });
}

// The gain and the shift of a norm, each padded with zeros.
std::vector<float> padded_norm(const float* gain, const float* shift, int size, int wide) {
    std::vector<float> both(2 * wide, 0.f);
    std::copy(gain, gain + size, both.begin());
    std::copy(shift, shift + size, both.begin() + wide);
    return both;
}

// Which of a layer's given columns and rows stands at a place of the padded ones, -1 for padding.
struct Places {
    const Shape& s;
    explicit Places(const Shape& shape) : s(shape) {}
    auto same(int limit) const { return [limit](int i) { return i < limit ? i : -1; }; }
    auto of_heads() const {  // place in the padded heads
        return [this](int i) {
            const int d = i % s.wide_head;
            return i < s.context && d < s.head_size ? i / s.wide_head * s.head_size + d : -1;
        };
    }
    auto of_three() const {  // the queries, keys and values of a head side by side, then those of the next
        return [this](int i) {
            const int head = i / s.row(), which = i / s.wide_head % 3, d = i % s.wide_head;
            return d < s.head_size ? which * s.heads * s.head_size + head * s.head_size + d : -1;
        };
    }
    auto one() const { return [](int) { return 1.f; }; }
    // the scale of the scores, the change from e to 2 as the base of the softmax, and what a score is to be
    // multiplied by, go to the queries
    auto query_scale(float times) const {
        const float scale = times * 1.44269504089f / std::sqrt(float(s.head_size));
        return [this, scale](int i) { return i / s.wide_head % 3 == 0 ? scale : 1.f; };
    }
};
