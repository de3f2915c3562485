// Products of blocks on AVX-512 vectors that multiply pairs of bfloat16 (AVX-512-BF16) or fours of int8
// (VNNI), for processors without AMX. Layouts as in product_tiles.hpp, its twin. Part of encoder.cpp.
#pragma once

#include "vectors.hpp"

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

// 16 sums, and how a product is added to them. As assembly: given the intrinsics, GCC 12 moves every sum
// to another register and back.
template <bool int8> struct Unit {
    __m512i sum;
    void add(__m512i a, __m512i b) {
        __m512i x = sum;  // a variable of its own, else the sums lie in memory
        if constexpr (int8) __asm__("vpdpbusd %2, %1, %0" : "+v"(x) : "v"(a), "v"(b));
        else __asm__("vdpbf16ps %2, %1, %0" : "+v"(x) : "v"(a), "v"(b));
        sum = x;
    }
};

// Where the operands of a block of sums lie. Left: rows of 64 bytes `stride` apart, the lower 16 from
// `lower` on; right: two blocks of 16 columns; each with what it is to the next step.
struct Operands {
    const char* a;
    size_t lower, stride, a_step;
    const char* b;
    size_t b_step;
};

// What sums begin with: what stands there, what `start` holds for each column, or zero.
struct Beginning {
    bool go_on;
    const int32_t* start;
};

constexpr int FEW = 8;       // rows whose sums stay in registers, 16 of these
constexpr int DEEPEST = 12;  // steps at once: the right operand of so many stays in the first-level cache

// The sums of some rows by 32 columns.
template <bool int8, size_t... row>
inline void few_rows(std::index_sequence<row...>, const char* a, size_t stride, size_t a_step, const char* b, size_t b_step,
                     int steps, Beginning from, float* sums, size_t sums_stride, const char* ahead, int lines) {
    Unit<int8> low[sizeof...(row)], high[sizeof...(row)];
    char* const to = reinterpret_cast<char*>(sums);
    if (from.go_on)
        ((low[row].sum = _mm512_loadu_si512(to + row * sums_stride), high[row].sum = _mm512_loadu_si512(to + row * sums_stride + 64)), ...);
    else if (from.start) {
        const __m512i left = _mm512_loadu_si512(from.start), right = _mm512_loadu_si512(from.start + 16);
        ((low[row].sum = left, high[row].sum = right), ...);
    } else ((low[row].sum = high[row].sum = _mm512_setzero_si512()), ...);
    for (int s = 0; s < steps; ++s, a += a_step, b += b_step) {
        for (int i = 0; i < lines; ++i, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
        for (int k = 0; k < 16; ++k) {
            const __m512i left = _mm512_loadu_si512(b + k * 64), right = _mm512_loadu_si512(b + TILE + k * 64);
            auto add = [&](Unit<int8>& one, Unit<int8>& other, const char* at) __attribute__((always_inline)) {
                const __m512i same = same32(at);
                one.add(same, left), other.add(same, right);
            };
            (add(low[row], high[row], a + row * stride + k * 4), ...);
        }
    }
    ((_mm512_storeu_si512(to + row * sums_stride, low[row].sum), _mm512_storeu_si512(to + row * sums_stride + 64, high[row].sum)), ...);
}

// `rows` of 32, FEW by FEW: those beyond are computed too, up to a multiple of FEW. `beside(i)` for i = 0 ...
// 31 is done meanwhile; `lines` cache lines a step are fetched from `ahead`.
template <bool int8, class Beside>
inline void block_rows(const Operands& o, int steps, int rows, Beginning from, float* sums, size_t sums_stride,
                       const char* ahead, int lines, Beside beside) {
    const int parts = (rows + FEW - 1) / FEW, share = (lines + parts - 1) / parts;
    int k = 0;
    do {  // of no steps too: the sums are what they begin with
        const int some = std::min(DEEPEST, steps - k);
        for (int r = 0; r < rows; r += FEW) {
            const char* a = o.a + (r < 16 ? r * o.stride : o.lower + (r - 16) * o.stride) + k * o.a_step;
            few_rows<int8>(std::make_index_sequence<FEW>(), a, o.stride, o.a_step, o.b + k * o.b_step, o.b_step, some,
                           {from.go_on || k > 0, from.start}, sums + r * (sums_stride / 4), sums_stride, ahead, share);
            ahead += size_t(share) * some * 64;
            if (k + DEEPEST >= steps)
                for (int i = r; i < (r + FEW >= rows ? 32 : r + FEW); ++i) beside(i);
        }
        k += DEEPEST;
    } while (k < steps);
}

// The upper `rows` of 32 x 32 sums in bfloat16, and maybe some more.
inline void block32(const char* a, size_t lower, size_t stride, size_t a_step, const char* b, size_t b_step, int steps,
                    int rows, float* sums, size_t sums_stride) {
    block_rows<false>({a, lower, stride, a_step, b, b_step}, steps, rows, {false, nullptr}, sums, sums_stride, b, 0, [](int) {});
}

// As in product_tiles.hpp; of the 32 rows these count, and int8 sums begin with `start`.
template <bool int8, class Beside>
inline void product32(const char* a, size_t next_rows, const char* b, int steps, int rows, const int32_t* start, float* sums,
                      size_t stride, bool go_on, const char* ahead, int lines, Beside beside) {
    block_rows<int8>({a, next_rows, 64, TILE, b, 2 * TILE}, steps, std::min(rows, 32), {go_on, start}, sums, stride, ahead, lines, beside);
}

template <class Beside>
inline void product32_mixed(const char* a, size_t next_rows, const char* b, int steps, const int32_t* start, float* sums,
                            size_t stride, const char* ahead, int lines, Beside beside) {
    product32<true>(a, next_rows, b, steps, 32, start, sums, stride, false, ahead, lines, beside);
}

template <bool int8>
inline void product16(const char* a, const char* b, int steps, int rows, const int32_t* start, float* sums, size_t stride) {
    block_rows<int8>({a, 0, 64, TILE, b, 2 * TILE}, steps, std::min(rows, 16), {false, start}, sums, stride,
                     b + size_t(steps) * 2 * TILE, 2 * TILE / 64, [](int) {});  // the next panel
}
