// Attention of one head of one text, forward and backward, for training. Part of encoder.cpp.
//
// Queries carry log2(e) / sqrt(head size), so that weights are powers of 2. The forward pass keeps the
// logarithm of each row's sum; the backward pass makes the weights again from it (Dao et al. 2022,
// arXiv 2205.14135, algorithm 4), transposed: rows of keys, columns of queries. So its weights and
// their gradient are left operands of the sums over queries (dV = P^T dO, dK = dS^T Q) as they are,
// and, paired, the right operand of the sum over keys (dQ^T = K^T dS^T).
#pragma once

#include "train_products.hpp"

constexpr float LOG2_E = 1.44269504089f, LN_2 = 0.69314718056f;

struct HeadRows {  // one head of one text
    const char* q;       // (queries, head) bfloat16 rows
    const char* kv;      // (keys, 2 * head): key and value of a token
    float* sums;         // (queries,) log2 of each row's sum of weights
    const int* tokens;   // (queries,) place of each in the batch, for dropout
    int queries, keys, size;
    int head, layer;
};

struct Dropout {
    uint64_t seed = 0;
    unsigned weights = 0, updates = 0;  // how many of 65536 are dropped
};

inline size_t attention_memory(int queries, int keys, int size) {
    const size_t q = up(queries, 32), k = up(keys, 32), s = size;
    const size_t forward = k * s * 4 + 32 * k * 6;
    const size_t backward = q * s * 8 + k * s * 2 + 3 * k * q * 2 + 2 * 32 * k * 4;
    return std::max(forward, backward) + 4096;
}

// Rows as a right operand whose columns they are: for each 32 rows, `size` / 32 steps of two tiles.
inline void turn_rows(const char* rows, size_t stride, int count, int size, char* into) {
    for (int j = 0; j < up(count, 32); j += 16)
        for (int d = 0; d < size / WIDE; ++d)
            transpose16(rows + j * stride + d * 64, stride, std::max(0, std::min(16, count - j)),
                        into + (size_t(j / 32) * (size / WIDE) + d) * 2 * TILE + (j % 32 / 16) * TILE);
}

// Rows as a right operand that is summed over them: for each 32 rows, `size` / 16 tiles.
inline void stack_rows(const Pairs& pairs, const char* rows, size_t stride, int count, int size, char* into) {
    for (int j = 0; j < count; j += 32)
        for (int d = 0; d < size; d += 32)
            pair_rows(pairs, [&](int i) { return row_or_zero(rows + (j + i) * stride + d * 2, j + i < count); },
                      into + (size_t(j / 32) * (size / 16) + d / 16) * TILE);
}

// All 32 x 32 sums.
inline void block32(const char* a, size_t lower, size_t stride, size_t a_step, const char* b, size_t b_step, int steps, float* sums) {
    block32(a, lower, stride, a_step, b, b_step, steps, 32, sums, 128);
}

// The context goes to rows `row` on of tiles `wide` columns wide.
inline void attend_forward(const HeadRows& h, const Dropout& drop, char* memory, char* context, int wide, int row) {
    const Pairs pairs;
    const int size = h.size, steps = size / WIDE, keys = up(h.keys, 32), length = h.keys;
    const size_t q_stride = size_t(size) * 2, stride = size_t(size) * 4;
    char* kept = memory;
    char* values = kept + size_t(keys) * size * 2;
    float* scores = reinterpret_cast<float*>(values + size_t(keys) * size * 2);
    char* odds = reinterpret_cast<char*>(scores) + size_t(32) * keys * 4;  // tiles
    alignas(64) float block[32 * 32];
    turn_rows(h.kv, stride, length, size, kept);
    stack_rows(pairs, h.kv + size * 2, stride, length, size, values);
    const float scale = kept_scale(drop.weights);
    for (int begin = 0; begin < h.queries; begin += 32) {
        const int count = std::min(32, h.queries - begin);
        const char* a = h.q + size_t(begin) * q_stride;
        settle();
        for (int j = 0; j < keys; j += 32) {
            const char* b = kept + size_t(j / 32) * steps * 2 * TILE;
            block32(a, 16 * q_stride, q_stride, 64, b, 2 * TILE, steps, 32, scores + j, size_t(keys) * 4);
        }
        settle();
        float inverse[32];
        for (int i = 0; i < 32; ++i) {
            char* to_tile = odds + size_t(i / 16) * (keys / 32) * TILE + i % 16 * 64;
            if (i >= count) {
                for (int j = 0; j < keys; j += 32) _mm512_store_si512(to_tile + size_t(j / 32) * TILE, _mm512_setzero_si512());
                continue;
            }
            const float* line = scores + size_t(i) * keys;
            __m512 top = _mm512_set1_ps(-3.4e38f);
            for (int j = 0; j < length; j += 16) top = _mm512_mask_max_ps(top, mask_of(length - j), top, _mm512_load_ps(line + j));
            const float largest = _mm512_reduce_max_ps(top);
            const __m512 most = _mm512_set1_ps(largest);
            const uint32_t key = drop.weights ? mask_key(drop.seed, h.layer, OF_WEIGHTS, h.head, h.tokens[begin + i]) : 0;
            __m512 total = _mm512_setzero_ps();
            for (int j = 0; j < keys; j += 32) {
                __m512 x, y;
                odds_of(line, j, length, most, x, y);
                total = _mm512_add_ps(total, _mm512_add_ps(x, y));
                __m512i both = pack_bf16(x, y);
                if (drop.weights) both = _mm512_maskz_mov_epi16(kept32(key, j, drop.weights), both);
                _mm512_store_si512(to_tile + size_t(j / 32) * TILE, both);
            }
            const float sum = _mm512_reduce_add_ps(total);
            inverse[i] = scale / sum;
            h.sums[begin + i] = largest + std::log2(sum);
        }
        settle();
        for (int d = 0; d < size; d += 32) {
            block32(odds, size_t(keys / 32) * TILE, 64, TILE, values + size_t(d / 16) * TILE, size_t(size / 16) * TILE, keys / 32, block);
            settle();
            for (int i = 0; i < count; ++i) {
                const __m512 f = _mm512_set1_ps(inverse[i]);
                _mm512_store_si512(tile_row(context, wide, row + begin + i) + size_t(h.head * size + d) / WIDE * TILE,
                                   pack_bf16(_mm512_mul_ps(_mm512_load_ps(block + i * 32), f),
                                             _mm512_mul_ps(_mm512_load_ps(block + i * 32 + 16), f)));
            }
        }
    }
}

// 32 queries of all keys (of which `real` count), one row of 32 each: from scores and the gradient of
// the dropped weights to the weights after dropout and the gradient of the scores, which is
// P (dP - D) with D the sum of P dP over a query's keys. D is summed here, from the very P and dP: as
// dO O, with the rounded context, it would miss the cancellation where one key has nearly all weight.
// Tiles: for each 32 keys those of `weights` and `slopes` are `next` bytes apart.
template <bool dropping>
inline void weigh_keys(const Pairs& pairs, float* scores, float* given, const float* sums, const uint32_t* keys, const Dropout& drop,
                       int real, char* weights, char* slopes, size_t next, char* paired) {
    const __m512 sums1 = _mm512_load_ps(sums), sums2 = _mm512_load_ps(sums + 16), most = _mm512_set1_ps(1.f);
    const __m512 scale = _mm512_set1_ps(kept_scale(drop.weights));
    const __m512i limit = _mm512_set1_epi16(short(drop.weights));
    __m512 mean1 = _mm512_setzero_ps(), mean2 = mean1;
    const __m512 none = _mm512_setzero_ps();
    for (int i = 0; i < up(real, 32); i += 2) {
        char* to = weights + i / 32 * next + i % 32 * 64;
        float *s = scores + i * 32, *g = given + i * 32;
        __m512 x[4], y[4];  // key i: queries 0 to 15, 16 to 31; key i + 1 likewise
        for (int j = 0; j < 4; ++j) {
            const bool there = i + j / 2 < real;
            x[j] = there ? exp2_of(_mm512_min_ps(_mm512_sub_ps(_mm512_load_ps(s + j * 16), j % 2 ? sums2 : sums1), most)) : none;
            y[j] = there ? _mm512_load_ps(g + j * 16) : none;
            _mm512_store_ps(s + j * 16, x[j]);
        }
        if constexpr (dropping) {
            const __m512i step = _mm512_set1_epi32(int(uint32_t(i / 2) * WORD_STEP));
            for (int half = 0; half < 2; ++half) {
                const __m512i words = mask_words(_mm512_add_epi32(_mm512_load_si512(keys + 16 * half), step));
                const __mmask32 both = _mm512_cmpge_epu16_mask(words, limit);  // even bits: key i
                const __mmask16 one = __mmask16(_pext_u32(both, 0x55555555u)), two = __mmask16(_pext_u32(both, 0xaaaaaaaau));
                y[half] = _mm512_maskz_mul_ps(one, y[half], scale), y[half + 2] = _mm512_maskz_mul_ps(two, y[half + 2], scale);
                mean1 = half ? mean1 : _mm512_fmadd_ps(x[0], y[0], _mm512_fmadd_ps(x[2], y[2], mean1));
                mean2 = half ? _mm512_fmadd_ps(x[1], y[1], _mm512_fmadd_ps(x[3], y[3], mean2)) : mean2;
                x[half] = _mm512_maskz_mul_ps(one, x[half], scale), x[half + 2] = _mm512_maskz_mul_ps(two, x[half + 2], scale);
            }
        } else {
            mean1 = _mm512_fmadd_ps(x[0], y[0], _mm512_fmadd_ps(x[2], y[2], mean1));
            mean2 = _mm512_fmadd_ps(x[1], y[1], _mm512_fmadd_ps(x[3], y[3], mean2));
        }
        for (int j = 0; j < 4; ++j) _mm512_store_ps(g + j * 16, y[j]);
        _mm512_store_si512(to, pack_bf16(x[0], x[1]));
        _mm512_store_si512(to + 64, pack_bf16(x[2], x[3]));
    }
    for (int i = 0; i < up(real, 32); i += 2) {
        char *to = slopes + i / 32 * next + i % 32 * 64, *pair = paired + size_t(i / 32) * 2 * TILE + i % 32 * 32;
        __m512 x[4];
        for (int j = 0; j < 4; ++j) {
            const size_t at = size_t(i) * 32 + j * 16;
            x[j] = _mm512_mul_ps(_mm512_load_ps(scores + at), _mm512_sub_ps(_mm512_load_ps(given + at), j % 2 ? mean2 : mean1));
        }
        const __m512i one = pack_bf16(x[0], x[1]), two = pack_bf16(x[2], x[3]);
        _mm512_store_si512(to, one);
        _mm512_store_si512(to + 64, two);
        _mm512_store_si512(pair, pairs.first(one, two));
        _mm512_store_si512(pair + TILE, pairs.second(one, two));
    }
}

// out: the context's gradient, (queries, head) bfloat16 rows. Gradients go to rows of tiles: of queries
// (unscaled) from `row` on, of keys and values from `first`.
inline void attend_backward(const HeadRows& h, const Dropout& drop, char* memory, const char* out, int wide, int row, char* by_query,
                            char* by_pair, int first) {
    const Pairs pairs;
    const int size = h.size, steps = size / WIDE, keys = up(h.keys, 32), queries = up(h.queries, 32);
    const int width = size * 2, q_blocks = queries / 32, k_blocks = keys / 32;
    const size_t stride = size_t(width) * 2, q_stride = size_t(size) * 2, operand = size_t(queries) * size * 2;
    char *q_turned = memory, *out_turned = q_turned + operand, *q_stacked = out_turned + operand, *out_stacked = q_stacked + operand;
    char* k_turned = out_stacked + operand;  // left operand, 16 of the head's columns a row block
    char* weights = k_turned + size_t(keys) * size * 2;  // left operands: for 32 keys two tiles for each 32 queries
    char* slopes = weights + size_t(keys) * queries * 2;
    char* paired = slopes + size_t(keys) * queries * 2;  // the right operand of dQ^T
    float* scores = reinterpret_cast<float*>(paired + size_t(keys) * queries * 2);  // of 32 queries, transposed
    float* given = scores + size_t(32) * keys;
    alignas(64) float block[32 * 32], other[32 * 32];

    turn_rows(h.q, q_stride, h.queries, size, q_turned);
    turn_rows(out, q_stride, h.queries, size, out_turned);
    stack_rows(pairs, h.q, q_stride, h.queries, size, q_stacked);
    stack_rows(pairs, out, q_stride, h.queries, size, out_stacked);
    for (int j = 0; j < h.keys; j += 32)
        for (int d = 0; d < size; d += 32) {
            alignas(64) char both[2 * TILE];
            pair_rows(pairs, [&](int i) { return row_or_zero(h.kv + (j + i) * stride + d * 2, j + i < h.keys); }, both);
            char* to = k_turned + (size_t(d / 16) * k_blocks + j / 32) * TILE;
            transpose16(both, 64, 16, to);
            transpose16(both + TILE, 64, 16, to + size_t(k_blocks) * TILE);
        }
    const size_t next = size_t(q_blocks) * 2 * TILE;
    for (int q = 0; q < q_blocks; ++q) {
        alignas(64) float sums[32];
        alignas(64) uint32_t mask_keys[32] = {};
        for (int i = 0; i < 32; ++i) {
            const bool there = q * 32 + i < h.queries;
            sums[i] = there ? h.sums[q * 32 + i] : 1e30f;  // weights of 0
            if (there && drop.weights) mask_keys[i] = mask_key(drop.seed, h.layer, OF_WEIGHTS, h.head, h.tokens[q * 32 + i]);
        }
        const size_t panel = size_t(q) * steps * 2 * TILE;
        settle();
        for (int key = 0; key < keys; key += 32) {
            const char* k = h.kv + key * stride;
            block32(k, 16 * stride, stride, 64, q_turned + panel, 2 * TILE, steps, scores + key * 32);
            block32(k + size * 2, 16 * stride, stride, 64, out_turned + panel, 2 * TILE, steps, given + key * 32);
        }
        settle();
        const auto weigh = drop.weights ? &weigh_keys<true> : &weigh_keys<false>;
        weigh(pairs, scores, given, sums, mask_keys, drop, h.keys, weights + size_t(q) * 2 * TILE, slopes + size_t(q) * 2 * TILE, next,
              paired + size_t(q) * k_blocks * 2 * TILE);
    }
    // sums over the queries for 32 keys, handed on as rows of tiles
    auto strip = [&](const char* left, const char* right, int d, int key, float factor, int column) {
        settle();
        block32(left + key / 32 * next, TILE, 64, 2 * TILE, right + size_t(d / 16) * TILE, size_t(size / 16) * TILE, q_blocks, block);
        settle();
        const __m512 f = _mm512_set1_ps(factor);
        for (int i = 0; i < 32 && key + i < h.keys; ++i)
            _mm512_store_si512(tile_row(by_pair, 2 * wide, first + key + i) + size_t(column + d) / WIDE * TILE,
                               pack_bf16(_mm512_mul_ps(_mm512_load_ps(block + i * 32), f),
                                         _mm512_mul_ps(_mm512_load_ps(block + i * 32 + 16), f)));
    };
    for (int key = 0; key < keys; key += 32)
        for (int d = 0; d < size; d += 32) {
            strip(weights, out_stacked, d, key, 1.f, wide + h.head * size);
            strip(slopes, q_stacked, d, key, LN_2, h.head * size);
        }
    const __m512 scale = _mm512_set1_ps(1.f / std::sqrt(float(size)));
    for (int d = 0; d < size; d += 32)
        for (int q = 0; q < q_blocks; ++q) {
            settle();
            block32(k_turned + size_t(d / 16) * k_blocks * TILE, size_t(k_blocks) * TILE, 64, TILE,
                    paired + size_t(q) * k_blocks * 2 * TILE, 2 * TILE, k_blocks, block);
            settle();
            for (int half = 0; half < 2; ++half) {  // 16 queries: rows again
                transpose16(reinterpret_cast<const char*>(block + half * 16), 128, 16, reinterpret_cast<char*>(other));
                transpose16(reinterpret_cast<const char*>(block + 512 + half * 16), 128, 16, reinterpret_cast<char*>(other + 256));
                for (int i = 0; i < 16 && q * 32 + half * 16 + i < h.queries; ++i)
                    _mm512_store_si512(tile_row(by_query, wide, row + q * 32 + half * 16 + i) + size_t(h.head * size + d) / WIDE * TILE,
                                       pack_bf16(_mm512_mul_ps(_mm512_load_ps(other + i * 16), scale),
                                                 _mm512_mul_ps(_mm512_load_ps(other + 256 + i * 16), scale)));
            }
        }
}
