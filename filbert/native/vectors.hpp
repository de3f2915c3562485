// Small pieces on AVX-512 vectors: bfloat16, exponentials, activations. Part of encoder.cpp.
#pragma once

using bf16 = uint16_t;
constexpr int TILE = 1024;   // bytes of a block
constexpr int WIDE = 32;     // columns of a panel, and bfloat16 rows of one step of a product

int up(int value, int step) { return (value + step - 1) / step * step; }

inline bf16 to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return bf16(bits >> 16 | 0x40);  // stays no number
    return bf16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline __m512 load_bf16(const void* p) {
    const __m256i raw = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

// 32 floats to 64 bytes of bfloat16, in order.
inline __m512i pack_bf16(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// 2^x for x <= 0, relative error 1e-4: 2^(x - floor x) by a polynomial, and the scale takes floor x.
inline __m512 exp2_of(__m512 x) {
    const __m512 part = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);  // 0 ... 1
    __m512 y = _mm512_set1_ps(0.078024525f);
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.22606718f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.69583352f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.99992522f));
    return _mm512_scalef_ps(y, x);
}

// erf(x / sqrt 2) = x * P(x^2) on |x| <= 4, fitted to the least largest error of x * Phi(x): 4e-5.
inline __m512 erf_of(__m512 x) {
    const __m512 limit = _mm512_set1_ps(4.f);
    const __m512 near = _mm512_min_ps(_mm512_max_ps(x, _mm512_sub_ps(_mm512_setzero_ps(), limit)), limit);
    const __m512 t = _mm512_mul_ps(near, near);
    __m512 p = _mm512_set1_ps(1.61268453737271e-10f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.4006941634040112e-08f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(5.432315301503915e-07f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.2590004042410375e-05f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.0001978162061823775f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.002267844508843538f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.019754954668849398f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.13282119155076982f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.7978454197184762f));
    return _mm512_mul_ps(near, p);
}

// x * Phi(x)
inline __m512 gelu_of(__m512 x) {
    const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
    return _mm512_fmadd_ps(half, erf_of(x), half);
}

// The approximation by tanh: x * sigmoid(1.5957691 (x + 0.044715 x^3)).
inline __m512 gelu_tanh_of(__m512 x) {
    const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    const __m512 u = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
    const __m512 z = _mm512_mul_ps(u, _mm512_set1_ps(1.5957691f * 1.44269504f));
    // 1 / (1 + 2^-z), written with 2^-|z| so that nothing overflows
    const __m512 small = exp2_of(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(z)));
    const __m512 low = _mm512_div_ps(small, _mm512_add_ps(_mm512_set1_ps(1.f), small));
    const __mmask16 positive = _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_sub_ps(low, positive, _mm512_set1_ps(1.f), low));
}

enum Activation { GELU = 0, GELU_TANH = 1, RELU = 2 };

inline __m512 activate(__m512 x, int kind) {
    if (kind == GELU) return gelu_of(x);
    if (kind == GELU_TANH) return gelu_tanh_of(x);
    return _mm512_max_ps(_mm512_setzero_ps(), x);  // the second if it is no number
}

// The first `left` of 16 elements, none or all where there are fewer or more.
inline __mmask16 mask_of(int left) { return left >= 16 ? 0xffff : left <= 0 ? 0 : __mmask16((1u << left) - 1); }

// Of 32 scores from `j` on: two to the power of what they are above `most`, 0 beyond `length`.
inline void odds_of(const float* scores, int j, int length, __m512 most, __m512& low, __m512& high) {
    low = exp2_of(_mm512_sub_ps(_mm512_load_ps(scores + j), most));
    high = exp2_of(_mm512_sub_ps(_mm512_load_ps(scores + j + 16), most));
    if (j + 32 > length) {
        low = _mm512_maskz_mov_ps(mask_of(length - j), low);
        high = _mm512_maskz_mov_ps(mask_of(length - j - 16), high);
    }
}

// 16 rows of 64 bytes, of which `rows` count and the others are zero: their 32-bit pieces transposed.
inline void transpose16(const char* from, size_t stride, int rows, char* into) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; ++i)
        r[i] = i < rows ? _mm512_loadu_si512(from + i * stride) : _mm512_setzero_si512();
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        _mm512_store_si512(into + i * 64, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
        _mm512_store_si512(into + (i + 4) * 64, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
        _mm512_store_si512(into + (i + 8) * 64, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
        _mm512_store_si512(into + (i + 12) * 64, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
    }
}
