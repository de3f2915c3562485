// Products of blocks on AMX tiles: 16 rows by 64 bytes. Part of encoder.cpp; its twin for processors
// without AMX is product_vectors.hpp.
#pragma once

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

// 32 x 32 sums of `steps` steps: two blocks of rows by two of columns. sums: 32 floats (int32) in
// rows of `stride` bytes; what stands there counts in with `go_on`. `beside(i)` for i = 0 ... 31 is
// done between the steps: work on vectors, for which the units stand idle while tiles are
// multiplied. `lines` cache lines a step are fetched from `ahead`. The two arguments without a name tell
// vectors how many rows count and what int8 sums begin with.
template <bool int8, class Beside>
inline void product32(const char* a, size_t next_rows, const char* b, int steps, int, const int32_t*, float* sums, size_t stride,
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
inline void product32_mixed(const char* a, size_t next_rows, const char* b, int steps, const int32_t*, float* sums, size_t stride,
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

// 16 x 32 sums, even and odd steps apart so that no product waits for the one before it.
template <bool int8> inline void product16(const char* a, const char* b, int steps, int, const int32_t*, float* sums, size_t stride) {
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


// The upper `rows` of 32 x 32 sums in bfloat16, maybe with some more. Left operand: rows of `stride` bytes, the
// lower 16 from `a + lower` on, 64 bytes a step; or tiles, with a stride of 64 and TILE a step. Two tiles of the
// right operand each step, `b_step` bytes apart.
inline void block32(const char* a, size_t lower, size_t stride, size_t a_step, const char* b, size_t b_step, int steps, int rows,
                    float* sums, size_t sums_stride) {
    const bool two = rows > 16;
    Square<false> block;
    block.zero(two);
    for (int k = 0; k < steps; ++k) block.step(a + k * a_step, lower, stride, b + k * b_step, two, [] {});
    block.store(sums, sums_stride, two);
}
