// The BERT encoder for processors with AMX: bfloat16 in, float32 sums, no padding.
//
// Called from filbert/model/native.py through ctypes; the slow twin is filbert/model/bert.py, and
// tests/numerics/test_native.py holds this file to it. Plain C++17, one file, no library but the
// standard one.
//
// A batch is packed: the tokens of all texts end to end. It is cut into chunks of whole texts; a
// chunk goes through all layers on one thread, so threads meet only when all is done ("bulk"). A
// batch of a single chunk is computed by all threads together, which then wait for each other
// between the parts of a layer ("team").
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
#include <thread>
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

// What this processor and kernel offer: 0 nothing that serves here, 1 AMX with bfloat16 and int8.
EXPORT int filbert_native_level() {
#ifdef FILBERT_X86
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    const bool amx = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1);
    const bool avx512 = (b >> 16 & 1) && (b >> 30 & 1) && (b >> 17 & 1) && (b >> 31 & 1);
    if (!amx || !avx512) return 0;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return 0;  // AVX-512-BF16
    if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0;  // OSXSAVE
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0xe6) != 0xe6 || (low >> 17 & 3) != 3) return 0;  // AVX-512 and tile state
    constexpr int request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0 ? 1 : 0;
#else
    return 0;
#endif
}

#ifdef FILBERT_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,amx-tile,amx-bf16,amx-int8")

namespace {

using bf16 = uint16_t;
constexpr int TILE = 1024;   // bytes of a block
constexpr int WIDE = 32;     // columns of a panel, and bfloat16 rows of one step of a product

int up(int value, int step) { return (value + step - 1) / step * step; }

// ---------------------------------------------------------------------------------------------
// memory

// Aligned memory in huge pages where the system has them; zeroed.
struct Memory {
    char* data = nullptr;
    size_t size = 0;
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { release(); }
    void release() {
        if (data) munmap(data, size);
        data = nullptr, size = 0;
    }
    // At least this much; what was there is lost if it grows.
    void need(size_t bytes) {
        if (bytes <= size) return;
        release();
        constexpr size_t huge = size_t(2) << 20;
        const size_t whole = (bytes + huge - 1) / huge * huge;
        void* p = mmap(nullptr, whole + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        char* begin = static_cast<char*>(p);
        const size_t skip = (huge - reinterpret_cast<uintptr_t>(begin) % huge) % huge;
        if (skip) munmap(begin, skip);
        if (huge - skip) munmap(begin + skip + whole, huge - skip);
        data = begin + skip, size = whole;
        madvise(data, size, MADV_HUGEPAGE);
    }
};

// ---------------------------------------------------------------------------------------------
// small vector pieces

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

// x * Phi(x), with erf(x / sqrt 2) = x * P(x^2) on |x| <= 4 fitted to the least largest error: 4e-5.
inline __m512 gelu_of(__m512 x) {
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
    const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
    return _mm512_fmadd_ps(half, _mm512_mul_ps(near, p), half);
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
    return _mm512_max_ps(x, _mm512_setzero_ps());
}

// ---------------------------------------------------------------------------------------------
// tiles

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

template <bool int8> inline void multiply_four() {
    if constexpr (int8) {
        _tile_dpbssd(0, 4, 6); _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6); _tile_dpbssd(3, 5, 7);
    } else {
        _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
    }
}

// 32 x 32 sums of `steps` steps: two blocks of rows by two of columns. sums: 32 floats (int32) in
// rows of `stride` bytes; what stands there counts in with `go_on`. `beside(i)` for i = 0 ... 31 is
// done between the steps: work on vectors, for which the units stand idle while tiles are
// multiplied. `lines` cache lines a step are fetched from `ahead`.
template <bool int8, class Beside>
inline void product32(const char* a, size_t next_rows, const char* b, int steps, float* sums, size_t stride,
                      bool go_on, const char* ahead, int lines, Beside beside) {
    settle();
    float* lower = sums + 4 * stride;
    if (go_on) {
        _tile_loadd(0, sums, stride); _tile_loadd(1, sums + 16, stride);
        _tile_loadd(2, lower, stride); _tile_loadd(3, lower + 16, stride);
    } else {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    }
    const char* a2 = a + next_rows;
    int done = 0;
    for (int k = 0, due = 32; k < steps; ++k, due += 32) {
        _tile_loadd(4, a + k * TILE, 64);
        _tile_loadd(6, b + k * 2 * TILE, 64);
        _tile_loadd(7, b + k * 2 * TILE + TILE, 64);
        _tile_loadd(5, a2 + k * TILE, 64);
        multiply_four<int8>();
        for (int i = 0; i < lines; ++i, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
        for (; done * steps < due; ++done) beside(done);
    }
    _tile_stored(0, sums, stride); _tile_stored(1, sums + 16, stride);
    _tile_stored(2, lower, stride); _tile_stored(3, lower + 16, stride);
}

// 16 x 32 sums, even and odd steps apart so that no product waits for the one before it.
template <bool int8> inline void product16(const char* a, const char* b, int steps, float* sums, size_t stride) {
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

// ---------------------------------------------------------------------------------------------
// weights

struct Matrix {
    Memory panels;
    std::vector<float> bias;   // padded to the panels
    std::vector<float> scale;  // of each column; empty where the weights are bfloat16
    int steps = 0, count = 0;  // steps of a product, panels
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
    for (int n = 0; n < columns; ++n) {
        const int from = column(n);
        if (from < 0) continue;
        const float times = factor(n);
        const float* given = weight + size_t(from) * given_rows;
        into.bias[n] = bias[from] * times;
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
            if (int8) into.panels.data[block * TILE + place] = char(std::lround(given[source] * inverse));
            else reinterpret_cast<bf16*>(into.panels.data)[block * (TILE / 2) + place] = to_bf16(given[source] * times);
        }
    }
}

// ---------------------------------------------------------------------------------------------
// threads

// A barrier for few threads that all run: it spins, and yields if the wait gets long.
struct Barrier {
    explicit Barrier(int count) : count(count) {}
    void wait() {
        if (count == 1) return;
        const int turn = turns.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
            arrived.store(0, std::memory_order_relaxed);
            turns.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turns.load(std::memory_order_acquire) == turn; ++spins) {
            if (spins < 4000) _mm_pause();
            else std::this_thread::yield();
        }
    }
    const int count;
    std::atomic<int> arrived{0}, turns{0};
};

// Helpers that sleep between calls. One call at a time; a forked child makes its own.
class Pool {
public:
    ~Pool() { stop(); }
    template <class Work> void run(int threads, Work&& work) {
        if (threads > 1) grow(threads - 1);
        if (threads <= 1) {
            work(0);
            return;
        }
        struct Call {
            static void go(void* work, int number) { (*static_cast<std::remove_reference_t<Work>*>(work))(number); }
        };
        {
            std::lock_guard<std::mutex> hold(mutex);
            job = &Call::go, argument = &work, wanted = threads - 1, left = threads - 1;
            ++round;
            rounds.store(round, std::memory_order_release);
        }
        wake.notify_all();
        work(0);
        for (int spins = 0; left.load(std::memory_order_acquire) > 0; ++spins) {
            if (spins < 20000) _mm_pause();
            else std::this_thread::yield();
        }
    }
    void stop() {
        {
            std::lock_guard<std::mutex> hold(mutex);
            ending = true;
        }
        wake.notify_all();
        for (auto& helper : helpers) helper.join();
        helpers.clear();
        ending = false;
    }

private:
    void grow(int count) {
        while (int(helpers.size()) < count) {
            const int number = int(helpers.size()) + 1;
            helpers.emplace_back([this, number, seen = round] { live(number, seen); });
        }
    }
    void live(int number, uint64_t seen) {
        for (;;) {
            // the next call often follows at once: look for it a little before sleeping
            for (int spins = 0; spins < 2000 && rounds.load(std::memory_order_acquire) == seen; ++spins) _mm_pause();
            void (*go)(void*, int);
            void* with;
            {
                std::unique_lock<std::mutex> hold(mutex);
                wake.wait(hold, [&] { return ending || round != seen; });
                if (ending) return;
                seen = round;
                if (number > wanted) continue;
                go = job, with = argument;
            }
            go(with, number);
            left.fetch_sub(1, std::memory_order_acq_rel);
        }
    }
    std::vector<std::thread> helpers;
    std::mutex mutex;
    std::condition_variable wake;
    void (*job)(void*, int) = nullptr;
    void* argument = nullptr;
    int wanted = 0;
    uint64_t round = 0;
    std::atomic<uint64_t> rounds{0};
    std::atomic<int> left{0};
    bool ending = false;
};

// ---------------------------------------------------------------------------------------------
// a chunk of texts and the memory to compute it in

struct Scratch {
    Memory states, context, inner, sums;  // of a chunk
    Memory small;  // the input of a product as int8 tiles
    std::vector<float> scales;  // of its rows
    std::vector<std::unique_ptr<Memory>> attention;  // of each thread: all that one head needs
};

struct Chunk {
    int first, last;  // texts
    int begin, tokens;  // its first token, how many
};

struct Input {
    const int64_t *ids, *types;  // (tokens,); null if `hidden` is given
    const float* hidden;  // (tokens, hidden) embeddings ready made
    const int* lengths;  // (texts,)
    float* out;  // (tokens, hidden), or (texts, hidden) of first tokens
    bool first_only;
};

struct Encoder {
    Shape shape;
    std::vector<Layer> layers;
    // embeddings, float32, (vocabulary, hidden) and so on; the caller keeps them alive
    const float *words = nullptr, *places = nullptr, *kinds = nullptr;
    std::vector<float> norm0;
    bool any_int8 = false;
    std::mutex busy;
    Pool pool;
    std::vector<std::unique_ptr<Scratch>> scratch;
    pid_t owner = getpid();

    Encoder(const int* given, float eps) : shape(given, eps), layers(shape.layers) {}

    char* state(Scratch& s, int row) const {  // row of a tiled matrix `wide_hidden` wide
        return s.states.data + size_t(row / 16) * (shape.wide_hidden / WIDE) * TILE + row % 16 * 64;
    }

    void prepare(Scratch& s, int rows, int longest, int threads) const {
        const size_t r = up(rows, 32);
        s.states.need(r * shape.wide_hidden * 2);
        s.context.need(r * shape.context * 2);
        s.inner.need(r * shape.wide_inner * 2);
        s.sums.need(r * shape.wide_hidden * 4);
        if (any_int8) {
            s.small.need(r * up(std::max({shape.wide_hidden, shape.context, shape.wide_inner}), 64));
            if (s.scales.size() < r) s.scales.resize(r);
        }
        const size_t keys = up(longest, 32);
        while (int(s.attention.size()) < threads) s.attention.push_back(std::make_unique<Memory>());
        for (auto& memory : s.attention)
            memory->need((r + 32) * shape.row() * 2 + keys * shape.wide_head * 2 * 2 + 32 * keys * 4 + 32 * keys * 2);
    }

    // Norm of 32-column pieces in `row`, float32 and padded with zeros, to the tiled states.
    void normalise(const float* row, const float* gain_shift, char* into, float* plain) const {
        const int wide = shape.wide_hidden, size = shape.hidden;
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < wide; i += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(row + i));
        const float mean = _mm512_reduce_add_ps(sum) / size;
        const __m512 centre = _mm512_set1_ps(mean);
        __m512 square = _mm512_setzero_ps();
        for (int i = 0; i < wide; i += 16) {
            const __m512 d = _mm512_sub_ps(_mm512_loadu_ps(row + i), centre);
            square = _mm512_fmadd_ps(d, d, square);
        }
        const float variance = (_mm512_reduce_add_ps(square) - (wide - size) * mean * mean) / size;
        const __m512 factor = _mm512_set1_ps(1.f / std::sqrt(std::max(variance, 0.f) + shape.eps));
        const float* shift = gain_shift + wide;
        for (int i = 0; i < wide; i += 32) {
            __m512 low = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + i), centre), factor);
            __m512 high = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + i + 16), centre), factor);
            low = _mm512_fmadd_ps(low, _mm512_loadu_ps(gain_shift + i), _mm512_loadu_ps(shift + i));
            high = _mm512_fmadd_ps(high, _mm512_loadu_ps(gain_shift + i + 16), _mm512_loadu_ps(shift + i + 16));
            _mm512_store_si512(into + size_t(i / WIDE) * TILE, pack_bf16(low, high));
            if (plain) {
                const int left = size - i;
                const __mmask16 m1 = left >= 16 ? 0xffff : __mmask16((1u << std::max(left, 0)) - 1);
                const __mmask16 m2 = left >= 32 ? 0xffff : __mmask16((1u << std::max(left - 16, 0)) - 1);
                _mm512_mask_storeu_ps(plain + i, m1, low);
                _mm512_mask_storeu_ps(plain + i + 16, m2, high);
            }
        }
    }

    void embed(const Input& in, const Chunk& chunk, Scratch& s, int begin, int end) const {
        const int wide = shape.wide_hidden, size = shape.hidden;
        std::vector<float> row(wide, 0.f);
        int text = chunk.first, place = 0;
        for (int t = 0; t < end; ++t) {
            if (t >= begin) {
                char* into = state(s, t);
                const size_t token = size_t(chunk.begin) + t;
                if (in.hidden) {
                    std::memcpy(row.data(), in.hidden + token * size, size * 4);
                    for (int i = 0; i < wide; i += 32)
                        _mm512_store_si512(into + size_t(i / WIDE) * TILE,
                                           pack_bf16(_mm512_loadu_ps(&row[i]), _mm512_loadu_ps(&row[i + 16])));
                } else {
                    const float* word = words + size_t(in.ids[token]) * size;
                    const float* at = places + size_t(place) * size;
                    const float* kind = kinds + size_t(in.types ? in.types[token] : 0) * size;
                    int i = 0;
                    for (; i + 16 <= size; i += 16)
                        _mm512_storeu_ps(&row[i], _mm512_add_ps(_mm512_loadu_ps(word + i),
                            _mm512_add_ps(_mm512_loadu_ps(kind + i), _mm512_loadu_ps(at + i))));
                    for (; i < size; ++i) row[i] = word[i] + (kind[i] + at[i]);
                    normalise(row.data(), norm0.data(), into, nullptr);
                }
            }
            if (++place == in.lengths[text]) ++text, place = 0;
        }
    }

    // A block of sums with what makes them values: scales if they are int32, and the bias.
    template <bool int8> struct Sums {
        const float *block, *rows;  // of 32; scale of each row
        __m512 scale1, scale2, bias1, bias2;
        Sums(const float* block, const float* rows, const Matrix& m, int panel) : block(block), rows(rows) {
            bias1 = _mm512_loadu_ps(&m.bias[panel * WIDE]), bias2 = _mm512_loadu_ps(&m.bias[panel * WIDE + 16]);
            if constexpr (int8)
                scale1 = _mm512_loadu_ps(&m.scale[panel * WIDE]), scale2 = _mm512_loadu_ps(&m.scale[panel * WIDE + 16]);
        }
        __m512 value(int row, int at, __m512 scale, __m512 bias) const {
            if constexpr (!int8) return _mm512_add_ps(_mm512_load_ps(block + row * 32 + at), bias);
            const __m512 whole = _mm512_cvtepi32_ps(_mm512_load_si512(block + row * 32 + at));
            return _mm512_fmadd_ps(_mm512_mul_ps(whole, _mm512_set1_ps(rows[row])), scale, bias);
        }
        __m512 low(int row) const { return value(row, 0, scale1, bias1); }
        __m512 high(int row) const { return value(row, 16, scale2, bias2); }
    };

    // For each 32 rows and each of the panels `from` to `to` the sums, handed row by row to `take(Sums,
    // row of the block, first row, panel)`, while the next block is multiplied. The input is `tiles`,
    // or for an int8 matrix what `shrink` made of them.
    template <class Take>
    void multiply(const Scratch& s, const char* tiles, int rows, const Matrix& m, int from, int to, Take take) const {
        if (m.int8()) multiply_as<true>(s, s.small.data, rows, m, from, to, take);
        else multiply_as<false>(s, tiles, rows, m, from, to, take);
    }

    template <bool int8, class Take>
    void multiply_as(const Scratch& s, const char* tiles, int rows, const Matrix& m, int from, int to, Take take) const {
        alignas(64) float blocks[2][32 * 32];
        const size_t next = size_t(m.steps) * TILE;
        Sums<int8> last(blocks[0], nullptr, m, from);  // of the block before
        int count = 0, row = 0, column = 0, turn = 0;  // its rows, its place
        const int lines = lines_ahead(rows);
        for (int panel = from; panel < to; ++panel) {
            const char* b = m.panels.data + size_t(panel) * m.steps * 2 * TILE;
            const char* ahead = b + size_t(m.steps) * 2 * TILE;
            for (int r = 0; r < rows; r += 32, ahead += size_t(lines) * m.steps * 64) {
                const char* a = tiles + size_t(r / 16) * next;
                float* sums = blocks[turn ^= 1];
                if (rows - r > 16 && count == 32)
                    product32<int8>(a, next, b, m.steps, sums, 128, false, ahead, lines,
                                    [&](int i) { take(last, i, row, column); });
                else {
                    for (int i = 0; i < count; ++i) take(last, i, row, column);
                    if (rows - r > 16) product32<int8>(a, next, b, m.steps, sums, 128, false, ahead, lines, [](int) {});
                    else product16<int8>(a, b, m.steps, sums, 128);
                }
                const float* scales = nullptr;
                if constexpr (int8) scales = &s.scales[r];
                last = Sums<int8>(sums, scales, m, panel);
                count = rows - r > 16 ? 32 : 16, row = r, column = panel;
            }
        }
        for (int i = 0; i < count; ++i) take(last, i, row, column);
    }

    // The next panel comes from far away: each of a panel's blocks asks for so many lines a step.
    static int lines_ahead(int rows) { return (2 * TILE / 64 * 32 + rows - 1) / rows; }

    // Rows of bfloat16 tiles, `wide` columns, as int8 tiles with a scale for each row.
    void shrink(Scratch& s, const char* tiles, int wide, int begin, int end) const {
        const int blocks = wide / WIDE, small_blocks = up(wide, 64) / 64;
        for (int r = begin; r < end; ++r) {
            const char* from = tiles + size_t(r / 16) * blocks * TILE + r % 16 * 64;
            char* to = s.small.data + size_t(r / 16) * small_blocks * TILE + r % 16 * 64;
            __m512 most = _mm512_setzero_ps();
            for (int i = 0; i < blocks; ++i) {
                const char* at = from + size_t(i) * TILE;
                most = _mm512_max_ps(most, _mm512_max_ps(_mm512_abs_ps(load_bf16(at)), _mm512_abs_ps(load_bf16(at + 32))));
            }
            const float largest = _mm512_reduce_max_ps(most);
            s.scales[r] = largest / 127.f;
            const __m512 inverse = _mm512_set1_ps(largest > 0.f ? 127.f / largest : 0.f);
            for (int i = 0; i < blocks; ++i) {
                const char* at = from + size_t(i) * TILE;
                char* place = to + size_t(i / 2) * TILE + i % 2 * 32;
                const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(load_bf16(at), inverse));
                const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(load_bf16(at + 32), inverse));
                _mm_store_si128(reinterpret_cast<__m128i*>(place), _mm512_cvtsepi32_epi8(low));
                _mm_store_si128(reinterpret_cast<__m128i*>(place + 16), _mm512_cvtsepi32_epi8(high));
            }
            if (blocks % 2) {
                _mm256_store_si256(reinterpret_cast<__m256i*>(to + size_t(blocks / 2) * TILE + 32), _mm256_setzero_si256());
            }
        }
    }

    // Queries, keys and values of a head, row by row into `into`.
    void project(const Scratch& s, const Matrix& m, const char* tiles, int rows, int head, char* into) const {
        const int panels = shape.row() / WIDE, from = head * panels;
        const size_t stride = size_t(shape.row()) * 2;
        multiply(s, tiles, rows, m, from, from + panels, [&](const auto& sums, int i, int r, int panel) {
            _mm512_store_si512(into + (r + i) * stride + size_t(panel - from) * 64, pack_bf16(sums.low(i), sums.high(i)));
        });
    }

    template <int kind>
    void widen(const Scratch& s, const Matrix& m, const char* tiles, int rows, char* into, int from, int to) const {
        const size_t next = size_t(m.count) * TILE;
        multiply(s, tiles, rows, m, from, to, [&](const auto& sums, int i, int r, int panel) {
            char* at = into + size_t((r + i) / 16) * next + size_t(panel) * TILE + i % 16 * 64;
            _mm512_store_si512(at, pack_bf16(activate(sums.low(i), kind), activate(sums.high(i), kind)));
        });
    }

    // The bare sums of a product with as many columns as the states; `add_and_norm` makes values of
    // them. An input that is too large to stay near is taken in several parts of its columns.
    void sum(Scratch& s, const Matrix& m, const char* tiles, int rows, int from, int to) const {
        if (m.int8()) sum_as<true>(s, m, s.small.data, rows, from, to);
        else sum_as<false>(s, m, tiles, rows, from, to);
    }

    template <bool int8>
    void sum_as(Scratch& s, const Matrix& m, const char* tiles, int rows, int from, int to) const {
        constexpr size_t near = 400 << 10;  // bytes of the input that stay in the second-level cache
        const size_t next = size_t(m.steps) * TILE, stride = size_t(shape.wide_hidden) * 4;
        const int cuts = rows > 32 ? int((size_t(rows) / 16 * next + near - 1) / near) : 1;
        const int at_once = (m.steps + cuts - 1) / cuts, lines = lines_ahead(rows);
        float* sums = reinterpret_cast<float*>(s.sums.data);
        for (int k = 0; k < m.steps; k += at_once) {
            const int steps = std::min(at_once, m.steps - k);
            for (int panel = from; panel < to; ++panel) {
                const char* b = m.panels.data + (size_t(panel) * m.steps + k) * 2 * TILE;
                const char* ahead = b + size_t(m.steps) * 2 * TILE;
                for (int r = 0; r < rows; r += 32, ahead += size_t(lines) * steps * 64) {
                    const char* a = tiles + size_t(r / 16) * next + size_t(k) * TILE;
                    float* at = sums + size_t(r) * shape.wide_hidden + panel * WIDE;
                    if (rows - r > 16 || k || steps < m.steps)
                        product32<int8>(a, next, b, steps, at, stride, k > 0, ahead, lines, [](int) {});
                    else product16<int8>(a, b, steps, at, stride);
                }
            }
        }
    }

    // Make values of the sums of a product, add the states, and normalise: the new states.
    void add_and_norm(Scratch& s, const Matrix& m, const std::vector<float>& norm, int begin, int end,
                      float* const* plain) const {
        const int wide = shape.wide_hidden;
        for (int r = begin; r < end; ++r) {
            float* row = reinterpret_cast<float*>(s.sums.data) + size_t(r) * wide;
            char* tiles = state(s, r);
            const __m512 scale = _mm512_set1_ps(m.int8() ? s.scales[r] : 1.f);
            for (int i = 0; i < wide; i += 16) {
                const __m512 before = load_bf16(tiles + size_t(i / WIDE) * TILE + i % WIDE * 2);
                const __m512 bias = _mm512_add_ps(before, _mm512_loadu_ps(&m.bias[i]));
                __m512 value;
                if (m.int8()) {
                    const __m512 whole = _mm512_cvtepi32_ps(_mm512_load_si512(row + i));
                    value = _mm512_fmadd_ps(_mm512_mul_ps(whole, scale), _mm512_loadu_ps(&m.scale[i]), bias);
                } else value = _mm512_add_ps(_mm512_load_ps(row + i), bias);
                _mm512_store_ps(row + i, value);
            }
            normalise(row, norm.data(), tiles, plain ? *plain + size_t(r) * shape.hidden : nullptr);
        }
    }

    // Softmax of Q K^T, times V, of one head of one text. q: its first row of what `project` made; the
    // context goes to rows from `to` on. With `first` only the first query is asked.
    void attend(Scratch& s, char* memory, const char* q, int length, int head, int to, bool first) const {
        const int size = shape.wide_head, steps = size / WIDE, keys = up(length, 32);
        const size_t stride = size_t(shape.row()) * 2;
        const char* k = q + size_t(size) * 2;
        const char* v = k + size_t(size) * 2;
        char* kept = memory;  // keys as a right operand
        char* values = kept + size_t(keys) * size * 2;
        float* scores = reinterpret_cast<float*>(values + size_t(keys) * size * 2);
        char* odds = reinterpret_cast<char*>(scores) + size_t(32) * keys * 4;  // tiles

        for (int j = 0; j < keys; j += 16)
            for (int d = 0; d < steps; ++d)
                transpose16(k + j * stride + d * 64, stride, std::min(16, length - j),
                            kept + (size_t(j / 32) * steps + d) * 2 * TILE + (j % 32 / 16) * TILE);
        const __m512i none = _mm512_setzero_si512();
        for (int j = 0; j < keys; j += 32)
            for (int i = 0; i < 16; ++i) {
                const int one = j + 2 * i, two = one + 1;
                char* row_out = values + size_t(j / 32) * (size / 16) * TILE + i * 64;
                for (int d = 0; d < size; d += 16) {
                    __m512i low = none, high = none;
                    if (one < length) low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(v + one * stride + d * 2)));
                    if (two < length) high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(v + two * stride + d * 2)));
                    _mm512_store_si512(row_out + size_t(d / 16) * TILE, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
                }
            }

        settle();
        const int queries = first ? 1 : length;
        const __m512 low = _mm512_set1_ps(-3.4e38f);
        for (int begin = 0; begin < queries; begin += 32) {
            const int count = std::min(32, queries - begin);
            const bool two = count > 16;
            const char* a = q + size_t(begin) * stride;
            for (int j = 0; j < keys; j += 32) {
                const char* b = kept + size_t(j / 32) * steps * 2 * TILE;
                _tile_zero(0); _tile_zero(1);
                if (two) { _tile_zero(2); _tile_zero(3); }
                for (int d = 0; d < steps; ++d) {
                    _tile_loadd(4, a + d * 64, stride);
                    _tile_loadd(6, b + d * 2 * TILE, 64); _tile_loadd(7, b + d * 2 * TILE + TILE, 64);
                    _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
                    if (two) {
                        _tile_loadd(5, a + 16 * stride + d * 64, stride);
                        _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
                    }
                }
                _tile_stored(0, scores + j, size_t(keys) * 4); _tile_stored(1, scores + j + 16, size_t(keys) * 4);
                if (two) {
                    _tile_stored(2, scores + 16 * keys + j, size_t(keys) * 4);
                    _tile_stored(3, scores + 16 * keys + j + 16, size_t(keys) * 4);
                }
            }
            float inverse[32];
            const int whole = length / 16 * 16;
            const __mmask16 rest = __mmask16((1u << (length - whole)) - 1);
            for (int i = 0; i < count; ++i) {
                float* line = scores + size_t(i) * keys;
                __m512 top = low;
                for (int j = 0; j < whole; j += 16) top = _mm512_max_ps(top, _mm512_load_ps(line + j));
                if (rest) top = _mm512_mask_max_ps(top, rest, top, _mm512_load_ps(line + whole));
                const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(top));
                __m512 total = _mm512_setzero_ps();
                char* to_tile = odds + size_t(i / 16) * (keys / 32) * TILE + i % 16 * 64;
                for (int j = 0; j < keys; j += 32) {
                    __m512 x = exp2_of(_mm512_sub_ps(_mm512_load_ps(line + j), most));
                    __m512 y = exp2_of(_mm512_sub_ps(_mm512_load_ps(line + j + 16), most));
                    if (j + 32 > length) {
                        x = _mm512_maskz_mov_ps(mask_of(length - j), x);
                        y = _mm512_maskz_mov_ps(mask_of(length - j - 16), y);
                    }
                    total = _mm512_add_ps(total, _mm512_add_ps(x, y));
                    _mm512_store_si512(to_tile + size_t(j / 32) * TILE, pack_bf16(x, y));
                }
                inverse[i] = 1.f / _mm512_reduce_add_ps(total);
            }
            settle();
            alignas(64) float sums[32 * 32];
            for (int d = 0; d < size; d += 32) {
                const char* b = values + size_t(d / 16) * TILE;
                _tile_zero(0); _tile_zero(1);
                if (two) { _tile_zero(2); _tile_zero(3); }
                for (int j = 0; j < keys / 32; ++j) {
                    const char* p = b + size_t(j) * (size / 16) * TILE;
                    _tile_loadd(4, odds + size_t(j) * TILE, 64);
                    _tile_loadd(6, p, 64); _tile_loadd(7, p + TILE, 64);
                    _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
                    if (two) {
                        _tile_loadd(5, odds + size_t(keys / 32 + j) * TILE, 64);
                        _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
                    }
                }
                _tile_stored(0, sums, 128); _tile_stored(1, sums + 16, 128);
                if (two) { _tile_stored(2, sums + 512, 128); _tile_stored(3, sums + 528, 128); }
                const size_t column = size_t(head * size + d) / WIDE;
                for (int i = 0; i < count; ++i) {
                    const int r = to + begin + i;
                    const __m512 f = _mm512_set1_ps(inverse[i]);
                    char* place = s.context.data + (size_t(r / 16) * (shape.context / WIDE) + column) * TILE + r % 16 * 64;
                    _mm512_store_si512(place, pack_bf16(_mm512_mul_ps(_mm512_load_ps(sums + i * 32), f),
                                                        _mm512_mul_ps(_mm512_load_ps(sums + i * 32 + 16), f)));
                }
            }
        }
    }

    static __mmask16 mask_of(int left) { return left >= 16 ? 0xffff : left <= 0 ? 0 : __mmask16((1u << left) - 1); }

    // 16 rows of 64 bytes, of which `rows` count and the others are zero: their 32-bit pieces transposed.
    static void transpose16(const char* from, size_t stride, int rows, char* into) {
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

    // All layers of a chunk, by `parts` threads together of which this is number `part`.
    void compute(const Input& in, const Chunk& chunk, Scratch& s, Barrier& barrier, int part) {
        const int parts = barrier.count, texts = chunk.last - chunk.first;
        int rows = chunk.tokens;
        auto share = [&](int all, int number) { return int(int64_t(all) * number / parts); };
        const Tiles tiles;
        embed(in, chunk, s, share(rows, part), share(rows, part + 1));
        barrier.wait();
        char* memory = s.attention[part]->data;
        char* rest = memory + size_t(up(rows, 32) + 32) * shape.row() * 2;
        // an int8 product reads int8 tiles, which each thread makes for its rows
        auto ready = [&](const Matrix& m, const char* tiles, int wide) {
            if (!m.int8()) return;
            shrink(s, tiles, wide, share(rows, part), share(rows, part + 1));
            barrier.wait();
        };
        for (int number = 0; number < shape.layers; ++number) {
            const Layer& layer = layers[number];
            const bool last = number + 1 == shape.layers, first = last && in.first_only;
            ready(layer.qkv, s.states.data, shape.wide_hidden);
            for (int head = share(shape.heads, part); head < share(shape.heads, part + 1); ++head) {
                project(s, layer.qkv, s.states.data, rows, head, memory);
                const char* q = memory;
                for (int text = 0, row = 0; text < texts; ++text) {
                    const int length = in.lengths[chunk.first + text];
                    attend(s, rest, q, length, head, first ? text : row, first);
                    row += length, q += size_t(length) * shape.row() * 2;
                }
            }
            barrier.wait();
            if (first) {  // from here on only the first tokens count: bring their states together
                if (part == 0) {
                    int at = 0;
                    for (int t = 0; t < texts; at += in.lengths[chunk.first + t++])
                        if (at != t)
                            for (int i = 0; i < shape.wide_hidden / WIDE; ++i)
                                std::memcpy(state(s, t) + size_t(i) * TILE, state(s, at) + size_t(i) * TILE, 64);
                }
                rows = texts;
                barrier.wait();
            }
            ready(layer.out, s.context.data, shape.context);
            sum(s, layer.out, s.context.data, rows, share(layer.out.count, part), share(layer.out.count, part + 1));
            barrier.wait();
            add_and_norm(s, layer.out, layer.norm1, share(rows, part), share(rows, part + 1), nullptr);
            barrier.wait();
            ready(layer.up, s.states.data, shape.wide_hidden);
            const int from = share(layer.up.count, part), to = share(layer.up.count, part + 1);
            const auto wider = shape.activation == GELU ? &Encoder::widen<GELU>
                               : shape.activation == GELU_TANH ? &Encoder::widen<GELU_TANH> : &Encoder::widen<RELU>;
            (this->*wider)(s, layer.up, s.states.data, rows, s.inner.data, from, to);
            barrier.wait();
            ready(layer.down, s.inner.data, shape.wide_inner);
            sum(s, layer.down, s.inner.data, rows, share(layer.down.count, part), share(layer.down.count, part + 1));
            barrier.wait();
            float* plain = in.out + size_t(in.first_only ? chunk.first : chunk.begin) * shape.hidden;
            add_and_norm(s, layer.down, layer.norm2, share(rows, part), share(rows, part + 1), last ? &plain : nullptr);
            barrier.wait();
        }
    }

    void run(const Input& in, int texts, int threads, int chunk_tokens) {
        std::lock_guard<std::mutex> hold(busy);
        if (owner != getpid()) {  // a forked child has no helpers
            new (&pool) Pool();
            owner = getpid();
        }
        int tokens = 0, longest = 0;
        for (int t = 0; t < texts; ++t) tokens += in.lengths[t], longest = std::max(longest, in.lengths[t]);
        // as many chunks as make equal work for all threads
        int wanted = (tokens + chunk_tokens - 1) / chunk_tokens;
        if (wanted > 1) wanted = up(wanted, threads);
        const int most = std::max(1, (tokens + wanted - 1) / wanted);
        std::vector<Chunk> chunks;
        int rows = 0;
        for (int t = 0, begin = 0; t < texts;) {
            Chunk c{t, t, begin, 0};
            // a text goes into the chunk if more than half of it fits
            while (t < texts && (c.tokens == 0 || c.tokens + in.lengths[t] / 2 < most)) c.tokens += in.lengths[t++];
            c.last = t, begin += c.tokens;
            rows = std::max(rows, c.tokens);
            chunks.push_back(c);
        }
        const bool team = int(chunks.size()) < threads;
        const int sets = team ? 1 : threads;
        while (int(scratch.size()) < sets) scratch.push_back(std::make_unique<Scratch>());
        for (int i = 0; i < sets; ++i) prepare(*scratch[i], rows, longest, team ? threads : 1);
        if (team) {
            Barrier together(threads);
            pool.run(threads, [&](int number) {
                for (const Chunk& chunk : chunks) compute(in, chunk, *scratch[0], together, number);
            });
            return;
        }
        std::atomic<int> next{0};
        pool.run(threads, [&](int number) {
            Barrier alone(1);
            for (int i; (i = next.fetch_add(1)) < int(chunks.size());)
                compute(in, chunks[i], *scratch[number], alone, 0);
        });
    }
};

std::vector<float> padded_norm(const float* gain, const float* shift, int size, int wide) {
    std::vector<float> both(2 * wide, 0.f);
    std::copy(gain, gain + size, both.begin());
    std::copy(shift, shift + size, both.begin() + wide);
    return both;
}

}  // namespace

// shape: layers, hidden, heads, head_size, inner, activation. Null if memory ran out.
EXPORT void* filbert_encoder_new(const int* shape, float eps) {
    try {
        return new Encoder(shape, eps);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

EXPORT void filbert_encoder_free(void* encoder) { delete static_cast<Encoder*>(encoder); }

// Tables as float32, kept alive by the caller, and the norm of the embeddings.
EXPORT int filbert_encoder_embeddings(void* handle, const float* words, const float* places, const float* kinds,
                                      const float* gain, const float* shift) {
    Encoder& e = *static_cast<Encoder*>(handle);
    try {
        e.words = words, e.places = places, e.kinds = kinds;
        e.norm0 = padded_norm(gain, shift, e.shape.hidden, e.shape.wide_hidden);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// weights: query, key and value one below the other (3 * hidden, hidden), output, inner, outer, each
// followed by its bias, and the gains and shifts of both norms: 12 pointers to float32. int8: which
// products are computed so, 1 projections, 2 output, 4 inner, 8 outer, added up.
EXPORT int filbert_encoder_layer(void* handle, int number, const float* const* w, int int8) {
    Encoder& e = *static_cast<Encoder*>(handle);
    const Shape& s = e.shape;
    Layer& layer = e.layers[number];
    auto same = [](int limit) { return [limit](int i) { return i < limit ? i : -1; }; };
    auto of_heads = [&](int i) {  // place in the padded heads -> place in the given ones
        const int d = i % s.wide_head;
        return i < s.context && d < s.head_size ? i / s.wide_head * s.head_size + d : -1;
    };
    try {
        const int all = s.heads * s.head_size;
        // the queries, keys and values of a head side by side, then those of the next
        auto of_three = [&](int i) {
            const int head = i / (3 * s.wide_head), which = i / s.wide_head % 3, d = i % s.wide_head;
            return d < s.head_size ? which * all + head * s.head_size + d : -1;
        };
        auto one = [](int) { return 1.f; };
        // the scale of the scores, and the change from e to 2 as the base of the softmax, go to the queries
        const float scale = 1.44269504089f / std::sqrt(float(s.head_size));
        e.any_int8 |= int8 != 0;
        pack(layer.qkv, int8 & 1, s.wide_hidden, 3 * s.context, w[0], w[1], s.hidden, of_three, same(s.hidden),
             [&](int i) { return i / s.wide_head % 3 == 0 ? scale : 1.f; });
        pack(layer.out, int8 & 2, s.context, s.wide_hidden, w[2], w[3], all, same(s.hidden), of_heads, one);
        pack(layer.up, int8 & 4, s.wide_hidden, s.wide_inner, w[4], w[5], s.hidden, same(s.inner), same(s.hidden), one);
        pack(layer.down, int8 & 8, s.wide_inner, s.wide_hidden, w[6], w[7], s.inner, same(s.hidden), same(s.inner), one);
        layer.norm1 = padded_norm(w[8], w[9], s.hidden, s.wide_hidden);
        layer.norm2 = padded_norm(w[10], w[11], s.hidden, s.wide_hidden);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// Encode `texts` texts, packed. ids and types (tokens,) int64, types may be null; or hidden
// (tokens, hidden). out: (tokens, hidden), or with first_only (texts, hidden). 0, or 1 where memory
// ran out.
EXPORT int filbert_encoder_run(void* handle, const int64_t* ids, const int64_t* types, const float* hidden,
                               const int* lengths, int texts, float* out, int first_only, int threads,
                               int chunk_tokens) {
    try {
        static_cast<Encoder*>(handle)->run({ids, types, hidden, lengths, out, first_only != 0}, texts, threads, chunk_tokens);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// The rate of this thread's tile products alone, GFLOP/s: nothing can be faster. With `loads` each
// product's operands come from the first-level cache, as they must in a real product.
EXPORT double filbert_tile_rate(int steps, int loads) {
    alignas(64) static const char zeros[8 * TILE] = {};
    const Tiles tiles;
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < steps; ++i) {
        if (loads) {
            const char* at = zeros + i % 2 * 4 * TILE;
            _tile_loadd(4, at, 64); _tile_loadd(5, at + TILE, 64);
            _tile_loadd(6, at + 2 * TILE, 64); _tile_loadd(7, at + 3 * TILE, 64);
        }
        _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    return steps * 4.0 * 2 * 16 * 16 * 32 / seconds.count() / 1e9;
}

#pragma GCC pop_options
#else

EXPORT void* filbert_encoder_new(const int*, float) { return nullptr; }
EXPORT void filbert_encoder_free(void*) {}
EXPORT int filbert_encoder_embeddings(void*, const float*, const float*, const float*, const float*, const float*) { return 1; }
EXPORT int filbert_encoder_layer(void*, int, const float* const*, int) { return 1; }
EXPORT int filbert_encoder_run(void*, const int64_t*, const int64_t*, const float*, const int*, int, float*, int, int, int) { return 1; }
EXPORT double filbert_tile_rate(int, int) { return 0; }

#endif
