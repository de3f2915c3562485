// Pieces of the training pass on AVX-512 vectors: dropout masks, norms and activations with their
// derivatives, rows to tiles and tiles to the operands of a product over tokens. Part of encoder.cpp.
#pragma once

#include "tiles.hpp"

// Dropout masks are a function of (seed, layer, site, head, token, element), so the backward pass
// makes them again instead of keeping them. Each row of elements has a 32-bit key; a word of it is
// the key plus the word's number times an odd constant, mixed by two multiplications (the constants
// are those of Chris Wellons' "lowbias32", nullprogram.com/blog/2018/07/31), and serves two elements.
enum Site { OF_WEIGHTS = 0, OF_OUTPUT = 1, OF_INNER = 2 };
constexpr uint32_t WORD_STEP = 0x9e3779b9u;

inline uint64_t stir(uint64_t x) {  // SplitMix64, Steele et al. 2014
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

inline uint32_t mask_key(uint64_t seed, int layer, int site, int head, int token) {
    const uint64_t place = uint64_t(uint32_t(layer)) << 2 | uint64_t(site);
    return uint32_t(stir(stir(seed ^ stir(place << 32 | uint32_t(head))) ^ uint32_t(token)) >> 32);
}

inline uint32_t mask_word(uint32_t key, int number) {
    uint32_t x = key + uint32_t(number) * WORD_STEP;
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

inline __m512i mask_words(__m512i x) {
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)), _mm512_set1_epi32(int(0x7feb352du)));
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 15)), _mm512_set1_epi32(int(0x846ca68bu)));
    return _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
}

// Which of the 32 elements from `element` on (a multiple of 32) are kept, `dropped` of 65536 being lost.
inline __mmask32 kept32(uint32_t key, int element, unsigned dropped) {
    const __m512i lane = _mm512_mullo_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(int(WORD_STEP)));
    const __m512i words = mask_words(_mm512_add_epi32(lane, _mm512_set1_epi32(int(key + uint32_t(element / 2) * WORD_STEP))));
    return _mm512_cmpge_epu16_mask(words, _mm512_set1_epi16(short(dropped)));
}

inline float kept_scale(unsigned dropped) { return 65536.f / (65536.f - float(dropped)); }

// Pairs of rows side by side: a0 b0 a1 b1 ... of columns 0 to 15, and of 16 to 31.
struct Pairs {
    __m512i low, high;
    Pairs() {
        alignas(64) uint16_t l[32], h[32];
        for (int i = 0; i < 16; ++i) l[2 * i] = uint16_t(i), l[2 * i + 1] = uint16_t(32 + i), h[2 * i] = uint16_t(16 + i), h[2 * i + 1] = uint16_t(48 + i);
        low = _mm512_load_si512(l), high = _mm512_load_si512(h);
    }
    __m512i first(__m512i a, __m512i b) const { return _mm512_permutex2var_epi16(a, low, b); }
    __m512i second(__m512i a, __m512i b) const { return _mm512_permutex2var_epi16(a, high, b); }
};

inline __m512i row_or_zero(const char* at, bool there) { return there ? _mm512_loadu_si512(at) : _mm512_setzero_si512(); }

// 32 rows of 64 bytes from `at(row)`: the right operand of a product over them, two tiles.
template <class At> inline void pair_rows(const Pairs& pairs, At at, char* into) {
    for (int i = 0; i < 16; ++i) {
        const __m512i a = at(2 * i), b = at(2 * i + 1);
        _mm512_store_si512(into + i * 64, pairs.first(a, b));
        _mm512_store_si512(into + TILE + i * 64, pairs.second(a, b));
    }
}

// A row of a tiled matrix `wide` columns wide.
inline char* tile_row(char* tiles, int wide, int row) { return tiles + size_t(row / 16) * (wide / WIDE) * TILE + row % 16 * 64; }
inline const char* tile_row(const char* tiles, int wide, int row) { return tile_row(const_cast<char*>(tiles), wide, row); }

inline void zero_tile_rows(char* tiles, int wide, int from, int to) {
    for (int r = from; r < to; ++r)
        for (int i = 0; i < wide / WIDE; ++i) _mm512_store_si512(tile_row(tiles, wide, r) + size_t(i) * TILE, _mm512_setzero_si512());
}

// The left operand of a product over tokens: `rows` rows (a multiple of 32) of tiles, transposed. A
// block of 16 columns has a tile for each 32 rows, `steps` of them; these rows begin at `step`.
inline void turn_tiles(const char* tiles, int wide, int rows, char* into, int steps, int step) {
    const Pairs pairs;
    alignas(64) char both[2 * TILE];
    const size_t next = size_t(wide / WIDE) * TILE;
    for (int r = 0; r < rows; r += 32, ++step)
        for (int p = 0; p < wide / WIDE; ++p) {
            const char* from = tiles + size_t(r / 16) * next + size_t(p) * TILE;
            pair_rows(pairs, [&](int i) { return _mm512_load_si512(from + (i / 16) * next + i % 16 * 64); }, both);
            char* to = into + (size_t(2 * p) * steps + step) * TILE;
            transpose16(both, 64, 16, to);
            transpose16(both + TILE, 64, 16, to + size_t(steps) * TILE);
        }
}

// Activation of 16 values and its derivative there.
inline void activate_both(__m512 x, int kind, __m512& value, __m512& slope) {
    const __m512 one = _mm512_set1_ps(1.f);
    if (kind == GELU) {
        // x Phi(x), whose slope is Phi(x) + x phi(x)
        const __m512 odds = _mm512_fmadd_ps(erf_of(x), _mm512_set1_ps(0.5f), _mm512_set1_ps(0.5f));
        value = _mm512_mul_ps(x, odds);
        const __m512 square = _mm512_mul_ps(x, x);
        const __m512 bell = exp2_of(_mm512_mul_ps(square, _mm512_set1_ps(-0.72134752f)));
        slope = _mm512_fmadd_ps(_mm512_mul_ps(x, bell), _mm512_set1_ps(0.39894228f), odds);
    } else if (kind == GELU_TANH) {
        const __m512 square = _mm512_mul_ps(x, x);
        const __m512 inner = _mm512_fmadd_ps(square, _mm512_set1_ps(0.044715f), one);
        const __m512 z = _mm512_mul_ps(_mm512_mul_ps(x, inner), _mm512_set1_ps(1.5957691f * 1.44269504f));
        const __m512 small = exp2_of(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(z)));
        const __m512 low = _mm512_div_ps(small, _mm512_add_ps(one, small));
        const __mmask16 positive = _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_GT_OQ);
        const __m512 odds = _mm512_mask_sub_ps(low, positive, one, low);
        value = _mm512_mul_ps(x, odds);
        const __m512 steep = _mm512_fmadd_ps(square, _mm512_set1_ps(3.f * 0.044715f * 1.5957691f), _mm512_set1_ps(1.5957691f));
        slope = _mm512_fmadd_ps(_mm512_mul_ps(value, _mm512_sub_ps(one, odds)), steep, odds);
    } else {
        value = _mm512_max_ps(x, _mm512_setzero_ps());
        slope = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), one);
    }
}

// Norm of a row of `size` float32 values (a multiple of 32). Keeps the normalised row as bfloat16 and
// the inverse deviation; the result goes to a row of tiles and, where given, of plain bfloat16.
inline float norm_forward(const float* row, int size, float eps, const float* gain, const float* shift, char* hat,
                          char* tiles, char* plain) {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < size; i += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(row + i));
    const __m512 centre = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / size);
    __m512 square = _mm512_setzero_ps();
    for (int i = 0; i < size; i += 16) {
        const __m512 d = _mm512_sub_ps(_mm512_loadu_ps(row + i), centre);
        square = _mm512_fmadd_ps(d, d, square);
    }
    const float inverse = 1.f / std::sqrt(_mm512_reduce_add_ps(square) / size + eps);
    const __m512 factor = _mm512_set1_ps(inverse);
    for (int i = 0; i < size; i += 32) {
        const __m512 low = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + i), centre), factor);
        const __m512 high = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + i + 16), centre), factor);
        _mm512_storeu_si512(hat + i * 2, pack_bf16(low, high));
        const __m512i out = pack_bf16(_mm512_fmadd_ps(low, _mm512_loadu_ps(gain + i), _mm512_loadu_ps(shift + i)),
                                      _mm512_fmadd_ps(high, _mm512_loadu_ps(gain + i + 16), _mm512_loadu_ps(shift + i + 16)));
        if (tiles) _mm512_store_si512(tiles + size_t(i / WIDE) * TILE, out);
        if (plain) _mm512_storeu_si512(plain + i * 2, out);
    }
    return inverse;
}

// From the gradient of a norm's result, in `row`, to that of its input, in place; with dropout on
// what was added before it, the gradient of that goes to `tiles`. Sums over rows: those of the gain,
// the shift and the bias of the product before the norm, `size` floats each.
inline void norm_backward(float* row, int size, const char* hat, float inverse, const float* gain, uint32_t key,
                          unsigned dropped, char* tiles, float* by_gain, float* by_shift, float* by_bias) {
    __m512 sum = _mm512_setzero_ps(), product = _mm512_setzero_ps();
    for (int i = 0; i < size; i += 16) {
        const __m512 given = _mm512_loadu_ps(row + i), x = load_bf16(hat + i * 2);
        const __m512 both = _mm512_mul_ps(given, x), d = _mm512_mul_ps(given, _mm512_loadu_ps(gain + i));
        _mm512_storeu_ps(by_gain + i, _mm512_add_ps(_mm512_loadu_ps(by_gain + i), both));
        _mm512_storeu_ps(by_shift + i, _mm512_add_ps(_mm512_loadu_ps(by_shift + i), given));
        sum = _mm512_add_ps(sum, d);
        product = _mm512_fmadd_ps(d, x, product);
    }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / size);
    const __m512 slope = _mm512_set1_ps(_mm512_reduce_add_ps(product) / size);
    const __m512 factor = _mm512_set1_ps(inverse), scale = _mm512_set1_ps(kept_scale(dropped));
    for (int i = 0; i < size; i += 32) {
        __m512 out[2];
        for (int half = 0; half < 2; ++half) {
            const int at = i + 16 * half;
            const __m512 d = _mm512_mul_ps(_mm512_loadu_ps(row + at), _mm512_loadu_ps(gain + at));
            const __m512 rest = _mm512_fnmadd_ps(load_bf16(hat + at * 2), slope, _mm512_sub_ps(d, mean));
            out[half] = _mm512_mul_ps(rest, factor);
            _mm512_storeu_ps(row + at, out[half]);
        }
        if (dropped) {
            const __mmask32 kept = kept32(key, i, dropped);
            out[0] = _mm512_maskz_mul_ps(__mmask16(kept), out[0], scale);
            out[1] = _mm512_maskz_mul_ps(__mmask16(kept >> 16), out[1], scale);
        }
        for (int half = 0; half < 2; ++half) {
            float* bias = by_bias + i + 16 * half;
            _mm512_storeu_ps(bias, _mm512_add_ps(_mm512_loadu_ps(bias), out[half]));
        }
        _mm512_store_si512(tiles + size_t(i / WIDE) * TILE, pack_bf16(out[0], out[1]));
    }
}
