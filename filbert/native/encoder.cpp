// The BERT encoder for processors with AMX: bfloat16 in, float32 sums, no padding. In float32, on
// AVX-512 alone, it is plain.hpp. Compiled a second time, with FILBERT_VECTORS, it serves processors
// that multiply bfloat16 and int8 on AVX-512 vectors but have no AMX (tiles.hpp).
//
// Called from filbert/model/native.py through ctypes; the slow twin is filbert/model/bert.py, and
// tests/numerics/test_native.py holds this file to it. Plain C++17, no library but the
// standard one.
//
// A batch is packed: the tokens of all texts end to end. It is cut into chunks of whole texts; a
// chunk goes through all layers on one thread, so threads meet only when all is done ("bulk"). A
// batch of a single chunk is computed by all threads together, which then wait for each other
// between the parts of a layer ("team").
//
// The headers beside this file are its parts, not meant for others: they count on what it includes
// and on the instructions that it allows.
//
// Three layouts:
//   tiles   activations that a product reads: blocks of 16 rows and 64 bytes of columns (32
//           bfloat16 or 64 int8), 1 KB each, the blocks of a row block side by side
//   panels  weights: 32 columns wide; for each 64 bytes of rows two blocks of 1 KB in the order
//           that AMX wants its right operand, pairs (int8: fours) of rows interleaved
//   rows    plain row by row: queries, keys and values, and the float32 sums before a norm
//
// Widths that are no multiple of 32 are padded with zeros when weights are packed.
//
// With int8 the weights have a scale for each column, fixed when they are packed, and activations
// one for each token, found when they are computed; sums are int32 and exact. Which of a layer's
// four products are int8 is the caller's choice. Attention, norms and residuals stay as they are.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#define FILBERT_X86 1
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

// Raised with that of filbert/model/native_library.py whenever an export changes: a library that was
// compiled from an older state is then refused.
constexpr int ABI = 5;
EXPORT int filbert_native_abi() { return ABI; }

// What this processor and kernel offer, added up: 1 bfloat16 and int8, as this was compiled for AMX or
// for vectors, 2 AVX-512 for float32.
EXPORT int filbert_native_level() {
#ifdef FILBERT_X86
    unsigned a, b, c, d;
    if (!__get_cpuid_count(1, 0, &a, &b, &c, &d)) return 0;
    const bool saved = c >> 27 & 1, fma = (c >> 12 & 1) && (c >> 29 & 1);  // OSXSAVE, FMA and F16C
    if (!saved || !fma || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
#if !defined(FILBERT_VECTORS) && !defined(FILBERT_EMULATED)
    const bool amx = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1);
#endif
    const bool avx2 = (b >> 5 & 1) && (b >> 8 & 1);  // and BMI2
    const bool avx512 = (b >> 16 & 1) && (b >> 30 & 1) && (b >> 17 & 1) && (b >> 31 & 1);
    const bool vbmi = c >> 1 & 1, vnni = c >> 11 & 1;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!avx2 || !avx512 || (low & 0xe6) != 0xe6) return 0;  // the kernel keeps AVX-512 state
    if (!vbmi || !vnni || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return 2;  // AVX-512-BF16
#if defined(FILBERT_VECTORS) || defined(FILBERT_EMULATED)  // the latter by tests/native/amx.hpp
    return 3;
#else
    if (!amx || (low >> 17 & 3) != 3) return 2;  // and the state of tiles
    constexpr int request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0 ? 3 : 2;
#endif
#else
    return 0;
#endif
}

#ifdef FILBERT_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")
#ifndef FILBERT_VECTORS
#pragma GCC target("amx-tile,amx-bf16,amx-int8")
#endif

namespace {
#include "encoder.hpp"
#include "plain.hpp"
#include "train.hpp"
#include "train_words.hpp"
#include "write.hpp"
}  // namespace

// What an export that may fail returns, 0 if it did not; native_library.py puts it into words.
enum Failure { NO_MEMORY = 1, NO_THREADS = 2, DEFECT = 3, UNSOUND = 4 };

// No exception leaves this library: nobody there could catch it, and the process would end.
template <class Work> static int guarded(Work work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    } catch (const std::system_error&) {  // of std::thread
        return NO_THREADS;
    } catch (...) {
        return DEFECT;
    }
}

// Null where it could not be made: memory ran out.
template <class Made, class... Given> static void* made(Given... given) {
    void* handle = nullptr;
    guarded([&] { handle = new Made(given...); });
    return handle;
}

// shape: layers, hidden, heads, head_size, inner, activation. Null if memory ran out.
// plain: computes in float32 on AVX-512 vectors, else in bfloat16 and int8 on tiles.
EXPORT void* filbert_encoder_new(const int* shape, float eps, int plain) {
    void* handle = nullptr;
    guarded([&] { handle = plain ? static_cast<Encoding*>(new PlainEncoder(shape, eps)) : new Encoder(shape, eps); });
    return handle;
}

EXPORT void filbert_encoder_free(void* encoder) { delete static_cast<Encoding*>(encoder); }

// Tables as float32, kept alive by the caller, and the norm of the embeddings.
EXPORT int filbert_encoder_embeddings(void* handle, const float* words, const float* places, const float* kinds,
                                      const float* gain, const float* shift) {
    return guarded([&] { static_cast<Encoding*>(handle)->embeddings(words, places, kinds, gain, shift); });
}

// weights: query, key and value one below the other (3 * hidden, hidden), output, inner, outer, each
// followed by its bias, and the gains and shifts of both norms: 12 pointers to float32. int8: which
// products are computed so, 1 projections, 2 output, 4 inner, 8 outer, added up. A layer that it failed
// for must not be computed with.
EXPORT int filbert_encoder_layer(void* handle, int number, const float* const* w, int int8) {
    return guarded([&] { static_cast<Encoding*>(handle)->layer(number, w, int8); });
}

// Encode `texts` texts, packed, of `tokens` tokens in all. ids and types (tokens,) int64, types may be
// null; or hidden (tokens, hidden). limits: words of the vocabulary, kinds, places; a batch that goes
// beyond them, or whose lengths are none, is UNSOUND and not computed. rows: 0 the states of all tokens,
// out (tokens, hidden); 1 those of first tokens, 2 the mean of each text's, out (texts, hidden). 0, or a
// `Failure`.
EXPORT int filbert_encoder_run(void* handle, const int64_t* ids, const int64_t* types, const float* hidden,
                               const int64_t* lengths, int texts, int64_t tokens, const int64_t* limits, float* out,
                               int rows, int threads, int chunk_tokens) {
    auto within = [](const int64_t* values, int64_t count, int64_t low, int64_t limit) {
        bool fine = true;
        for (int64_t i = 0; i < count; ++i) fine &= values[i] >= low && values[i] < limit;
        return fine;
    };
    if (texts < 1 || tokens > INT32_MAX || !within(lengths, texts, 1, limits[2] + 1)) return UNSOUND;
    if (std::accumulate(lengths, lengths + texts, int64_t(0)) != tokens) return UNSOUND;
    if (ids && !within(ids, tokens, 0, limits[0])) return UNSOUND;
    if (types && !within(types, tokens, 0, limits[1])) return UNSOUND;
    return guarded([&] {
        const std::vector<int> counts(lengths, lengths + texts);
        static_cast<Encoding*>(handle)->run({ids, types, hidden, counts.data(), out, Rows(rows)}, texts, threads, chunk_tokens);
    });
}

// A run with so many threads follows soon: those that sleep wake meanwhile. 0, or a `Failure`.
EXPORT int filbert_encoder_rouse(void* handle, int threads) {
    return guarded([&] { static_cast<Encoding*>(handle)->rouse(threads); });
}

// After a fork, in the child, before it has threads.
EXPORT void filbert_encoder_forked(void* handle) { static_cast<Encoding*>(handle)->forked(); }

// The rate of this thread's products alone, GFLOP/s: nothing can be faster. With `loads` each
// product's operands come from the first-level cache, as they must in a real product.
EXPORT double filbert_tile_rate(int steps, int loads) {
    alignas(64) static const char zeros[8 * TILE] = {};
    const Tiles tiles;
    const auto start = std::chrono::steady_clock::now();
#ifdef FILBERT_VECTORS
    __m512 sums[16] = {};
    for (__m512& sum : sums) __asm__ volatile("" : "+v"(sum));  // others, as far as the compiler knows
    __m512i a = _mm512_setzero_si512(), b = a;
    for (int i = 0; i < steps; ++i)
        for (int k = 0; k < 64; ++k) {  // 64 times 16 vectors are four tiles
            if (loads) a = same32(zeros + k * 4), b = _mm512_load_si512(zeros + TILE + k % 16 * 64);
            __asm__ volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 16
            for (__m512& sum : sums) sum = _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
        }
    for (__m512& sum : sums) __asm__ volatile("" ::"v"(sum));
#else
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);
    for (int i = 0; i < steps; ++i) {
        if (loads) {
            const char* at = zeros + i % 2 * 4 * TILE;
            _tile_loadd(4, at, 64); _tile_loadd(5, at + TILE, 64);
            _tile_loadd(6, at + 2 * TILE, 64); _tile_loadd(7, at + 3 * TILE, 64);
        }
        _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
    }
#endif
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    return steps * 4.0 * 2 * 16 * 16 * 32 / seconds.count() / 1e9;
}

// shape: as for `filbert_encoder_new`, hidden, head and inner size multiples of 32. Null if memory ran out.
EXPORT void* filbert_train_new(const int* shape, float eps) { return made<Trainer>(shape, eps); }

EXPORT void filbert_train_free(void* trainer) { delete static_cast<Trainer*>(trainer); }

// The stack of layers forward. weights: of each layer 16 tensors in the order of `Tensor`, bfloat16;
// hidden: (tokens, hidden); wanted: null, or places of the tokens whose result is asked for; out:
// (tokens or wanted, hidden). dropped: of 65536, attention weights and updates of the states. Returns
// the number under which what the way back needs is kept, or a `Failure` below 0.
EXPORT int filbert_train_forward(void* trainer, const void* const* weights, const void* hidden, const int* lengths, int texts,
                                 const int* wanted, int wanted_count, uint64_t seed, const int* dropped, void* out, int threads,
                                 int piece_tokens) {
    int run = 0;
    const int failure = guarded([&] {
        const Dropout drop{seed, unsigned(dropped[0]), unsigned(dropped[1])};
        run = static_cast<Trainer*>(trainer)->forward(reinterpret_cast<const bf16* const*>(weights), static_cast<const bf16*>(hidden),
                                                      lengths, texts, wanted, wanted_count, drop, static_cast<bf16*>(out), threads,
                                                      piece_tokens);
    });
    return failure ? -failure : run;
}

// And back: from the gradient of `out` to that of `hidden` (may be null) and of the weights (each may
// be null); layers below `lowest` are left out. 0, or a `Failure`.
EXPORT int filbert_train_backward(void* trainer, int run, const void* const* weights, const void* given, void* by_hidden,
                                  void* const* grads, int lowest, int threads) {
    return guarded([&] {
        static_cast<Trainer*>(trainer)->backward(run, reinterpret_cast<const bf16* const*>(weights), static_cast<const bf16*>(given),
                                                 static_cast<bf16*>(by_hidden), reinterpret_cast<bf16* const*>(grads), lowest, threads);
    });
}

// Let go of what a forward pass kept.
EXPORT void filbert_train_release(void* trainer, int run) { static_cast<Trainer*>(trainer)->release(run); }

// The loss of words and its gradients. Null if memory ran out.
EXPORT void* filbert_words_new() { return made<WordTrainer>(); }

// sizes: rows, words, width (a multiple of 32). hidden (rows, width), weight (words, width) and bias
// (words,) bfloat16; labels (rows,) int64, each a word. kept: (rows,) float32, for the way back. 0, or a
// `Failure`.
EXPORT int filbert_words_forward(void* handle, const int* sizes, float smoothing, const void* hidden, const void* weight,
                                 const void* bias, const int64_t* labels, float* kept, float* loss, int64_t* right, int threads) {
    return guarded([&] {
        const WordBatch batch{static_cast<const bf16*>(hidden), static_cast<const bf16*>(weight), static_cast<const bf16*>(bias),
                              labels, sizes[0], sizes[1], sizes[2], smoothing};
        static_cast<WordTrainer*>(handle)->forward(batch, kept, loss, right, threads);
    });
}

// Gradients, bfloat16, of `scale` times that loss; each may be null.
EXPORT int filbert_words_backward(void* handle, const int* sizes, float smoothing, const void* hidden, const void* weight,
                                  const void* bias, const int64_t* labels, const float* kept, float scale, void* by_hidden,
                                  void* by_weight, void* by_bias, int threads) {
    return guarded([&] {
        const WordBatch batch{static_cast<const bf16*>(hidden), static_cast<const bf16*>(weight), static_cast<const bf16*>(bias),
                              labels, sizes[0], sizes[1], sizes[2], smoothing};
        static_cast<WordTrainer*>(handle)->backward(batch, kept, scale, static_cast<bf16*>(by_hidden), static_cast<bf16*>(by_weight),
                                                    static_cast<bf16*>(by_bias), threads);
    });
}

// Which of `count` elements of a row are kept, 1 or 0: element by element, to check the masks by. site:
// 0 attention weights (a row is a query's), 1 updates by attention, 2 by the feed-forward part.
EXPORT void filbert_train_mask(uint64_t seed, int layer, int site, int head, int token, int dropped, int count, uint8_t* out) {
    const uint32_t key = mask_key(seed, layer, site, head, token);
    for (int i = 0; i < count; ++i) out[i] = (mask_word(key, i / 2) >> (i % 2 ? 16 : 0) & 0xffff) >= uint32_t(dropped);
}

// A decoder that writes. shape: as for `filbert_encoder_new`, hidden, head and inner size multiples of 32;
// hidden is heads times head size. Null if memory ran out.
EXPORT void* filbert_writer_new(const int* shape, float eps) { return made<Writer>(shape, eps); }

EXPORT void filbert_writer_free(void* writer) { delete static_cast<Writer*>(writer); }

// A layer's weights, bfloat16, each followed by its bias: query, key, value and output of its own side,
// query and output of the other, inner, outer; then gains and shifts of the three norms: 22 pointers.
EXPORT int filbert_writer_layer(void* writer, int number, const void* const* weights) {
    return guarded([&] { static_cast<Writer*>(writer)->take_layer(number, reinterpret_cast<const bf16* const*>(weights)); });
}

// The word head: dense layer and bias, gain and shift of the norm, (words, hidden) matrix and bias.
EXPORT int filbert_writer_words(void* writer, int words, const void* const* weights) {
    return guarded([&] { static_cast<Writer*>(writer)->take_words(words, reinterpret_cast<const bf16* const*>(weights)); });
}

// One token more of each text. sizes and pointers: the fields of `Step` in their order.
EXPORT int filbert_writer_step(void* writer, const int* sizes, const void* const* pointers, int threads) {
    return guarded([&] {
        const Step step{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6],
                        static_cast<const bf16*>(pointers[0]), static_cast<const int64_t*>(pointers[1]),
                        static_cast<const int64_t*>(pointers[2]), static_cast<float*>(const_cast<void*>(pointers[3])),
                        static_cast<float*>(const_cast<void*>(pointers[4])), pointers + 5};
        static_cast<Writer*>(writer)->step(step, threads);
    });
}

// Attention of float32 queries, (texts, heads * head_size) in rows `stride` apart, at keys and values (rows,
// heads, slots, head_size), `texts` being `beams` a row. path: (texts, room) which entries a text sees, the
// first `entries` columns, or null; lengths: (rows,) how many of the first, or null. out: (texts, hidden).
// sizes: texts, beams, stride, slots, room, entries.
EXPORT int filbert_writer_attend(void* writer, const int* sizes, const float* asked, const float* keys, const float* values,
                                 const int64_t* path, const int64_t* lengths, float* out, int threads) {
    return guarded([&] {
        Writer& w = *static_cast<Writer*>(writer);
        const size_t head = size_t(sizes[3]) * w.shape.head_size;
        const Side<float> side{keys, values, head * w.shape.heads, head, path, size_t(sizes[4]), lengths, sizes[5]};
        w.attend_all(side, asked, sizes[2], sizes[0], sizes[1], sizes[5], out, threads);
    });
}

// The logarithm of the sum of the exponentials of each row of (texts, words) float32 logits.
EXPORT int filbert_writer_totals(void* writer, const float* logits, int texts, int words, float* out, int threads) {
    return guarded([&] { static_cast<Writer*>(writer)->totals(logits, texts, words, out, threads); });
}

// The `count` highest of logits, (rows, beams, words), + offsets, (rows, beams), of each row, best first:
// scores, beams and words, each (rows, count). sizes: rows, beams, words, count; count is at most words.
EXPORT int filbert_writer_best(void* writer, const int* sizes, const float* logits, const float* offsets, float* scores, int64_t* beams,
                               int64_t* words, int threads) {
    return guarded([&] { static_cast<Writer*>(writer)->best(sizes, logits, offsets, scores, beams, words, threads); });
}

#pragma GCC pop_options
#else

EXPORT void* filbert_encoder_new(const int*, float, int) { return nullptr; }
EXPORT void filbert_encoder_free(void*) {}
EXPORT int filbert_encoder_embeddings(void*, const float*, const float*, const float*, const float*, const float*) { return 1; }
EXPORT int filbert_encoder_layer(void*, int, const float* const*, int) { return 1; }
EXPORT int filbert_encoder_run(void*, const int64_t*, const int64_t*, const float*, const int64_t*, int, int64_t, const int64_t*, float*, int, int, int) { return 1; }
EXPORT int filbert_encoder_rouse(void*, int) { return 1; }
EXPORT void filbert_encoder_forked(void*) {}
EXPORT double filbert_tile_rate(int, int) { return 0; }
EXPORT void* filbert_train_new(const int*, float) { return nullptr; }
EXPORT void filbert_train_free(void*) {}
EXPORT int filbert_train_forward(void*, const void* const*, const void*, const int*, int, const int*, int, uint64_t, const int*, void*, int, int) { return -1; }
EXPORT int filbert_train_backward(void*, int, const void* const*, const void*, void*, void* const*, int, int) { return 1; }
EXPORT void filbert_train_release(void*, int) {}
EXPORT void* filbert_words_new() { return nullptr; }
EXPORT int filbert_words_forward(void*, const int*, float, const void*, const void*, const void*, const int64_t*, float*, float*, int64_t*, int) { return 1; }
EXPORT int filbert_words_backward(void*, const int*, float, const void*, const void*, const void*, const int64_t*, const float*, float, void*, void*, void*, int) { return 1; }
EXPORT void filbert_train_mask(uint64_t, int, int, int, int, int, int, uint8_t*) {}
EXPORT void* filbert_writer_new(const int*, float) { return nullptr; }
EXPORT void filbert_writer_free(void*) {}
EXPORT int filbert_writer_layer(void*, int, const void* const*) { return 1; }
EXPORT int filbert_writer_words(void*, int, const void* const*) { return 1; }
EXPORT int filbert_writer_step(void*, const int*, const void* const*, int) { return 1; }
EXPORT int filbert_writer_attend(void*, const int*, const float*, const float*, const float*, const int64_t*, const int64_t*, float*, int) { return 1; }
EXPORT int filbert_writer_totals(void*, const float*, int, int, float*, int) { return 1; }
EXPORT int filbert_writer_best(void*, const int*, const float*, const float*, float*, int64_t*, int64_t*, int) { return 1; }

#endif
