// Products of AMX tiles, and weights laid out for them. Part of encoder.cpp.
#pragma once

#include "memory.hpp"
#include "vectors.hpp"

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

template <bool int8> inline void multiply_four() {
    if constexpr (int8) {
        _tile_dpbssd(0, 4, 6); _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6); _tile_dpbssd(3, 5, 7);
    } else {
        _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
    }
}

// 32 x 32 sums of `steps` steps: two blocks of rows by two of columns. sums: 32 floats (int32) in
// rows of `stride` bytes; what stands there counts in with `go_on`. `beside(i)` for i = 0 ... 31 is
// done between the steps: work on vectors, for which the units stand idle while tiles are
// multiplied. `lines` cache lines a step are fetched from `ahead`.
template <bool int8, class Beside>
inline void product32(const char* a, size_t next_rows, const char* b, int steps, float* sums, size_t stride,
                      bool go_on, const char* ahead, int lines, Beside beside) {
    settle();
    float* lower = sums + 4 * stride;
    if (go_on) {
        _tile_loadd(0, sums, stride); _tile_loadd(1, sums + 16, stride);
        _tile_loadd(2, lower, stride); _tile_loadd(3, lower + 16, stride);
    } else {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    }
    const char* a2 = a + next_rows;
    int done = 0;
    for (int k = 0, due = 32; k < steps; ++k, due += 32) {
        _tile_loadd(4, a + k * TILE, 64);
        _tile_loadd(6, b + k * 2 * TILE, 64);
        _tile_loadd(7, b + k * 2 * TILE + TILE, 64);
        _tile_loadd(5, a2 + k * TILE, 64);
        multiply_four<int8>();
        for (int i = 0; i < lines; ++i, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
        for (; done * steps < due; ++done) beside(done);
    }
    _tile_stored(0, sums, stride); _tile_stored(1, sums + 16, stride);
    _tile_stored(2, lower, stride); _tile_stored(3, lower + 16, stride);
}

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
