// Products of 32 x 32 blocks, and weights laid out for them. Part of encoder.cpp.
//
// With FILBERT_VECTORS defined the units of a product are AVX-512 vectors that multiply pairs of
// bfloat16 (AVX-512-BF16) or fours of int8 (VNNI), else AMX tiles. Layouts are the same.
#pragma once

#include "memory.hpp"
#include "vectors.hpp"

#ifdef FILBERT_VECTORS
#include "product_vectors.hpp"
#else
#include "product_tiles.hpp"
#endif

struct Matrix {
    Memory panels;
    std::vector<float> bias;   // padded to the panels
    std::vector<float> scale;  // of each column; empty where the weights are bfloat16
    std::vector<int32_t> starts;  // of each column, what int8 sums begin with; empty: with zero
    int steps = 0, count = 0;  // steps of a product, panels
    const int32_t* start(int panel) const { return starts.empty() ? nullptr : &starts[panel * WIDE]; }
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
#ifdef FILBERT_VECTORS
    into.starts.assign(int8 ? columns : 0, 0);
#endif
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
            if (int8) {
                const int whole = int(std::lround(given[source] * inverse));
                into.panels.data[block * TILE + place] = char(whole);
#ifdef FILBERT_VECTORS
                into.starts[n] -= 128 * whole;  // the left operand is 128 too high, as `shrink` makes it
#endif
            }
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
