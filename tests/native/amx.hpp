// AMX's instructions in plain code, for `-include` on a machine that lacks them: the library made with it
// computes on tiles as encoder.cpp asks for them, slowly. tests/numerics/test_native_vectors.py runs the
// tests of the encoder and of training on it. (Intel's manual, volume 2: TDPBF16PS, TDPBSSD, TILELOADD.)
#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

#define FILBERT_EMULATED  // encoder.cpp then takes the tiles for granted

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbssd

namespace amx {
struct Tile {
    alignas(64) char rows[16][64];
};
inline thread_local Tile tiles[8];

__attribute__((noinline)) inline void load(int to, const void* from, size_t stride) {
    for (int i = 0; i < 16; ++i) std::memcpy(tiles[to].rows[i], static_cast<const char*>(from) + i * stride, 64);
}

__attribute__((noinline)) inline void store(int from, void* to, size_t stride) {
    for (int i = 0; i < 16; ++i) std::memcpy(static_cast<char*>(to) + i * stride, tiles[from].rows[i], 64);
}

inline void zero(int tile) { std::memset(tiles[tile].rows, 0, sizeof(Tile)); }

inline float as_float(uint16_t bf16) {
    const uint32_t bits = uint32_t(bf16) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// sums[m][n] += a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1]
__attribute__((noinline)) inline void add_bf16(int sums, int a, int b) {
    for (int m = 0; m < 16; ++m)
        for (int n = 0; n < 16; ++n) {
            float sum;
            std::memcpy(&sum, tiles[sums].rows[m] + 4 * n, 4);
            for (int k = 0; k < 16; ++k)
                for (int i = 0; i < 2; ++i) {
                    uint16_t x, y;
                    std::memcpy(&x, tiles[a].rows[m] + 4 * k + 2 * i, 2);
                    std::memcpy(&y, tiles[b].rows[k] + 4 * n + 2 * i, 2);
                    sum += as_float(x) * as_float(y);
                }
            std::memcpy(tiles[sums].rows[m] + 4 * n, &sum, 4);
        }
}

// The same of fours of int8 with a sign.
__attribute__((noinline)) inline void add_int8(int sums, int a, int b) {
    for (int m = 0; m < 16; ++m)
        for (int n = 0; n < 16; ++n) {
            int32_t sum;
            std::memcpy(&sum, tiles[sums].rows[m] + 4 * n, 4);
            for (int k = 0; k < 16; ++k)
                for (int i = 0; i < 4; ++i)
                    sum += int(int8_t(tiles[a].rows[m][4 * k + i])) * int(int8_t(tiles[b].rows[k][4 * n + i]));
            std::memcpy(tiles[sums].rows[m] + 4 * n, &sum, 4);
        }
}

inline void configure(const void*) {}
inline void release() {}
}  // namespace amx

#define _tile_loadconfig amx::configure
#define _tile_release amx::release
#define _tile_loadd amx::load
#define _tile_stored amx::store
#define _tile_zero amx::zero
#define _tile_dpbf16ps amx::add_bf16
#define _tile_dpbssd amx::add_int8
