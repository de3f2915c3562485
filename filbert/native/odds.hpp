// Softmax weights in bfloat16, cheaply. Part of encoder.cpp.
#pragma once

#include "vectors.hpp"

// Permutes bytes, which not every processor with AVX-512 does, but every one with AMX.
#pragma GCC push_options
#pragma GCC target("avx512vbmi")

// Softmax weights of an attention whose answer is rounded to bfloat16 anyway: of scores times 256, two to
// their power as bfloat16, 32 at a time. A bfloat16 is its exponent and 7 bits, so a score with 8 bits
// behind the point becomes one by a shift, but for the 7 bits, which a table bends from a line to the
// power: relative error 0.62 % at most where rounding alone has 0.39 %. No largest score is taken off before;
// `in_range` says of a row's total whether that was right. Scores beyond 127 and those that are no
// number give totals out of range.
struct QuickOdds {
    alignas(64) uint8_t table[128];
    __mmask32 masks[32] = {};  // of the places whose keys are among the first so many
    QuickOdds() {
        for (int i = 0; i < 128; ++i)
            table[i] = uint8_t(std::min(127.0, std::round(128 * (std::exp2((i + 0.25) / 128) - 1))));
        for (int left = 0; left < 32; ++left)
            for (int i = 0; i < 32; ++i) masks[left] |= __mmask32(key(i) < left) << i;
    }
    // Which of 32 scores stands at a place: the order in which two vectors are packed to one.
    static constexpr int key(int place) { return place / 8 * 4 + place % 4 + place % 8 / 4 * 16; }
    __m512i operator()(const float* scores) const {
        const __m512 limit = _mm512_set1_ps(32767.f);  // the second of `min` if the first is no number
        const __m512i a = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_load_ps(scores), limit));
        const __m512i b = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_load_ps(scores + 16), limit));
        const __m512i whole = _mm512_max_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(-127 * 256));
        const __m512i line = _mm512_srli_epi16(_mm512_add_epi16(whole, _mm512_set1_epi16(127 * 256)), 1);
        const __m512i bent = _mm512_permutex2var_epi8(_mm512_load_si512(table), line, _mm512_load_si512(table + 64));
        return _mm512_ternarylogic_epi32(_mm512_set1_epi16(0x7f), bent, line, 0xca);  // the first chooses
    }
    // The sum of such weights goes on.
    static __m512 add(__m512 total, __m512i odds) {
        return _mm512_dpbf16_ps(total, (__m512bh)odds, (__m512bh)_mm512_set1_epi16(0x3f80));
    }
    static bool in_range(float total) { return total > 0x1p-80f && total < 0x1p100f; }
    // 32 bfloat16 in the order of their keys, put into that of the places.
    static __m512i placed(__m512i odds) {
        alignas(64) uint16_t keys[32];
        for (int i = 0; i < 32; ++i) keys[i] = uint16_t(key(i));
        return _mm512_permutexvar_epi16(_mm512_load_si512(keys), odds);
    }
};

#pragma GCC pop_options
