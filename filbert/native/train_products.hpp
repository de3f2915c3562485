// Products of the training pass: weights packed at each step, rows times weights, and the product
// over tokens that is a weight's gradient. Part of encoder.cpp.
#pragma once

#include "train_parts.hpp"

// A weight's panels for X W^T: `steps` tiles deep, of `count` panels of 32 outputs. weight: (outputs,
// inputs) bfloat16. Each tile is 16 rows of 64 bytes with their 32-bit pieces transposed.
inline void pack_forward(const bf16* weight, int inputs, int from, int to, char* panels) {
    const int steps = inputs / WIDE;
    for (int panel = from; panel < to; ++panel)
        for (int k = 0; k < steps; ++k)
            for (int half = 0; half < 2; ++half)
                transpose16(reinterpret_cast<const char*>(weight + size_t(panel * 32 + half * 16) * inputs + k * 32),
                            size_t(inputs) * 2, 16, panels + ((size_t(panel) * steps + k) * 2 + half) * TILE);
}

// The panels of 32 inputs for dY W, `all` tiles deep, of which these `outputs` rows begin at `first`.
inline void pack_backward(const bf16* weight, int inputs, int outputs, int from, int to, char* panels, int all, int first) {
    const Pairs pairs;
    const size_t stride = size_t(inputs) * 2;
    for (int panel = from; panel < to; ++panel)
        for (int k = 0; k < outputs / WIDE; ++k) {
            const char* at = reinterpret_cast<const char*>(weight + size_t(k) * 32 * inputs + panel * 32);
            pair_rows(pairs, [&](int i) { return _mm512_loadu_si512(at + i * stride); },
                      panels + (size_t(panel) * all + first + k) * 2 * TILE);
        }
}

// The next panel comes from far away: each of a panel's blocks asks for so many lines a step.
inline int panel_lines(int rows) { return (2 * TILE / 64 * 32 + rows - 1) / rows; }

// For each 32 of `rows` rows of tiles (a multiple of 32) and each panel the sums, handed row by row to
// `take(32 floats, row, panel)` while the next block is multiplied.
template <class Take>
inline void sweep(const char* tiles, int rows, const char* panels, int steps, int count, Take take) {
    alignas(64) float blocks[2][32 * 32];
    const size_t next = size_t(steps) * TILE;
    const int lines = panel_lines(std::max(rows, 32));
    int turn = 0, row = 0, column = -1;
    for (int panel = 0; panel < count; ++panel) {
        const char* b = panels + size_t(panel) * steps * 2 * TILE;
        const char* ahead = b + size_t(steps) * 2 * TILE;
        for (int r = 0; r < rows; r += 32, ahead += size_t(lines) * steps * 64) {
            const char* a = tiles + size_t(r / 16) * next;
            const float* last = blocks[turn];
            turn ^= 1;
            if (column >= 0)
                product32<false>(a, next, b, steps, 32, nullptr, blocks[turn], 128, false, ahead, lines,
                                 [&](int i) { take(last + i * 32, row + i, column); });
            else product32<false>(a, next, b, steps, 32, nullptr, blocks[turn], 128, false, ahead, lines, [](int) {});
            row = r, column = panel;
        }
    }
    if (column >= 0)
        for (int i = 0; i < 32; ++i) take(blocks[turn] + i * 32, row + i, column);
}

// The sums of a product with `count` panels, (rows, wide) float32 where `wide` is 32 * count; with
// `go_on` they are added to what stands there. A wide input is taken in parts, see `sum_as`.
inline void add_up(const char* tiles, int rows, const char* panels, int steps, int count, float* sums, bool go_on) {
    if (rows == 0) return;
    constexpr size_t near = 400 << 10;
    const size_t next = size_t(steps) * TILE, stride = size_t(count) * WIDE * 4;
    const int cuts = int((size_t(rows) / 16 * next + near - 1) / near);
    const int at_once = (steps + cuts - 1) / cuts, lines = panel_lines(rows);
    for (int k = 0; k < steps; k += at_once) {
        const int some = std::min(at_once, steps - k);
        for (int panel = 0; panel < count; ++panel) {
            const char* b = panels + (size_t(panel) * steps + k) * 2 * TILE;
            const char* ahead = b + size_t(steps) * 2 * TILE;
            for (int r = 0; r < rows; r += 32, ahead += size_t(lines) * some * 64)
                product32<false>(tiles + size_t(r / 16) * next + size_t(k) * TILE, next, b, some, 32,
                                 nullptr, sums + size_t(r) * count * WIDE + panel * WIDE, stride, go_on || k > 0, ahead, lines, [](int) {});
        }
    }
}

// One weight's gradient: turned rows of one side (see `turn_tiles`), tiles of the other. A block of
// sums is 32 columns of `turned` times 32 of `tiles`; those of a panel of `tiles` side by side.
struct Outer {
    const char* turned;  // null: nobody asks for this gradient, but perhaps for the bias
    const char* tiles;
    int rows, wide;      // of this block of tokens; columns of `tiles`
    int blocks;          // of 32 columns of `turned`
    float* sums;         // (wide / 32, blocks, 32, 32)
    float* bias;         // (wide,) sums of `tiles` over tokens, or null
    int panels() const { return wide / WIDE; }
};

// One panel's part of a block of tokens: at most `deep` rows at once, so that both sides stay near.
inline void outer_panel(const Outer& o, int panel, int deep, bool first, char* memory) {
    const Pairs pairs;
    const size_t next = size_t(o.wide / WIDE) * TILE;
    const int all = o.rows / 32;
    const __m512i ones = _mm512_set1_epi16(0x3f80);
    __m512 low = _mm512_setzero_ps(), high = low;
    if (first && !all && o.turned) std::memset(o.sums + size_t(panel) * o.blocks * 1024, 0, size_t(o.blocks) * 4096);
    if (o.bias && !first) low = _mm512_loadu_ps(o.bias + panel * 32), high = _mm512_loadu_ps(o.bias + panel * 32 + 16);
    for (int k = 0; k < all; k += deep / 32) {
        const int steps = std::min(deep / 32, all - k);
        for (int s = 0; s < steps; ++s) {
            const char* from = o.tiles + size_t(k + s) * 2 * next + size_t(panel) * TILE;
            char* to = memory + size_t(s) * 2 * TILE;
            for (int i = 0; i < 16; ++i) {
                const char* at = from + (i / 8) * next + i % 8 * 128;
                _mm_prefetch(at + 2 * next, _MM_HINT_T0);
                _mm_prefetch(at + 2 * next + 64, _MM_HINT_T0);
                const __m512i a = _mm512_load_si512(at), b = _mm512_load_si512(at + 64);
                const __m512i one = pairs.first(a, b), two = pairs.second(a, b);
                _mm512_store_si512(to + i * 64, one);
                _mm512_store_si512(to + TILE + i * 64, two);
                low = _mm512_dpbf16_ps(low, (__m512bh)one, (__m512bh)ones);
                high = _mm512_dpbf16_ps(high, (__m512bh)two, (__m512bh)ones);
            }
        }
        if (!o.turned) continue;
        for (int block = 0; block < o.blocks; ++block) {
            float* sums = o.sums + (size_t(panel) * o.blocks + block) * 1024;
            const int lines = (64 + steps - 1) / steps;  // the sums of the next block
            product32<false>(o.turned + (size_t(2 * block) * all + k) * TILE, size_t(all) * TILE, memory, steps, 32, nullptr, sums, 128,
                             !first || k > 0, reinterpret_cast<const char*>(sums + 1024), lines, [](int) {});
        }
    }
    if (o.bias) _mm512_storeu_ps(o.bias + panel * 32, low), _mm512_storeu_ps(o.bias + panel * 32 + 16, high);
}

// Finished sums of a panel as the weight's gradient, (outputs, inputs) bfloat16. `turned` rows are
// outputs and panels inputs, or with `swap` the other way round.
inline void outer_store(const Outer& o, int panel, bool swap, bf16* gradient, int inputs) {
    alignas(64) float square[32 * 32];
    for (int block = 0; block < o.blocks; ++block) {
        const float* sums = o.sums + (size_t(panel) * o.blocks + block) * 1024;
        if (swap) {
            for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 2; ++j) {
                    alignas(64) float part[256];
                    transpose16(reinterpret_cast<const char*>(sums + i * 512 + j * 16), 128, 16, reinterpret_cast<char*>(part));
                    for (int r = 0; r < 16; ++r) _mm512_store_ps(square + (j * 16 + r) * 32 + i * 16, _mm512_load_ps(part + r * 16));
                }
            sums = square;
        }
        const int row = 32 * (swap ? panel : block), column = 32 * (swap ? block : panel);
        for (int i = 0; i < 32; ++i)
            _mm512_storeu_si512(gradient + size_t(row + i) * inputs + column,
                                pack_bf16(_mm512_load_ps(sums + i * 32), _mm512_load_ps(sums + i * 32 + 16)));
    }
}
